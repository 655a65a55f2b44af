import io
import re
from pathlib import Path

import pytest
import yaml

from pairmill.jobs.check import _with_absolute_paths, warnings_of
from pairmill.jobs.funnel import funnel
from pairmill.jobs.job_fields import job_fields
from pairmill.jobs.job_file import fingerprint, load_job, load_select_job, resolve
from pairmill.jobs.progress import ConsoleProgress
from pairmill.schemas.errors import JobError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import CustomRuleCount, ShardManifest
from pairmill.schemas.status import Step
from pairmill.schemas.subset import SelectJob

BASE = {"source.paths": ["in.csv"], "output": "out"}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fetch:\n  timout_s: 3\n", "job.yaml:2: fetch.timout_s: there is no such field; did you mean 'timeout_s'?"),
        ("images:\n\n  size: big\n", "job.yaml:3: images.size: "),
        ("models:\n  - {name: tiny}\n  - {nam: x}\n", "job.yaml:3: models.1.name: is required"),
        ("rules: {min_similarity: 0.3}\n", "rules.min_similarity needs a model"),
        ("- a\n- b\n", "job.yaml:1: a job file consists of"),
        (
            "images: {size: 64}\nfetch: {}\nimages: {quality: 90}\n",
            "job.yaml:3: not valid YAML: duplicate key 'images'",
        ),
        ("source: [unclosed\n", "job.yaml:2: not valid YAML"),
        ("fetch: {allow_networks: [127.0.0.0/99]}\n", "job.yaml:1: fetch.allow_networks"),
        ("rules: {custom: [no_colon]}\n", "module:function"),
        ("models: [{name: tiny}, {name: tiny}]\n", "share an alias"),
        ("models: [{name: tiny, alias: color}]\n", "other column names end in 'color'"),
        ("rules: {min_similarity: {clip: 0.3}}\nmodels: [{name: tiny}]\n", "names ['clip']"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_field(job_file: Path, text: str, message: str) -> None:
    job_file.write_text(text)
    with pytest.raises(JobError) as error:
        load_job(str(job_file), BASE)
    assert message in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("rules.min_similarity=28", "rules.min_similarity: Input should be less than or equal to 1 (got 28)"),
        (
            "rules.min_similarity={tiny: 3}",
            "rules.min_similarity.tiny: Input should be less than or equal to 1 (got 3)",
        ),
        ("rules.min_similarity=[1]", "rules.min_similarity: Input should be a valid number (got [1])"),
        ("s3.buckets={a: {endpont: x}}", "s3.buckets.a.endpont: there is no such field; did you mean 'endpoint'?"),
    ],
)
def test_a_bad_value_of_a_field_with_several_types_is_reported_once(setting: str, line: str) -> None:
    with pytest.raises(JobError) as error:
        load_job(None, BASE, ["models=[{name: tiny}]", setting])
    assert str(error.value) == line


@pytest.mark.parametrize("value", ["nonsense", -1, [], {}, [["x"]], {"x": 1}, float("inf")])
def test_a_bad_value_in_a_step_is_reported_at_its_field_without_names_of_types(value: object) -> None:
    fields = [field.name.split(".") for field in job_fields("steps[].", SelectJob) if field.name.count(".") < 3]
    for _, kind, *names in fields:
        if not names:
            continue
        with pytest.raises(JobError) as error:
            load_select_job(None, {"dataset": "d", "name": "n", "steps": [{kind: {"wrong": 1, names[0]: value}}]})
        for line in str(error.value).splitlines():
            assert re.match(rf"step 1: {kind}\.[a-z_0-9.]+: [^\[]+(\(got .*\))?$", line), line
            assert "constrained" not in line and "literal" not in line


def test_flags_override_the_job_file_which_overrides_the_preset(job_file: Path) -> None:
    job_file.write_text("rules: {preset: datacomp-basic, caption_min_words: 7}\nimages: {size: 256}\n")
    job = load_job(str(job_file), {**BASE, "images.size": 128}, ["rules.image_min_side=99"])
    assert (job.images.size, job.rules.caption_min_words, job.rules.image_min_side) == (128, 7, 99)
    assert job.rules.caption_languages == ["en"]


def test_a_preset_refuses_a_model_for_which_it_was_not_calibrated() -> None:
    with pytest.raises(JobError, match="calibrated on ViT-B-32"):
        load_job(None, BASE, ["rules.preset=laion2b", "models=[{name: tiny}]"])


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_preset_accepts_both_names_of_the_model_that_it_was_calibrated_on(name: str) -> None:
    model = f"models=[{{name: {name}, pretrained: openai, alias: b32}}]"
    assert load_job(None, BASE, ["rules.preset=laion2b", model]).rules.min_similarity == {"b32": 0.28}


def test_a_threshold_of_a_preset_applies_to_the_model_of_that_name_even_beside_its_other_name() -> None:
    """As before both names were accepted, so that an output with both models can be continued."""
    a, b = ({"name": name, "pretrained": "openai"} for name in ("ViT-B-32", "ViT-B-32-quickgelu"))
    for models in ([a | {"alias": "a"}, b | {"alias": "b"}], [b | {"alias": "b"}, a | {"alias": "a"}]):
        rules = resolve({"source": {"paths": ["-"]}, "output": "out", "models": models, "rules": {"preset": "laion2b"}})
        assert rules.rules.min_similarity == {"a": 0.28}


@pytest.mark.parametrize("setting", ["images", "=3", "images.size=[", "output.x=1", "models.5=3", "models.x.name=3"])
def test_nonsense_in_set_is_a_clear_error(setting: str) -> None:
    with pytest.raises(JobError):
        load_job(None, BASE, ["models=[{name: tiny}]", setting])


def test_the_fingerprint_is_stable_across_versions_and_changes_with_settings_that_change_the_output() -> None:
    def of(*settings: str) -> str:
        return fingerprint(load_job(None, BASE, settings))

    assert of() == "fd229ed3ec57ef8e5b817a3f874ec496"  # as in the first version, whose outputs must be resumable
    assert of("models=[{name: tiny}]") == "b1fd23d5d24702e17378dcf56ab9e34f"
    assert of("images.quality=95", "fetch.timeout_s=99", "run.batch_size=3", "output=elsewhere") == of()
    assert len({of(), of("images.quality=94"), of("rules.caption_min_words=1"), of("models=[{name: tiny}]")}) == 4


def committed(shard: int, **statuses: int) -> ShardManifest:
    rows = sum(statuses.values())
    counts = {"num_rows": rows, "rows_in": rows, "pairs": 0, "rejects": 0, "kept": 0, "bytes_fetched": 0}
    more = {"uri": "", "first_row": 0, "job_fingerprint": "", "files": {}, "seconds": {}, "versions": {}}
    return ShardManifest(shard=shard, attempt="", statuses=statuses, **counts, **more)  # type: ignore[arg-type]


def test_a_sudden_increase_in_network_failures_is_reported_once() -> None:
    stream = io.StringIO()
    listener = ConsoleProgress(stream)
    for shard in range(5):
        listener.committed(committed(shard, ok=80, dns_error=20))
    assert "warning" not in stream.getvalue()
    listener.committed(committed(5, ok=10, dns_error=70, timeout=20))
    listener.committed(committed(6, dns_error=100))
    assert stream.getvalue().count("failed on the network, most often with dns_error (70)") == 1
    assert stream.getvalue().count("warning: 90% of shard 000000005") == 1
    assert stream.getvalue().count("warning") == 1


def test_shards_of_a_few_rows_are_judged_together() -> None:
    stream = io.StringIO()
    listener = ConsoleProgress(stream)
    for shard in range(100):
        listener.committed(committed(shard, ok=1) if shard % 4 else committed(shard, timeout=1))
    assert "warning" not in stream.getvalue()
    for shard in range(100, 200):
        listener.committed(committed(shard, timeout=1))
    assert "warning: 100% of the last 100 rows failed on the network" in stream.getvalue()


def test_a_flag_can_fill_a_section_that_the_job_file_leaves_empty(job_file: Path) -> None:
    job_file.write_text("source:\noutput: out\n")
    assert load_job(str(job_file), {"source.paths": ["a.csv"], "source.limit_rows": 3}).source.limit_rows == 3


def test_set_can_change_an_element_of_a_list() -> None:
    job = load_job(None, BASE, ["models=[{name: tiny}]", "models.0.alias=mine"])
    assert job.models[0].alias == "mine"


def test_a_resolved_job_is_unchanged_by_writing_and_reading_it() -> None:
    job = load_job(None, BASE, ["rules.preset=datacomp-basic", "models=[{name: tiny}]"])
    assert resolve(yaml.safe_load(yaml.safe_dump(job.model_dump(mode="json")))) == job


def test_only_settings_that_change_the_output_are_in_the_fingerprint() -> None:
    job = load_job(None, BASE)
    same = ["run.download_actors=3", "fetch.concurrency=9", "fetch.retries=7", "source.limit_rows=5", "output=else"]
    other = ["images.size=64", "shard_rows=7", "fetch.max_bytes=9999", "rules.require_caption=false"]
    assert all(fingerprint(load_job(None, BASE, [setting])) == fingerprint(job) for setting in same)
    assert all(fingerprint(load_job(None, BASE, [setting])) != fingerprint(job) for setting in other)
    assert fingerprint(job, ["weights"]) != fingerprint(job)


def test_the_funnel_lists_custom_rules_by_name_at_the_step_where_they_ran() -> None:
    own = {
        "mine:no_sevens": CustomRuleCount(step=Step.CAPTION, rows=3),
        "deep.rules:no_stock_photos_please": CustomRuleCount(step=Step.IMAGE, rows=2),
    }
    text = funnel(20, {"ok": 10, "custom_rule": 6, "caption_missing": 1, "image_too_small": 1, "timeout": 2}, own)
    assert [line.split() for line in text.splitlines()] == [
        ["rows", "in", "20"],
        ["caption", "caption_missing", "-1", "19"],
        ["caption", "custom_rule:", "mine:no_sevens"],
        ["-3", "16"],
        ["fetch", "timeout", "-2", "14"],
        ["image", "image_too_small", "-1", "13"],
        ["image", "custom_rule:", "deep.rules:no_stock_photos_please"],
        ["-2", "11"],
        ["score", "custom_rule", "-1", "10"],  # of shards from versions that did not count rules by name
        ["kept", "10", "50.0%"],
    ]
    assert {len(line) for line in text.splitlines() if line.split()[-1].isdigit()} == {46, 58}


def test_the_funnel_counts_down_to_the_kept_rows() -> None:
    text = funnel(10, {"ok": 5, "timeout": 3, "caption_missing": 2})
    assert [line.split()[-1] for line in text.splitlines()] == ["10", "8", "5", "50.0%"]


def test_a_proxy_that_downloads_would_not_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    job = BuildJob.model_validate({"source": {"paths": "in.csv"}, "output": "out"})
    assert warnings_of(job) == []
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    (warning,) = warnings_of(job)
    assert "HTTPS_PROXY" in warning
    assert "directly" in warning


def test_a_leading_tilde_is_the_home_folder_in_every_path_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/open_clip_config.json").write_text("{}")
    (tmp_path / "weights.pt").touch()
    lists = dict.fromkeys(("url_blocklist", "md5_blocklist", "sha256_blocklist"), "~/list.txt")
    rules = {**lists, "known": ["~/list.txt"]}
    weights = {"name": "ViT-B-32", "pretrained": "~/weights.pt"}
    values = {"source": {"paths": "~/in.csv"}, "output": "~/out", "models": [{"name": "~/model"}, weights]}
    job = _with_absolute_paths(BuildJob.model_validate({**values, "rules": rules}))
    assert "~" not in job.model_dump_json()
    assert [job.models[0].name, job.models[1].pretrained] == [f"{tmp_path}/model", f"{tmp_path}/weights.pt"]
