"""Tests the advice that verify gives: never to delete files that pairmill may not have written, and only remedies that
work."""

import io
import json
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.jobs.mix import mix
from pairmill.jobs.results import finish
from pairmill.jobs.select import select
from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.columns.added_model import read_card
from pairmill.pipeline.columns.commands import command_of, command_to_continue
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import describe
from pairmill.pipeline.dataset.exports import note_export
from pairmill.pipeline.dataset.footers import read_footer
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record, record_bytes
from pairmill.pipeline.dataset.mixture import read_mixture
from pairmill.pipeline.dataset.strays import SIZES_NAME
from pairmill.pipeline.dataset.subset import SubsetError, read_rows, read_shards, read_subset
from pairmill.pipeline.dataset.webdataset_tar import sizes_table
from pairmill.pipeline.explore.labels import Labels
from pairmill.pipeline.purge.effects import Effects
from pairmill.pipeline.purge.ledger import finish as finish_request
from pairmill.pipeline.purge.ledger import merge_parts, write_request
from pairmill.pipeline.score.kind import ScoreError
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import PlanError
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.index import IndexPart
from pairmill.schemas.manifest import DataFile, Shard
from pairmill.schemas.mixture import MixJob, MixSource
from pairmill.schemas.purge import ExportNote, Purged
from pairmill.schemas.subset import SelectJob
from tests.synthetic_dataset import write_plan
from tests.unit.scores.embedded import add, unit_vectors, write_embedded
from tests.unit.select.added import add_columns
from tests.unit.test_commit import in_flight, writer

NUM_SHARDS = 2
Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "PNG")
PNG = file.getvalue()


def write_with_pictures(folder: Path) -> None:
    """Write a finished dataset of two shards with one pair and one reject each, and with an added model."""
    shards = [Shard(number, "in.parquet", 2 * number, 2, "f") for number in range(NUM_SHARDS)]
    for shard in shards:
        batch = in_flight(["ok", "timeout"], [True, False])
        row_ids = pa.array([f"{shard.shard}:{row}" for row in range(2)])
        at = batch.table.schema.get_field_index("row_id")
        table = batch.table.set_column(at, batch.table.schema.field("row_id"), row_ids)
        at = table.schema.get_field_index("image")
        table = table.set_column(
            at, table.schema.field("image"), pa.array([PNG, None], table.schema.field("image").type)
        )
        writer(folder).commit(replace(batch, info=replace(batch.info, shard=shard), table=table))
    store = Store(str(folder))
    write_plan(store, shards, 2 * NUM_SHARDS, "pairs")
    store.create(SIZES_NAME, sizes_table({f"{shard.name}.tar": 1 for shard in shards}))
    add_columns(folder, "other", range(NUM_SHARDS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_with_pictures(folder)
    assert verify(Store(str(folder)), rescore=0).problems == []
    return folder


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, which a test may damage."""
    return shutil.copytree(whole, tmp_path / "out")


FOREIGN = [
    b"",
    b"{",
    b"\xff",
    b"[]",
    b"null",
    b'"text"',
    b'{"name": "somebody else\'s"}',
    b'{"shard": 5, "schema_version": 1}',
]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", ["000000001.json", "000000005.json", "000000001.g3.json"])
def test_verify_advises_moving_a_foreign_manifest_never_deleting_it(dataset: Path, name: str, content: bytes) -> None:
    (dataset / "manifests" / name).write_bytes(content)
    done = CliRunner().invoke(app, ["verify", str(dataset), "--rescore", "0"])
    assert done.exit_code == 1
    (problem,) = [line for line in done.stderr.splitlines() if line.startswith("problem:")]
    assert f"manifests/{name} is" in problem
    assert "not pairmill's" in problem
    assert "move it elsewhere" in problem
    assert "delete" not in done.output
    assert "remove" not in done.output
    is_planned = not name.startswith("000000005")
    assert ("move these files out of" in done.stderr) == is_planned  # a build rebuilds only planned shards


def test_a_manifest_of_a_shard_beyond_the_plan_belongs_to_another_dataset(dataset: Path) -> None:
    text = (dataset / "manifests/000000001.json").read_text().replace('"shard": 1', '"shard": 5')
    (dataset / "manifests/000000005.json").write_text(text)
    report = verify(Store(str(dataset)), rescore=0)
    assert report.problems == [
        "manifests/000000005.json belongs to another dataset: its shard is not in the plan; move it and its files "
        "elsewhere"
    ]
    assert (report.damaged, report.shards) == ([], NUM_SHARDS)


def test_verify_does_not_advise_rebuilding_an_output_of_a_newer_pairmill(dataset: Path) -> None:
    path = dataset / "manifests/000000001.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    report = verify(Store(str(dataset)), rescore=0)
    assert [problem.partition("was written")[2] for problem in report.problems] == [
        " by a newer pairmill; update to read it"
    ]
    assert report.damaged == []


def cut(path: Path) -> None:
    os.truncate(path, min(40, path.stat().st_size // 2))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("manifests/000000001.json", lambda path, content=content: path.write_bytes(content)) for content in FOREIGN),
        ("manifests/000000001.json", cut),
        ("000000001.parquet", Path.unlink),
        ("000000001.parquet", cut),
        ("000000001.parquet", lambda path: shutil.copy(path.with_name("000000000.parquet"), path)),
    ],
)
def test_damaged_columns_are_one_problem_with_a_remedy_that_works(
    dataset: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(dataset / "columns/other" / name)
    report = verify(Store(str(dataset)), rescore=0)
    (problem,) = report.problems
    assert f"columns/other/{name}" in problem
    assert re.search("manifests/000000001.json.* elsewhere and run: ", problem)
    assert problem.endswith(f"run: pairmill embed {dataset} --add-model ViT-B-16:openai --alias other")
    assert report.damaged == []  # rebuilding the shard would not help
    (dataset / "columns/other/manifests/000000001.json").unlink()
    add_columns(dataset, "other", [1])
    assert verify(Store(str(dataset)), rescore=0).holds


def test_the_remedy_for_a_shard_includes_the_records_of_its_added_columns(dataset: Path) -> None:
    """Otherwise, they would belong to the pairs before the rebuild, and every reader of columns would fail."""
    cut(dataset / "pairs/000000001.parquet")
    report = verify(Store(str(dataset)), rescore=0)
    assert report.damaged == [f"{folder}manifests/000000001.json" for folder in ("", "columns/other/")]


@pytest.mark.parametrize("footer", ["[" * 100_000, "[]", '{"models": [{"alias": "m"}]}', '{"schema_version": "x"}'])
def test_a_footer_that_pairmill_did_not_write_is_damage_of_its_file(tmp_path: Path, footer: str) -> None:
    pq.write_table(pa.table({"uid": ["a"]}).replace_schema_metadata({"pairmill": footer}), tmp_path / "a.parquet")
    with pytest.raises(DamagedFileError, match=r"a\.parquet is damaged: pairmill did not write its footer"):
        read_footer(Store(str(tmp_path)), "a.parquet")


@pytest.mark.parametrize("content", FOREIGN)
def test_every_reader_of_added_columns_names_the_damaged_record(dataset: Path, content: bytes) -> None:
    (dataset / "columns/other/manifests/000000001.json").write_bytes(content)
    (dataset / "columns/other/model.json").write_bytes(content)
    store = Store(str(dataset))
    with pytest.raises(DamagedManifestError, match=r"manifests/000000001.json is damaged .* run: pairmill verify .*$"):
        describe(store, [(1, 0)], ["other"])
    with pytest.raises(
        PairmillError,
        match=r"other/model.json is damaged .*; move it elsewhere and run: pairmill embed .* --dtype float32$",
    ):
        read_card(store, "other")


def test_a_damaged_search_index_is_a_problem_but_no_shard_is_rebuilt(dataset: Path) -> None:
    store, name = Store(str(dataset)), "index/other-image/000000000.a.b.faiss"
    store.create(name, b"vectors")
    digest, num_bytes = store.checksum(name)
    file = DataFile(path=name, num_bytes=num_bytes, blake2b=digest)
    part = IndexPart(shards=[], dim=2, lists=1, file=file, seconds=0, versions={})
    store.create("index/other-image/manifests/000000000.a.json", part.model_dump_json().encode())
    assert verify(store, rescore=0).problems == []
    (dataset / name).write_bytes(b"Vectors")
    report = verify(store, rescore=0)
    assert report.problems == [
        f"{name} has changed since it was committed: its checksum differs; delete it and run "
        f"`pairmill index {dataset} --model other` again"
    ]
    assert report.damaged == []


@pytest.fixture(scope="module")
def furnished(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset with every kind of file that can stand beside the shards."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("furnished") / "out")
    store = Store(str(folder))
    select(SelectJob(dataset=str(folder), name="all"))
    Labels(store, "mine").put("0" * 32, True)
    note_export(store, ExportNote(output="/elsewhere", subset="all", format="parquet"))
    number = write_request(store, {"host": {"gone.example"}}, "asked for")
    Effects(store, number).note(failures=1)
    finish_request(store, number, merge_parts(store, number))
    pairmill.score(folder, "words", score="captions: {measures: [words]}")
    assert verify(store, rescore=0).problems == []
    return folder


PARSED = lru_cache(yaml.safe_load)


@pytest.fixture(autouse=True)
def job_files_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML takes as long for a job.yaml as all other checks of such a small dataset."""
    monkeypatch.setattr(yaml, "safe_load", PARSED)


MARKS = r"manifests/.*|labels/.*|exports/.*|.*\.purged\.json"
"""A folder without this file looks as if the command had not been run, or not to the end."""
FIRST_DIGIT = re.compile(rb"[0-8]")


def nest(path: Path) -> None:
    """Nest deeper than the parser allows. PyYAML allows less than json does, and takes a second for 10,000 levels."""
    path.write_text("[" * (1_000 if path.suffix == ".yaml" else 100_000))


def flip(path: Path) -> None:
    """Change a digit, which leaves valid JSON with valid types."""
    if path.suffix == ".json":
        path.write_bytes(FIRST_DIGIT.sub(lambda digit: bytes([digit[0][0] ^ 1]), path.read_bytes(), count=1))


@pytest.mark.parametrize(
    ("damage", "unnoticed"),
    [(cut, ""), (nest, ""), (Path.unlink, MARKS), (flip, r"manifests/.*")],
)
def test_verify_notices_each_damaged_or_missing_file(
    furnished: Path, damage: Callable[[Path], object], unnoticed: str
) -> None:
    store, missed = Store(str(furnished)), []
    for path in sorted(path for path in furnished.rglob("*") if path.is_file()):
        content, name = path.read_bytes(), str(path.relative_to(furnished))
        damage(path)
        if path.exists() and path.read_bytes() == content:
            continue
        try:
            report = verify(store, rescore=0)
        except PlanError as error:
            assert name.startswith("plan/") and "restore it from a copy" in str(error), error
            report = VerifyReport(problems=[str(error)])
        if report.holds:
            missed.append(name)
        elif not unnoticed:
            assert any(path.name in problem for problem in report.problems), (name, report.problems)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert [name for name in missed if not re.fullmatch(unnoticed, name)] == []
    assert verify(store, rescore=0).holds


def follow(problem: str, folder: Path, path: Path, copy: bytes) -> None:
    """Do what the remedy says, word for word. `copy`: the content of the file before it was damaged."""
    remedy = problem.partition("; ")[2]
    restore = "restore it from a copy"
    if remedy == restore:
        path.write_bytes(copy)
    if moved := re.match(r"move (\S+) elsewhere", remedy.removeprefix(f"{restore}, or ")):
        (path if moved[1] == "it" else folder / moved[1]).rename(folder.parent / "moved")
    if lost := re.search(r"(\S+) has no selection\.json.* or delete the folder$", problem):
        shutil.rmtree(lost[1])
    for command in re.findall(r": pairmill (.*)$", remedy):
        CliRunner().invoke(app, shlex.split(command))
    if remedy.startswith("run the same build or embed again"):
        finish(store := Store(str(folder)), load_plan(store), {}, 0)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        "columns/words/score.json",
        "columns/words/manifests/000000001.json",
        "columns/words/state.*.safetensors",
        "exports/*.json",
        "images/sizes.json",
        "labels/mine.parquet",
        "plan/0.parquet",
        "subsets/all/selection.json",
        "withdrawn/000001.done.json",
        "withdrawn/000001.purged.json",
        "withdrawn/000001.rows.parquet",
    ],
)
def test_the_remedy_for_each_file_beside_the_shards_works_word_for_word(
    furnished: Path, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    folder = shutil.copytree(furnished, tmp_path / "out")
    (path,) = folder.glob(name)
    copy = path.read_bytes()
    damage(path)
    try:
        problems = verify(Store(str(folder)), rescore=0).problems
    except PlanError as error:
        problems = [str(error)]
    is_silent = damage is Path.unlink and re.fullmatch(MARKS, str(path.relative_to(folder)))
    is_same = path.exists() and path.read_bytes() == copy
    assert len(problems) == (0 if is_silent or is_same else 1)
    for problem in problems:
        follow(problem, folder, path, copy)
    report = CliRunner().invoke(app, ["verify", str(folder)])
    assert report.exit_code == 0, report.output


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("kind", ["rows", "shards"])
def test_a_lost_file_of_a_subset_or_mixture_is_named_with_a_remedy_that_works(
    furnished: Path, tmp_path: Path, kind: str, damage: Callable[[Path], object]
) -> None:
    subset = shutil.copytree(furnished, tmp_path / "out")
    mixture = tmp_path / "mix"
    mix(MixJob(output=str(mixture), sources=[MixSource(dataset=str(furnished), share=1)]))
    for folder, name, files in ((subset, " all", "subsets/all"), (mixture, "", "sources/000")):
        store, again = Store(str(folder)), f"select again: pairmill select {folder} --refresh{name}"
        assert verify(store, rescore=0).holds
        (path,) = (folder / files / kind).glob("*.parquet")
        damage(path)
        (problem,) = verify(store, rescore=0).problems
        assert f"{files}/{kind}/{path.name} " in problem
        assert problem.endswith(again)
        record = read_subset(store, "all") if name else read_mixture(store).sources[0].rows
        with pytest.raises(SubsetError, match=f"{re.escape(str(path))} is .*; {re.escape(again)}$"):
            list(read_rows(store, record) if kind == "rows" else read_shards(store, record))
        assert CliRunner().invoke(app, again.partition("pairmill ")[2].split()).exit_code == 0
        assert verify(store, rescore=0).holds


def test_a_stray_file_or_a_lost_or_damaged_record_of_a_mixture_is_named_with_a_remedy_that_works(
    furnished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mix"
    job = MixJob(output=str(folder), sources=[MixSource(dataset=str(furnished), share=1)])
    mix(job)
    stray, record = folder / "sources/001/rows/00000.parquet", folder / "mixture.json"
    stray.parent.mkdir(parents=True)
    stray.touch()
    (problem,) = verify(Store(str(folder))).problems
    assert problem.startswith(f"{stray} is not part of the mixture; ")
    intact = record.read_bytes()
    follow(problem.replace("if no `select` is running, ", ""), folder, stray, b"")
    assert record.read_bytes() == intact
    assert verify(Store(str(folder))).holds
    for damage in (cut, flip, Path.unlink):
        damage(record)
        (problem,) = verify(Store(str(folder))).problems
        assert problem.startswith(f"{record} is ")
        assert "mix again" in problem
        record.unlink(missing_ok=True)
        mix(job)
        assert verify(Store(str(folder))).holds


def test_a_score_whose_card_is_lost_is_not_mixed_with_another_score(furnished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(furnished, tmp_path / "out")
    (folder / "columns/words/score.json").unlink()
    with pytest.raises(ScoreError, match="columns/words has values of a different score, or their state is lost"):
        pairmill.score(folder, "words", score="captions: [words, characters]")
    assert not (folder / "columns/words/score.json").exists()
    assert len(list((folder / "columns/words").glob("state.*"))) == 1


def test_a_lost_card_is_restored_with_the_state_of_its_values_even_if_the_dataset_has_grown(tmp_path: Path) -> None:
    folder, images, texts = tmp_path / "out", unit_vectors(1, 40), unit_vectors(2, 40)
    write_embedded(folder, images[:20], texts[:20], 10, planned_rows=40)
    add(folder, "ranks", mix="rank(similarity)", partial=True)
    write_embedded(folder, images, texts, 10)
    grown = Path(shutil.copytree(folder, tmp_path / "grown"))
    pairmill.score(grown, "ranks")
    card = folder / "columns/ranks/score.json"
    content = card.read_bytes()
    card.unlink()
    (problem,) = verify(Store(str(folder)), rescore=0).problems
    follow(problem.replace(" has neither", "; has neither"), folder, card, b"")
    assert card.read_bytes() == content
    files = [sorted(path.name for path in (each / "columns/ranks").iterdir()) for each in (folder, grown)]
    assert files[0] == files[1]
    assert verify(Store(str(folder))).holds


def test_a_file_whose_record_is_lost_is_named_and_gone_after_following_the_advice(
    furnished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(furnished, tmp_path / "out")
    strays = [folder / f"columns/{name}" for name in ("words/state.{}.safetensors", "none/state.{}.safetensors")]
    strays = [Path(str(stray).format("0" * 32)) for stray in strays]
    strays += [folder / "columns/none/000000000.parquet", folder / "index/b32-image/000000000.a.b.faiss"]
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(b"values")
    problems = verify(Store(str(folder)), rescore=0).problems
    assert len(problems) == len(strays)
    for stray in strays:
        (problem,) = [each for each in problems if str(stray.relative_to(folder)) in each]
        assert "delete it" in problem
        stray.unlink()
    assert verify(Store(str(folder)), rescore=0).holds


def test_a_score_that_lost_its_card_and_its_state_is_made_again_by_one_remedy(furnished: Path, tmp_path: Path) -> None:
    for damage in (cut, Path.unlink):
        folder = shutil.copytree(furnished, tmp_path / damage.__name__ / "out")
        card = folder / "columns/words/score.json"
        damage(card)
        next((folder / "columns/words").glob("state.*")).unlink()
        (problem,) = verify(Store(str(folder)), rescore=0).problems
        assert re.search("; move columns/words elsewhere and run: pairmill score ", problem), problem
        follow(problem, folder, card, b"")
        assert verify(Store(str(folder))).holds


def _with_footer(path: Path, footer: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row_id": ["0:0"]}).replace_schema_metadata({"pairmill": footer}), path)


def test_commands_are_made_only_from_valid_footers(tmp_path: Path) -> None:
    """Whoever can write to the folder could otherwise choose words that users paste into a shell."""
    store, folder = Store(str(tmp_path)), tmp_path / "columns/extra"
    model = {"name": "tiny", "pretrained": None, "dtype": "float32"}
    hostile = [
        "[" * 100_000,
        "[]",
        '{"models": [[]]}',
        json.dumps({"models": [{**model, "dtype": "float32 --help"}]}),
        json.dumps({"models": [{**model, "name": ["tiny"]}]}),
        json.dumps({"score": "extra", "settings": {"captions": {"measures": ["rm -r"]}}}),
        json.dumps({"score": "extra", "settings": [{}]}),
    ]
    for number, footer in enumerate(hostile):
        _with_footer(folder / f"{number}.parquet", footer)
    assert command_of(store, "extra").startswith("the `pairmill score` or")
    _with_footer(folder / "9.parquet", json.dumps({"models": [model]}))
    expected = f"pairmill embed {tmp_path} --add-model tiny --alias extra --dtype float32"
    assert command_of(store, "extra") == expected
    assert command_to_continue(store, "extra", "model") == expected  # the card has just been lost


def test_shards_without_records_of_their_columns_cost_no_more_requests(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other than the one for the record itself. Otherwise, the cost would be the square of the number of shards."""
    calls = Counter[str]()
    for name in ("list", "exists", "open_arrow"):
        method = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda *args, name=name, method=method: calls.update([name]) or method(*args))
    assert verify(Store(str(dataset)), rescore=0).holds
    intact = calls.copy()
    calls.clear()
    shutil.rmtree(dataset / "columns/other/manifests")
    assert len(verify(Store(str(dataset)), rescore=0).problems) == NUM_SHARDS
    assert calls <= intact


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_repeated_export_writes_a_part_with_a_lost_or_damaged_record_again(
    furnished: Path, tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(furnished, tmp_path / "out")
    record = tmp_path / "to/.pairmill/manifests/00000.json"
    assert pairmill.export(folder, "all", tmp_path / "to", format="parquet").written == 1
    content = record.read_bytes()
    damage(record)
    assert pairmill.export(folder, "all", tmp_path / "to", format="parquet").written == 1
    assert record.read_bytes() == content
    said = [] if damage is Path.unlink else [f"{record} is damaged; writing its part again"]
    assert [each.getMessage() for each in caplog.records] == said


def test_a_record_keeps_the_order_of_its_entries(tmp_path: Path) -> None:
    store, purged = Store(str(tmp_path)), Purged(scores={"b": "{}", "a": "{}"})  # `a` was made from `b`
    store.create("a", record_bytes(purged))
    assert list(read_record(store, "a", Purged, "").scores) == ["b", "a"]


@pytest.mark.parametrize(
    "change",
    [lambda data: data.decode().encode("utf-16"), lambda data: data.replace(b"{", b'{"subset": "x",', 1)],
    ids=["UTF-16", "repeated key"],
)
def test_a_record_in_another_form_than_it_is_written_in_is_damaged(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    note = ExportNote(output="/elsewhere", subset="all", format="parquet")
    (tmp_path / "a").write_bytes(change(record_bytes(note)))
    with pytest.raises(DamagedManifestError, match=r"a is damaged or not pairmill's; move it$"):
        read_record(Store(str(tmp_path)), "a", ExportNote, "move it")


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    store, note = Store(str(tmp_path)), ExportNote(output="/\N{SNOWMAN}", subset="all", format="parquet")
    data = record_bytes(note)
    store.create("a", data)
    assert read_record(store, "a", ExportNote, "") == note
    for byte, bit in product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[byte] ^= 1 << bit
        (tmp_path / "a").write_bytes(damaged)
        with suppress(DamagedManifestError):
            assert read_record(store, "a", ExportNote, "") == note  # only white space differs
            assert json.loads(damaged) == json.loads(data)


def test_a_lost_file_of_a_shard_is_named_with_a_remedy_by_every_reader(dataset: Path) -> None:
    select(SelectJob(dataset=str(dataset), name="all"))
    (dataset / "pairs/000000000.parquet").unlink()
    for command in (
        ["select", "--overwrite", f"{dataset}", "all"],
        ["export", f"{dataset}", "all", f"{dataset}/../new"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        message = done.stderr.splitlines()[-1]
        assert f"pairmill: {dataset}/pairs/000000000.parquet is missing; " in message
        assert f"run `pairmill verify {dataset}` to see" in message
