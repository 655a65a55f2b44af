"""Finds every mistake in a job before workers start, and computes the fingerprint of a valid job."""

from pathlib import Path
from urllib.request import getproxies_environment

from pairmill.jobs.cluster.job_bundle import BLOCKLISTS
from pairmill.jobs.job_file import fingerprint, resolve
from pairmill.pipeline import rules
from pairmill.pipeline.columns.added_model import added_model
from pairmill.pipeline.common.files import Files, absolute
from pairmill.pipeline.common.s3_probe import check_buckets
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.dataset.output_folder import check_dataset_folder
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.prepare import check_sources, prepared, read_known
from pairmill.pipeline.source.planned import load
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.jobs import BuildJob, fingerprint_fields


def check(job: BuildJob, dry_run: bool = False) -> tuple[BuildJob, str]:
    """The job with its preset expanded and absolute paths, and its fingerprint. Raises JobError.

    Makes the filters of `rules.known` if they do not exist yet. With `dry_run`, missing filters are left out of the
    fingerprint instead.
    """
    job = _with_absolute_paths(resolve(job.model_dump(exclude_unset=True)))  # Python code may have set a preset
    try:
        rules.check_rules(rules.SourceRules.of(job), Path.cwd())
    except (OSError, ValueError) as error:
        raise JobError(str(error)) from None
    weights = _check_models(job)
    job = _as_started(job)
    contents = [*weights, *_own_contents(job)]
    if job.rules.known:
        contents += _known_contents(job, dry_run)
    return job, fingerprint(job, contents)


def open_output(job: BuildJob) -> Store:
    """Open the job's output folder, which must be empty or a dataset, and check that all of the job's buckets respond.

    Raises JobError if the folder contains anything else, or S3AccessError.
    """
    lists = [path for name in BLOCKLISTS if (path := getattr(job.rules, name))]
    lists += [known.path for known in job.rules.known]
    check_buckets([job.output, *job.source.paths, *lists], job.s3)
    store = Store(job.output, job.s3)
    check_dataset_folder(store)
    return store


def _with_absolute_paths(job: BuildJob) -> BuildJob:
    """Make paths absolute, so that they mean the same to workers, which run elsewhere."""
    from pairmill.pipeline.encode.weights import located

    lists = {name: getattr(job.rules, name) for name in BLOCKLISTS}
    found: dict[str, object] = {name: absolute(path) for name, path in lists.items() if path}
    if job.rules.known:
        found["known"] = [known.model_copy(update={"path": absolute(known.path)}) for known in job.rules.known]
    return job.model_copy(
        update={
            "output": absolute(job.output),
            "source": job.source.model_copy(update={"paths": [absolute(path) for path in job.source.paths]}),
            "rules": job.rules.model_copy(update=found),
            "models": [located(model) for model in job.models],
        }
    )


def _as_started(job: BuildJob) -> BuildJob:
    """Fill in the dtype and the activation of each model, which change what is stored. An output, or the columns of an
    added model, continue with those that they were started with. New ones use the dtype of this machine and the
    activation of the weights. On a cluster, only the workers know the dtype, so it stays `auto`. Raises JobError for a
    tag without effect, which outputs from before 0.2 may have."""
    if not job.models:
        return job
    from pairmill.pipeline.encode.device import resolved_dtype
    from pairmill.pipeline.encode.weights import needs_quick_gelu, useless_tag

    store = Store(job.output, job.s3)
    plan = load(store)
    planned = {model.alias: model for model in plan.record.job.models} if plan else {}

    def filled_in(model: ModelConfig) -> ModelConfig:
        started = planned.get(model.alias) or added_model(store, model.alias)
        if started is None and (problem := useless_tag(model)) is not None:
            raise JobError(problem)
        dtype = started.dtype if started and model.dtype == "auto" else model.dtype
        if dtype == "auto" and not job.run.address:
            dtype = resolved_dtype(model, job.run)
        quick_gelu = started.quick_gelu if started else needs_quick_gelu(model)
        return model.model_copy(update={"dtype": dtype, "quick_gelu": model.quick_gelu or quick_gelu})

    return job.model_copy(update={"models": [filled_in(model) for model in job.models]})


def _check_models(job: BuildJob) -> list[str]:
    """SHA-256 of the weights of each model."""
    if not job.models:
        return []
    from pairmill.pipeline.encode.device import check_device
    from pairmill.pipeline.encode.model_error import ModelError
    from pairmill.pipeline.encode.weights import resolve_weights

    try:
        if job.run.address is None:
            check_device(job.run)
        return resolve_weights(job.models)
    except ModelError as error:
        raise JobError(str(error)) from None


def _own_contents(job: BuildJob) -> list[str]:
    """Checksums of the user's rules and blocklists, whose content affects the output like any setting."""
    lists = {name: path for name in BLOCKLISTS if (path := getattr(job.rules, name))}
    tops = {name.partition(":")[0].partition(".")[0] for name in job.rules.custom}
    modules = [str(path) for top in tops for path in (Path(f"{top}.py"), *Path(top).rglob("*.py")) if path.is_file()]
    files = Files(job.s3)
    return [
        *(f"{name}:{files.checksum(path)[0]}" for name, path in lists.items()),
        *(files.checksum(path)[0] for path in sorted(modules)),
    ]


def _known_contents(job: BuildJob, dry_run: bool) -> list[str]:
    """Checksums of the filters of `rules.known`."""
    store = Store(job.output, job.s3)
    try:
        record = read_known(store)
        if record is None and dry_run:
            check_sources(store, job.rules.known)
            return []
        record = prepared(store, job.rules.known)
    except KnownError as error:
        raise JobError(f"rules.known: {error}") from None
    return sorted(f"known {each.kind} {each.distance} {each.first_bit}:{each.file.blake2b}" for each in record.filters)


def warnings_of(job: BuildJob) -> list[str]:
    """Warnings about settings that are valid but probably mistaken."""
    from pairmill.pipeline.encode.weights import input_side

    lines = model_warnings(job)
    proxies = {"http", "https", "all"} & set(getproxies_environment())
    if proxies and not job.source.is_corpus:
        lines.append(
            f"warning: downloads do not use the proxy in {min(proxies).upper()}_PROXY, because a proxy could reach "
            "private addresses; workers connect to all hosts directly"
        )
    if any(model.name == "tiny" for model in job.models):
        lines.append(
            "warning: `tiny` only knows synthetic pictures of simple shapes; its scores mean nothing on photographs"
        )
    for model in job.models:
        if (
            not job.source.is_corpus
            and job.images.resize_mode != "no"
            and (side := input_side(model)) > job.images.size
        ):
            lines.append(f"warning: images.size is {job.images.size} px, but {model.name} reads {side} px")
    return lines


def model_warnings(job: BuildJob) -> list[str]:
    """Warnings about models that do not compute what their weights were trained for: with another activation, see
    `_as_started`, or with other pixels."""
    from pairmill.pipeline.encode.weights import needs_quick_gelu, tags_with_other_pixels

    with_gelu = [
        f"warning: the columns of {model.alias!r} were started before 0.2, with GELU instead of QuickGELU, so they "
        f"differ from those of {model.name}:{model.pretrained} elsewhere; use a new output or another alias "
        "for the right ones"
        for model in job.models
        if needs_quick_gelu(model) and not model.quick_gelu
    ]
    return with_gelu + [
        f"warning: a file does not say how pictures are scaled and normalized for its weights, so {model.alias!r} uses "
        f"CLIP's way; all weights of {model.name} that open_clip knows ({', '.join(tags)}) need another one: use a "
        "folder with an open_clip_config.json"
        for model in job.models
        if (tags := tags_with_other_pixels(model))
    ]


def difference(store: Store, planned: BuildJob, job: BuildJob) -> str:
    """Error message for an output folder of another job. It lists the fields that differ."""
    before, now = fingerprint_fields(planned), fingerprint_fields(job)
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    diff = [f"  {name}: {before.get(name)!r} in that job, {now.get(name)!r} in this one" for name in names]
    advice = "Choose another output folder, or use the settings of that job."
    if not committed(store):
        advice = (  # nothing shows whether the other job is alive: it may plan and convert for hours before it commits
            "Nothing is committed there yet, but that job may be running. Choose another output folder; or, if no run "
            "is using this one, delete its plan/, input/, known/ and job.yaml."
        )
    return "\n".join(
        [
            f"{store.root} contains the output of another job. What differs:",
            *(diff or ["  the content of a custom rule, a blocklist, a list of known rows or a model's weights"]),
            advice,
        ]
    )
