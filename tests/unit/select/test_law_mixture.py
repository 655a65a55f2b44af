"""Invariant of mixtures: a mixture has the requested shares, no repeated rows, and the same rows however its datasets
are divided into shards; export and the feed read the whole mixture once, evenly mixed."""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pairmill
from pairmill.jobs.export import ExportResult
from pairmill.jobs.export_mixture import export_any
from pairmill.jobs.mix import fields_of, mix
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.mixture import publish_mixture, read_mixture
from pairmill.pipeline.dataset.subset import SubsetError, read_rows
from pairmill.pipeline.export.order import SubsetShard, cut_mixture, group_shards
from pairmill.pipeline.feed import mixture_rows, pair_dataset
from pairmill.pipeline.feed.epoch_order import EpochOrder
from pairmill.pipeline.feed.mixture_rows import MixtureOrder
from pairmill.pipeline.feed.pair_dataset import FeedConfig, FeedError, PairDataset
from pairmill.pipeline.select.keys import SAMPLE, uid_hashes
from pairmill.pipeline.select.mixing import most_samples, samples_of
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.mixture import MixJob, MixSource, Mixture, source_names
from tests import picture_dataset
from tests.records import change, values_of
from tests.synthetic_dataset import default_columns, write_dataset
from tests.unit.select.conftest import DUCKDB, make_subset
from tests.unit.select.test_law_weights_feed import resumed

ROWS = {"a": 500, "b": 700, "c": 600}
SHARES = {"a": 0.5, "b:some": 0.3, "c": 0.2}


def write(folder: Path, shard_rows: int) -> Path:
    """Datasets a, b and c, which share uids and pictures; some pictures are missing, and b has a subset `some`."""
    for seed, (name, rows) in enumerate(ROWS.items()):
        made = default_columns(0, 0, rows, seed)
        gone = np.random.default_rng(seed).random(rows) < 0.1
        made["sha256"] = pa.array(made["sha256"].to_pylist(), pa.string(), mask=gone)
        made["uid"] = pa.array([f"{number % 7}{uid[1:]}" for number, uid in enumerate(made["uid"].to_pylist())])
        write_dataset(
            folder / name,
            rows,
            seed,
            shard_rows,
            lambda shard, first, count, seed, made=made: sliced(made, first, count),
        )
    make_subset(folder / "b", "some", {"where": "width > 300"})
    return folder


def sliced(columns: Mapping[str, pa.Array], first: int, count: int) -> dict[str, pa.Array]:
    return {name: column.slice(first, count) for name, column in columns.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mixture"), 150)


def mixed(folder: Path, name: str, shares: Mapping[str, float] = SHARES, **more: Any) -> Mixture:
    sources = [MixSource.parse(f"{folder}/{source}={share}") for source, share in shares.items()]
    return mix(MixJob(output=folder / name, sources=sources, **more), overwrite=True)


def uids(folder: Path, mixture: Mixture, name: str) -> list[set[str]]:
    """The uids that the files of the mixture list for each dataset."""
    tables = [list(read_rows(Store(str(folder / name)), source.rows)) for source in mixture.sources]
    found = [[uid for table in of_source for uid in table["uid"].to_pylist()] for of_source in tables]
    assert [len(each) for each in found] == [source.rows.rows_out for source in mixture.sources]
    return [set(each) for each in found]


def oracle(folder: Path, by: list[str]) -> list[list[str]]:
    """The uids of each dataset that are left after removing duplicates, computed in SQL."""
    DUCKDB.execute(
        "create or replace temp table every as "
        + " union all ".join(
            f"select {number} as source, '{name}' as name, uid, sha256, url, width, status, "
            f"row_number() over (order by filename, file_row_number) as row "
            f"from read_parquet('{folder}/{name}/pairs/*.parquet', filename = true, file_row_number = true)"
            for number, name in enumerate(ROWS)
        )
    )
    one_per_uid = (
        "create or replace temp table every as select * from every "
        "qualify row_number() over (partition by {} order by source, row) = 1"
    )
    DUCKDB.execute("delete from every where status <> 'ok'")
    DUCKDB.execute(one_per_uid.format("source, uid"))  # every selection begins with one row per uid
    DUCKDB.execute("delete from every where name = 'b' and width <= 300")
    DUCKDB.execute(one_per_uid.format("uid"))
    for column in by:
        DUCKDB.execute(
            f"create or replace temp table every as select * from every as one where {column} is null or not exists "
            f"(select 1 from every as other where other.{column} = one.{column} and other.source < one.source)"
        )
    found = DUCKDB.execute("select source, uid from every").fetchall()
    return [[uid for source, uid in found if source == number] for number in range(len(ROWS))]


@pytest.mark.parametrize("by", [[], ["sha256"], ["sha256", "url"]])
def test_the_first_dataset_keeps_a_shared_row_and_samples_are_drawn_by_uid_from_the_remaining_rows(
    folder: Path, by: list[str], many_chunks: None
) -> None:
    mixture = mixed(folder, "mix", dedup=by)
    left = oracle(folder, by)
    assert [source.rows.reports[-1].rows_in for source in mixture.sources] == [len(each) for each in left]
    total = min(len(each) / share for each, share in zip(left, SHARES.values(), strict=True))
    for found, source, of_source in zip(uids(folder, mixture, "mix"), mixture.sources, left, strict=True):
        assert abs(source.samples - total * source.share) < 1
        hashes = uid_hashes(pa.chunked_array([of_source]), SAMPLE, 0)
        assert found == {of_source[row] for row in np.argsort(hashes)[::-1][: source.samples].tolist()}


def test_neither_shard_sizes_nor_chunks_change_the_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uids(folder, mixed(folder, "mix"), "mix")
    other = write(tmp_path, 97)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 100)
    monkeypatch.setattr("pairmill.pipeline.select.steps.dedup.PARTITION_ROWS", 500)
    assert uids(other, mixed(other, "mix"), "mix") == expected


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
    st.lists(st.floats(0.001, 1_000), min_size=6, max_size=6),
    st.integers(0, 10**5),
)
def test_every_share_is_exact_to_within_one_row_and_never_falls_as_the_total_grows(
    rows: list[int], shares: list[float], total: int
) -> None:
    given_shares = shares[: len(rows)]
    exact = [Fraction(repr(share)) for share in given_shares]
    most = most_samples(rows, given_shares)
    for number in (most, total):
        found = samples_of(number, given_shares)
        for samples, share in zip(found, exact, strict=True):
            assert 0 <= number * share / sum(exact) - samples < 1
        following = samples_of(number + 1, given_shares)
        assert all(one <= other for one, other in zip(found, following, strict=True))
    assert all(samples <= available for samples, available in zip(samples_of(most, given_shares), rows, strict=True))
    assert any((most + 1) * share / sum(exact) > available for share, available in zip(exact, rows, strict=True))


def test_a_larger_mixture_contains_a_smaller_one_and_the_error_about_its_size_names_the_limit(folder: Path) -> None:
    small, large = (uids(folder, mixed(folder, "mix", count=count), "mix") for count in (100, 300))
    assert all(one < other for one, other in zip(small, large, strict=True))
    most = most_samples([len(each) for each in oracle(folder, ["sha256"])], list(SHARES.values()))
    mixed(folder, "mix", count=most)
    with pytest.raises(JobError, match=f"use at most {most:,}, or repeat rows"):
        mixed(folder, "mix", count=most + 10)
    with pytest.raises(JobError, match="less than one"):
        mixed(folder, "mix", count=2)


def test_the_rows_of_a_dataset_that_is_too_small_are_repeated_until_the_shares_are_right(folder: Path) -> None:
    mixture = mixed(folder, "repeated", count=4_000, repeat=True)
    assert [source.samples for source in mixture.sources] == [2_000, 1_200, 800]
    feed = PairDataset(FeedConfig(folder / "repeated", columns=("dataset",), batch_size=500))
    shown = np.zeros(3)
    for epoch in range(5):
        feed.set_epoch(epoch)
        counts = Counter(name for batch in feed for name in batch["dataset"])
        assert counts.total() == feed.num_rows
        shown += [counts[source.name] for source in mixture.sources]
    assert np.abs(shown - 5 * np.array([2_000, 1_200, 800])).max() < 6 * 0.5 * np.sqrt(800)


# The feed


@given(
    st.lists(st.integers(0, 30_000), min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_the_blocks_of_a_range_are_those_that_contain_its_positions(rows: list[int], one: int, other: int) -> None:
    """The oracle lists the start of every block."""
    order = MixtureOrder(False, tuple(EpochOrder(False, np.array([each]), True, 0, 1) for each in rows))
    starts = [sum(order.cuts(block)) for block in range(order.num_blocks + 1)]
    assert starts[0] == 0 and starts[-1] == sum(rows)
    for block in range(order.num_blocks):
        cuts = np.diff([order.cuts(block), order.cuts(block + 1)], axis=0)[0]
        assert (np.abs(cuts - np.array(rows) / order.num_blocks) < 1).all()
    low, high = sorted(number % (sum(rows) + 1) for number in (one, other))
    expected = [n for n in range(order.num_blocks) if max(low, starts[n]) < min(high, starts[n + 1])]
    assert list(order.blocks(range(low, high))) == expected


@pytest.fixture(scope="module")
def fed(folder: Path) -> Iterator[Path]:
    """Mixtures of 300 samples in small blocks: `fed`, and `fed_repeated` with repeated rows."""
    mixed(folder, "fed", count=300)
    mixed(folder, "fed_repeated", {"c": 0.9, "a": 0.1}, count=1_000, repeat=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture_rows, "BLOCK_ROWS", 64)
        yield folder


@settings(max_examples=max(1, settings.default.max_examples // 8))
@given(
    name=st.sampled_from(["fed", "fed_repeated"]),
    epoch=st.integers(0, 3),
    ranks=st.integers(1, 3),
    workers=st.integers(1, 3),
    size=st.integers(1, 90),
    mix_shards=st.integers(1, 4),
    more=st.fixed_dictionaries({"even": st.booleans(), "shuffle": st.booleans()}),
    stops=st.lists(st.integers(0, 3), max_size=2),
)
def test_all_consumers_together_show_every_row_wherever_each_was_stopped(
    fed: Path,
    name: str,
    epoch: int,
    ranks: int,
    workers: int,
    size: int,
    mix_shards: int,
    more: dict[str, bool],
    stops: list[int],
) -> None:
    """The oracle is a single consumer that is never stopped. It is itself compared with the files of the mixture."""
    alone = PairDataset(FeedConfig(fed / name, None, ()))
    alone.set_epoch(epoch)
    expected, seen = Counter(row["uid"] for row in alone), Counter[str]()
    assert set(expected) <= {uid for each in uids(fed, mixture_of(fed, name), name) for uid in each}
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            for worker in range(workers):
                info = SimpleNamespace(num_workers=workers, id=worker) if workers > 1 else None
                patch.setattr(pair_dataset, "get_worker_info", lambda info=info: info)
                places = {"rank": rank, "world_size": ranks, "batch_size": size, "mix_shards": mix_shards}
                seen.update(resumed(FeedConfig(str(fed / name), None, (), **places, **more), epoch, stops))
    assert not seen - expected
    assert (expected - seen).total() <= (ranks - 1 if more["even"] else 0)


def mixture_of(folder: Path, name: str) -> Mixture:
    return Mixture.model_validate(values_of(folder / name / "mixture.json"))


def test_an_epoch_has_every_row_once_and_every_block_has_the_right_shares(fed: Path) -> None:
    mixture = mixture_of(fed, "fed")
    feed, orders = PairDataset(FeedConfig(fed / "fed", columns=("dataset",))), []
    for epoch in range(2):
        feed.set_epoch(epoch)
        rows = list(feed)
        assert len(rows) == len(feed) == 300
        expected = zip(mixture.sources, uids(fed, mixture, "fed"), strict=True)
        assert {(row["dataset"], row["uid"]) for row in rows} == {(s.name, uid) for s, each in expected for uid in each}
        for start in range(0, 300, 75):  # four blocks
            counts = Counter(row["dataset"] for row in rows[start : start + 75])
            assert all(abs(counts[source.name] - 75 * source.share) <= 2 for source in mixture.sources)
        orders.append([row["uid"] for row in rows])
    assert orders[0] != orders[1]
    older, newer = iter(feed), iter(feed)
    assert [next(loop)["uid"] for loop in (older, newer)] == orders[1][:2]
    with pytest.raises(FeedError, match="ended when a newer loop"):
        next(older)


def test_missing_rows_are_an_error_rather_than_a_shorter_epoch() -> None:
    with pytest.raises(FeedError, match="2 rows of a dataset are missing"):
        list(mixture_rows._Stream(iter([pa.table({"uid": ["a"]})])).take(3))


def test_a_changed_dataset_is_refused_and_the_error_gives_the_command_to_mix_again(tmp_path: Path) -> None:
    folder = write(tmp_path, 300)
    mixed(folder, "mix")
    path = next((folder / "c/manifests").glob("*"))
    manifest = json.loads(path.read_text())
    manifest["files"]["pairs"]["blake2b"] = "0" * 32
    path.write_text(json.dumps(manifest))
    with pytest.raises(SubsetError, match=f"select {folder}/mix --refresh"):
        PairDataset(FeedConfig(folder / "mix", columns=()))
    again = MixJob.model_validate({"output": folder / "mix", **fields_of(Store(str(folder / "mix")))})
    files = set(folder.glob("mix/**/*.parquet"))
    mix(again, overwrite=True)
    assert len(list(PairDataset(FeedConfig(folder / "mix", columns=(), shuffle=False))._rows.schema)) > 5
    assert files.isdisjoint(folder.glob("mix/**/*.parquet"))  # the old files are gone


# With pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets a and b with pictures and embeddings, `other` with embeddings from other weights, and their mixtures.
    All datasets have their own column `dataset`."""
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_dataset, "EXTRA", picture_dataset.EXTRA.append(pa.field("dataset", pa.string())))
        picture_dataset.write(folder / "a", 160, None, seed=1, shard_rows=40)
        picture_dataset.write(folder / "b", 120, None, seed=2, shard_rows=50)
        contract = picture_dataset.CONTRACT
        patch.setattr(picture_dataset, "CONTRACT", type(contract)(**{**vars_of(contract), "weights_sha256": "f" * 64}))
        picture_dataset.write(folder / "other", 60, None, seed=3, shard_rows=60)
    mixed(folder, "mix", {"a": 0.6, "b": 0.4}, dedup=[])
    mixed(folder, "foreign", {"a": 0.6, "other": 0.4}, dedup=[])
    mixed(folder, "twice", {"a": 0.5, "b": 0.5}, dedup=[], count=400, repeat=True)
    return folder


def vars_of(contract: Any) -> dict[str, object]:
    return {name: getattr(contract, name) for name in contract.__dataclass_fields__}


def exported(folder: Path, name: str, output: str, **more: Any) -> ExportResult:
    job = {"dataset": folder / name, "output": folder / output, "samples_per_file": 50, **more}
    return export_any(ExportJob.model_validate(job))


def samples(folder: Path) -> list[dict[str, dict[str, bytes]]]:
    """The samples of each tar: key -> extension -> bytes."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        of_tar: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                of_tar.setdefault(key, {})[ending] = file.read()
        found.append(of_tar)
    return found


def test_tars_have_all_recorded_rows_with_their_pictures_and_every_tar_has_the_right_shares(pictures: Path) -> None:
    mixture = mixture_of(pictures, "mix")
    result = exported(pictures, "mix", "tars", carry="all")
    assert result.columns_left_out == {"dataset": "a mixture has its own column with this name"}
    tars = samples(pictures / "tars")
    every = {key: sample for tar in tars for key, sample in tar.items()}
    expected = uids(pictures, mixture, "mix")
    assert sum(map(len, tars)) == result.record.rows == mixture.num_samples
    assert set(every) == expected[0] | expected[1]
    assert all(len(tar) <= 50 for tar in tars)
    fed = {row["uid"]: row for row in PairDataset(FeedConfig(pictures / "mix", columns=("image", "dataset", "sha256")))}
    for number, name in enumerate("ab"):
        assert {uid for uid in every if json.loads(every[uid]["json"])["dataset"] == name} == expected[number]
        per_tar = [sum(json.loads(sample["json"])["dataset"] == name for sample in tar.values()) for tar in tars]
        assert max(per_tar) - min(per_tar) <= 1
    for uid, sample in every.items():
        assert sample["jpg"] == fed[uid]["image"]
        assert json.loads(sample["json"])["sha256"] == fed[uid]["sha256"]
        assert "language" in json.loads(sample["json"])
        assert json.loads(sample["json"])["dataset"] == fed[uid]["dataset"]
    in_order = [json.loads(sample["json"])["dataset"] for sample in tars[0].values()]
    assert sum(one != other for one, other in pairwise(in_order)) > 5
    assert exported(pictures, "mix", "tars", carry="all").written == 0  # the second run finds all files


def test_an_unshuffled_parquet_export_has_all_rows_of_one_dataset_before_those_of_the_next(pictures: Path) -> None:
    exported(pictures, "mix", "parquet", format="parquet", shuffle_seed=None)
    table = pq.read_table(pictures / "parquet")
    expected = uids(pictures, mixture_of(pictures, "mix"), "mix")
    assert table["dataset"].to_pylist() == ["a"] * len(expected[0]) + ["b"] * len(expected[1])
    assert set(table["uid"].to_pylist()) == expected[0] | expected[1]
    assert "image_embedding_clip_b32" not in table.column_names


def test_an_export_repeats_rows_as_often_as_the_first_epoch_shows_them(pictures: Path) -> None:
    exported(pictures, "twice", "copies")
    shown = Counter(row["uid"] for row in PairDataset(FeedConfig(pictures / "twice", columns=())))
    keys = Counter(key.partition("-")[0] for tar in samples(pictures / "copies") for key in tar)
    assert keys == shown
    exported(pictures, "twice", "weights", format="parquet")
    table = pq.read_table(pictures / "weights")
    per_source = {name: table.filter(pa.compute.equal(table["dataset"], name)) for name in "ab"}
    for rows in per_source.values():
        assert sum(rows["weight"].to_pylist()) == pytest.approx(200, rel=1e-6)


def test_embeddings_from_different_weights_are_left_out_or_refused_if_requested(pictures: Path) -> None:
    columns = ("image_embedding_clip_b32", "dataset")
    vectors = {row["uid"]: row[columns[0]] for row in PairDataset(FeedConfig(pictures / "mix", columns=columns))}
    for name in "ab":
        own = pq.read_table(pictures / name / "pairs", columns=["uid", columns[0]])
        for uid, vector in zip(own["uid"].to_pylist(), own[columns[0]].to_pylist(), strict=True):
            if uid in vectors:
                assert np.array_equal(vectors[uid].numpy(), np.asarray(vector, np.float16))
    with pytest.raises(FeedError, match="a and other have it from different models"):
        PairDataset(FeedConfig(pictures / "foreign", columns=columns))
    result = exported(pictures, "foreign", "foreign_tars")
    assert set(result.columns_left_out) == {"similarity_clip_b32"}
    assert "similarity_clip_b32" not in json.loads(next(iter(samples(pictures / "foreign_tars")[0].values()))["json"])


def test_an_impossible_mixture_is_refused_before_anything_is_written(pictures: Path, folder: Path) -> None:
    for more, message in (
        ({"format": "datacomp"}, "webdataset or parquet, not as datacomp"),
        ({"subset": "some"}, "has no subsets"),
        ({"caption": "best"}, "original captions"),
        ({"carry": ["nothing"]}, "carry: no carried column 'nothing'"),
    ):
        with pytest.raises(JobError, match=message):
            exported(pictures, "mix", "refused", **more)
    assert not (pictures / "refused").exists()
    with pytest.raises(FeedError, match="has no subsets"):
        PairDataset(FeedConfig(pictures / "mix", "some"))
    mixed(folder, "plain", count=20)
    with pytest.raises(JobError, match="is itself a mixture"):
        mixed(folder, "again", {"plain": 1.0})
    with pytest.raises(JobError, match="stored no pictures"):
        exported(folder, "plain", "refused")
    make_subset(folder / "a", "weighted", {"repeat": {"by": "width", "samples": 100}})
    with pytest.raises(JobError, match="has weights"):
        mixed(folder, "again", {"a:weighted": 1.0})
    with pytest.raises(JobError, match="not empty and is not pairmill's"):
        mixed(folder, "a/pairs", {"b": 1.0})
    with pytest.raises(JobError, match="a is a dataset; use a new or empty folder"):
        mixed(folder, "a", {"b": 1.0})
    make_subset(folder / "a", "none", {"where": "width > 0"})
    for path in (folder / "a/subsets/none").rglob("*.json"):
        change(path, rows_out=0)
    with pytest.raises(JobError, match="the subset 'none' has no rows left"):
        exported(folder, "a", "refused", subset="none")
    with pytest.raises(JobError, match=r"share: Input should be greater than 0 \(got 'a=-1'\)"):
        pairmill.mix(folder / "again", ["a=-1"])
    assert not (folder / "again").exists()


# The folder


def test_after_a_mix_the_folder_has_exactly_the_recorded_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("pairmill.jobs.mix.publish_mixture", Mock(side_effect=KeyboardInterrupt))
        mixed(folder, "clean")
    assert list((folder / "clean/sources").rglob("*.parquet"))
    for shares in (SHARES, {"a": 1.0, "b": 1.0}):
        files = [each for source in mixed(folder, "clean", shares).sources for each in source.rows.files]
        named = {file.path for each in files for file in (each.rows, each.shards)}
        there = {str(path.relative_to(folder / "clean")) for path in (folder / "clean").rglob("*") if path.is_file()}
        assert there == named | {"mixture.json"}
    replaced = read_mixture(Store(str(folder / "clean")))
    new = mixed(folder, "clean", SHARES)
    assert not publish_mixture(Store(str(folder / "clean")), replaced, replaced)  # another run has published first
    assert read_mixture(Store(str(folder / "clean"))) == new


# Sources and names


def test_a_source_is_a_path_with_a_subset_and_a_share() -> None:
    found = MixSource.parse("s3://bucket/out:clean=0.7")
    assert (found.dataset, found.subset, found.share) == ("s3://bucket/out", "clean", 0.7)
    assert MixSource.parse("s3://bucket/out=3").subset is None
    assert MixSource.parse("a=b/out=3").dataset == "a=b/out"
    for wrong in ("out", "out=", "=3", "out=much", "out:clean", "out=0", "out=-1", "out=inf", "out=nan"):
        with pytest.raises(ValueError):
            MixSource.parse(wrong)


@pytest.mark.parametrize(
    ("given_sources", "names"),
    [
        (["x/a=1", "y/b=1"], ["a", "b"]),
        (["x/a:one=1", "x/a:two=1"], ["a:one", "a:two"]),
        (["x/a=1", "y/a/=1"], ["x/a", "y/a/"]),
        (["x/a:one=1", "b:one=1"], ["a", "b"]),
    ],
)
def test_source_names_are_as_short_as_possible(given_sources: list[str], names: list[str]) -> None:
    assert source_names([MixSource.parse(each) for each in given_sources]) == names


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=50), min_size=1, max_size=4), st.integers(4, 200))
def test_parts_of_an_export_have_every_row_once_and_equal_shares(shards: list[list[int]], per_part: int) -> None:
    groups = [
        group_shards([SubsetShard(number, 0, "", rows, "") for number, rows in enumerate(each)], 0, 0, source)
        for source, each in enumerate(shards)
    ]
    parts = list(cut_mixture(groups, per_part))
    seen, lengths = Counter[tuple[int, int]](), np.zeros((len(parts), len(shards)), np.int64)
    for number, part in enumerate(parts):
        for each in part:
            seen.update((each.group.source, each.group.start + row) for row in range(each.start, each.end))
            lengths[number, each.group.source] += each.end - each.start
    assert (lengths.max(axis=0) - lengths.min(axis=0) <= 1).all()
    assert 0 < lengths.sum(axis=1).min() <= lengths.sum(axis=1).max() <= per_part
    assert seen == Counter((source, row) for source, each in enumerate(shards) for row in range(sum(each)))
