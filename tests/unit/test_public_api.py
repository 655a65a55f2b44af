"""Tests the Python API: what `import pairmill` costs, the public names, and what the keywords of functions mean."""

import ast
import builtins
import inspect
import re
import subprocess
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pytest

import pairmill
from pairmill.jobs.api import choose, make
from pairmill.jobs.api.progress import listener_for
from pairmill.jobs.progress import ConsoleProgress
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.select.subset_diff import compare
from pairmill.schemas.errors import PairmillError
from tests.synthetic_dataset import write_dataset

FUNCTIONS = ("add_model", "build", "embed", "export", "open", "report", "retry", "select", "status", "verify")
HEAVY = ("ray", "torch", "pyarrow", "pandas", "numpy", "PIL", "pydantic", "yaml", "aiohttp", "fsspec")


def test_the_import_loads_nothing_heavy_and_is_fast() -> None:
    code = f"import sys, pairmill; print([name for name in {HEAVY} if name in sys.modules], pairmill.__version__)"
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
        assert done.stdout.split() == ["[]", pairmill.__version__]
    assert min(seconds) < 0.3  # the best of five, because other tests share the cores


def test_status_and_the_error_classes_load_nothing_heavy_either() -> None:
    code = (
        "import sys, pairmill; pairmill.Status, pairmill.JobError, pairmill.PairmillError; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


NEED_TORCH = ("pairmill.jobs.evaluate", "pairmill.jobs.probe", "pairmill.jobs.api.measure")


def test_commands_and_workers_do_not_load_torch_before_they_need_it() -> None:
    """Loading torch takes more than a second and hundreds of megabytes, for a command and in each worker. So importing
    the modules of commands and stages must not load it."""
    code = (
        "import sys, pkgutil, importlib, pairmill.jobs as jobs, pairmill.pipeline.stages as stages\n"
        "for package in (jobs, stages):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"        if module.name not in {NEED_TORCH}:\n"
        "            importlib.import_module(module.name)\n"
        "            assert 'torch' not in sys.modules, module.name\n"
        "print(len(sys.modules) > 500)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_neither_the_driver_nor_the_workers_of_a_job_on_this_machine_load_ray() -> None:
    modules = ("pairmill.jobs.build", "pairmill.jobs.cluster.run_shards", "pairmill.jobs.cluster.process_worker")
    code = f"import sys, {', '.join(modules)}; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_public_name_exists_and_is_documented() -> None:
    assert set(pairmill.__all__) <= set(dir(pairmill))
    for name in pairmill.__all__:
        value = getattr(pairmill, name)
        if isinstance(value, type | FunctionType):
            assert (inspect.getdoc(value) or "").strip(), name
            assert not (inspect.getdoc(value) or "").startswith(f"{name}("), name  # `dataclass` generates such text
    with pytest.raises(AttributeError, match="'pairmill' has no attribute 'bulid'"):
        _ = pairmill.bulid  # type: ignore[attr-defined]


def test_type_checkers_and_the_interpreter_find_each_name_in_the_same_module() -> None:
    tree = ast.parse(Path(pairmill.__file__ or "").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    checked = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert checked == {name: f"pairmill.{module}" for name, module in pairmill._HOME.items()}
    assert {*checked, "__version__"} == set(pairmill.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_type_hints_of_a_function_resolve_and_its_docstring_lists_all_keywords(name: str) -> None:
    function = getattr(pairmill, name)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    assert set(hints) == {*parameters, "return"}
    for parameter in parameters:
        assert f"    {parameter}: " in (function.__doc__ or ""), parameter


def test_all_errors_are_pairmill_errors_and_those_about_input_are_still_value_errors() -> None:
    from pairmill.pipeline.encode.weights import ModelError
    from pairmill.pipeline.feed.pair_dataset import FeedError
    from pairmill.pipeline.source.files import SourceError
    from pairmill.pipeline.source.planned import PlanError

    for error in (pairmill.JobError, FeedError, ModelError, PlanError, SourceError):
        assert issubclass(error, PairmillError)
        assert issubclass(error, ValueError)


def test_every_error_class_is_a_pairmill_error_unless_it_is_always_caught() -> None:
    becomes_a_status = {"AddressRefused", "FetchError", "ImageError", "NoSuchHost", "TooManyReads", "UnreadableText"}
    becomes_an_outcome = {"DamagedPartError", "HeaderError"}
    tried_again = {"PayloadLost", "UnsupportedMode", "WorkerDied"}
    gets_a_column = {"TimeTextError"}
    root = Path(pairmill.__file__ or "").parent.parent
    found = set()
    for folder in ("schemas", "pipeline", "jobs"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if re.search(r"^\s*class \w+\(", text, re.MULTILINE) else ():
                bases = [getattr(builtins, ast.unparse(base), None) for base in getattr(node, "bases", ())]
                is_error = any(isinstance(base, type) and issubclass(base, BaseException) for base in bases)
                if is_error and isinstance(node, ast.ClassDef) and "PairmillError" not in map(ast.unparse, node.bases):
                    found.add(node.name)
    found = {name for name in found if not name.startswith("_")}
    assert found - becomes_a_status - becomes_an_outcome - tried_again - gets_a_column == {"PairmillError"}


def test_an_unknown_keyword_is_refused_with_a_suggestion() -> None:
    with pytest.raises(TypeError, match=r"build\(\) has no keyword 'min_similarty'; did you mean 'min_similarity'\?"):
        pairmill.build("in.parquet", "out", min_similarty=0.3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"open\(\) has no keyword 'zzz'; it takes output, s3"):
        pairmill.open("out", zzz=1)  # type: ignore[call-arg]


def job_of(
    monkeypatch: pytest.MonkeyPatch, *arguments: object, embed: bool = False, **keywords: object
) -> dict[str, object]:
    """The explicitly set fields of the job that a call to build (or embed) would run."""
    jobs: list[pairmill.BuildJob] = []
    monkeypatch.setattr(make.building, "build", lambda job, listener: jobs.append(job))
    function = pairmill.embed if embed else pairmill.build
    function(*arguments, progress=False, **keywords)  # type: ignore[arg-type]
    return jobs[0].model_dump(exclude_unset=True)


def test_keywords_mean_what_the_flags_of_the_command_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    from pairmill.jobs.cli.arguments import build_job, embed_job
    from pairmill.jobs.cli.options import BuildOptions, EmbedOptions

    flags = {
        "job_file": None,
        "settings": ["fetch.timeout_s=5", "images.size=256"],
        "source": ["a.csv", "b.csv", "out"],
        "limit": 1000,
        "url_column": "link",
        "caption_column": "text",
        "model": ["ViT-B-32:openai", "tiny"],
        "min_similarity": 0.25,
        "preset": "datacomp-basic",
    }
    keywords = {
        "limit": 1000,
        "url_column": "link",
        "caption_column": "text",
        "models": ["ViT-B-32:openai", pairmill.ModelConfig(name="tiny")],
        "min_similarity": 0.25,
        "preset": "datacomp-basic",
        "settings": {"fetch.timeout_s": 5, "images": pairmill.ImagesConfig(size=256)},
    }
    made = job_of(monkeypatch, [Path("a.csv"), "b.csv"], Path("out"), **keywords)
    assert pairmill.BuildJob.model_validate(made) == build_job(BuildOptions(**flags))
    flags = {
        "job_file": None,
        "settings": [],
        "source": ["tars", "out"],
        "limit": None,
        "model": ["tiny"],
        "dtype": "float32",
        "device": "cpu",
        "caption_from_name": True,
    }
    keywords = {"models": "tiny", "dtype": "float32", "device": "cpu", "caption_from_name": True}
    for models in ("tiny", {"name": "tiny", "dtype": "float32"}):
        made = job_of(monkeypatch, Path("tars"), "out", embed=True, **{**keywords, "models": models})
        assert pairmill.BuildJob.model_validate(made) == embed_job(EmbedOptions(**flags))


def test_a_single_path_needs_no_list_in_arguments_job_objects_and_job_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text("source: {paths: in.csv}\noutput: out\n")
    for arguments, keywords in (
        (["in.csv", "out"], {}),
        ([Path("in.csv"), Path("out")], {}),
        ([(Path("in.csv"),)], {"output": "out"}),
        ([pairmill.BuildJob.model_validate({"source": {"paths": Path("in.csv")}, "output": Path("out")})], {}),
        ([], {"job_file": tmp_path / "job.yaml"}),
        ([], {"job_file": str(tmp_path / "job.yaml"), "settings": {"source.paths": Path("in.csv")}}),
    ):
        made = job_of(monkeypatch, *arguments, **keywords)
        assert (made["source"], made["output"]) == ({"paths": ["in.csv"]}, "out")


def test_keywords_override_the_job_file_and_are_not_modified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("source: {paths: [in.csv]}\noutput: out\nfetch: {retries: 3, timeout_s: 9}\n")
    given = {"fetch": {"retries": 4}, "fetch.timeout_s": 5}
    made = job_of(monkeypatch, job_file=tmp_path / "job.yaml", output="other", settings=given)
    assert (made["output"], made["fetch"]) == ("other", {"retries": 4, "timeout_s": 5})
    assert given == {"fetch": {"retries": 4}, "fetch.timeout_s": 5}


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ([], {}, "give a source and an output, or a job_file"),
        (["in.csv"], {}, "give a source and an output"),
        (["in.csv", "out"], {"min_similarity": 28, "models": "tiny"}, "rules.min_similarity"),
        (["in.csv", "out"], {"preset": "datacomp"}, "rules.preset"),
        (["in.csv", "out"], {"settings": {"fetch.timout_s": 3}}, "fetch.timout_s: .*did you mean 'timeout_s'"),
        (["in.csv", "out"], {"settings": {"output.x": 3}}, "output.x: the job has no such field"),
        (["in.csv", 7], {}, "output: Input should be a valid string"),
        (["in.csv", "https://user:word@host/out"], {}, "password"),
    ],
)
def test_a_mistake_raises_a_job_error_before_anything_starts(
    arguments: list[object], keywords: dict[str, object], message: str
) -> None:
    with pytest.raises(pairmill.JobError, match=message):
        pairmill.build(*arguments, **keywords)  # type: ignore[arg-type]


def test_every_function_reports_a_path_that_does_not_exist(tmp_path: Path) -> None:
    gone, dataset = str(tmp_path / "gone"), tmp_path / "dataset"
    write_dataset(dataset, 10)
    calls: list[Callable[[], object]] = [
        lambda: pairmill.add_model(gone, "tiny"),
        lambda: pairmill.evaluate(gone),
        lambda: pairmill.export(gone, "a", tmp_path / "tars"),
        lambda: pairmill.gc(gone),
        lambda: pairmill.index(gone),
        lambda: pairmill.mix(tmp_path / "mix", {gone: 1}),
        lambda: pairmill.mix(gone, refresh=True),
        lambda: pairmill.open(gone),
        lambda: pairmill.PairDataset(pairmill.FeedConfig(gone)),
        lambda: pairmill.report(gone),
        lambda: pairmill.retry(gone),
        lambda: pairmill.score(gone, "x", score="captions: {measures: [words]}"),
        lambda: pairmill.search(gone, "a dog"),
        lambda: pairmill.select(gone, "a"),
        lambda: pairmill.select(gone, "a", refresh=True),
        lambda: pairmill.select(dataset, "a", steps=f"leak: {gone}"),
        lambda: pairmill.status(gone),
        lambda: pairmill.verify(gone),
        lambda: compare(Store(gone), "a", "b"),
    ]
    for call in calls:
        with pytest.raises(PairmillError, match=f"{gone} does not exist"):
            call()


def test_a_job_object_cannot_be_combined_with_keywords_and_must_fit_the_function() -> None:
    job = pairmill.BuildJob.model_validate({"source": {"paths": "in.csv"}, "output": "out"})
    with pytest.raises(pairmill.JobError, match=r"source\.limit_rows, settings: give a job or keywords, not both"):
        pairmill.build(job, limit=5, settings={"images.size": 3})
    with pytest.raises(pairmill.JobError, match=r"source\.kind is urls"):
        pairmill.embed(job)
    source = pairmill.SourceConfig(paths=["tars"], kind="corpus")
    corpus = pairmill.BuildJob(source=source, output="out", models=[pairmill.ModelConfig(name="tiny")])
    with pytest.raises(pairmill.JobError, match=r"source\.kind is corpus"):
        pairmill.build(corpus)


def test_select_and_export_take_the_keywords_of_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[object] = []
    monkeypatch.setattr(choose.selecting, "select", lambda job, *_: jobs.append(job))
    monkeypatch.setattr(choose.exporting, "export", lambda job, *_: jobs.append(job))
    top = {"top": {"by": "similarity", "fraction": 0.3}}
    steps = ["where: width > 5", top, pairmill.SelectStep(sample=pairmill.Sample(count=9))]
    pairmill.select(Path("out"), "clean", steps=steps, all_pairs=True, settings={"partial": True})
    pairmill.select("out", "clean", steps=top)
    pairmill.export("out", "clean", Path("train"), format="datacomp", models="tiny", in_order=True)
    assert jobs == [
        pairmill.SelectJob.model_validate(
            {
                "dataset": "out",
                "name": "clean",
                "rows": "pairs",
                "partial": True,
                "steps": [{"where": "width > 5"}, top, {"sample": {"count": 9}}],
            }
        ),
        pairmill.SelectJob.model_validate({"dataset": "out", "name": "clean", "steps": [top]}),
        pairmill.ExportJob(
            dataset="out", subset="clean", output="train", format="datacomp", models=["tiny"], shuffle_seed=None
        ),
    ]
    with pytest.raises(pairmill.JobError, match="'sampel' is not a step"):
        pairmill.select("out", "clean", steps="sampel")
    with pytest.raises(pairmill.JobError, match="step 1: sampel: there is no such field; did you mean 'sample'"):
        pairmill.select("out", "clean", steps={"sampel": {"count": 9}})


def test_progress_can_be_the_console_nothing_or_a_custom_listener() -> None:
    with listener_for(True) as listener:
        assert isinstance(listener, ConsoleProgress)
    with listener_for(False) as listener:
        assert listener is None
    own = ConsoleProgress()
    with listener_for(own) as listener:
        assert listener is own


def test_the_decorators_rule_and_at_set_the_step_of_a_custom_rule() -> None:
    from pairmill.pipeline.rules.custom import load_custom_rule

    assert load_custom_rule(f"{__name__}:plain").step == "score"
    assert load_custom_rule(f"{__name__}:early").step == "caption"
    with pytest.raises(pairmill.JobError, match="can run at caption, url, image or score, but not at 'capiton'"):
        pairmill.at("capiton")


@pairmill.rule
def plain(rows: object) -> object:
    return rows


@pairmill.at("caption")
def early(rows: object) -> object:
    return rows
