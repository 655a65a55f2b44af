"""Tests the step `leak` on photographs. The oracles are a brute-force search and the hashes of real crops."""

import hashlib
import io
import shutil
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pairmill
from pairmill.jobs.select import refresh
from pairmill.pipeline.image.pdq import pdq
from pairmill.pipeline.image.phash import phash, phash_of_luma
from pairmill.pipeline.leak.evaluation_set import hash_entry
from pairmill.pipeline.leak.notes import leak_notes
from pairmill.pipeline.leak.step import _parts
from pairmill.pipeline.leak.variants import CROPS, VARIANTS, is_plain, variant_hashes
from pairmill.schemas.errors import JobError
from pairmill.schemas.leak import LeakKind, LeakPair
from pairmill.schemas.manifest import Shard
from pairmill.schemas.select_steps import SelectStep
from pairmill.schemas.subset import SelectJob, Subset
from tests import picture_dataset
from tests.embedded_dataset import add_embeddings
from tests.synthetic_dataset import default_columns, write_dataset
from tests.unit.select.conftest import make_subset, row_ids

PAIRS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "pairs"
ITEMS, ROWS = 24, 300
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset in several shards that stores photographs."""
    folder = tmp_path_factory.mktemp("evaluation")
    picture_dataset.write(folder, ITEMS, PAIRS, shard_rows=11)
    return folder


def items_of(folder: Path) -> list[dict[str, object]]:
    """The pairs of the evaluation set with their pixels, in order."""
    found = []
    for path in sorted(folder.glob("pairs/*.parquet")):
        for row in pq.ParquetFile(path).read(["uid", "row_id", "sha256", *STORED]).to_pylist():
            body = (folder / row["image_tar"]).read_bytes()[row["image_offset"] :][: row["image_length"]]
            found.append({**row, "pixels": np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))})
    return found


STORED = ["image_tar", "image_offset", "image_length"]


def gray(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


def changed(pixels: Pixels, how: int) -> Pixels:
    """A copy of the picture: unchanged (0), mirrored (1), cropped (2) or both (3)."""
    height, width = pixels.shape[:2]
    if how >= 2:
        pixels = pixels[height // 20 : height // 20 + round(0.89 * height), : round(0.89 * width)]
    return np.ascontiguousarray(pixels[:, ::-1] if how % 2 else pixels)


def write_training(folder: Path, evaluation: Path, order: list[int], shard_rows: int = 90) -> Path:
    """Write a dataset with copies of the evaluation pictures among rows with random hashes. `order` permutes rows."""
    items, rng = items_of(evaluation), np.random.default_rng(3)
    columns = default_columns(0, 0, ROWS, 1)
    columns["uid"] = pa.array([f"{row:032x}" for row in range(ROWS)])
    columns["status"] = pa.array(["ok"] * ROWS)
    hashes = [f"{int(each):016x}" for each in rng.integers(0, 2**64, ROWS, np.uint64)]
    long = [rng.bytes(32).hex() for _ in range(ROWS)]
    sha256 = [hashlib.sha256(b"row %d" % row).hexdigest() for row in range(ROWS)]
    for number, item in enumerate(items):
        for how in range(4):
            copy = changed(item["pixels"], how)
            hashes[8 * number + how], long[8 * number + how] = phash(copy), pdq(gray(copy)).digits
    sha256[250], sha256[251] = items[0]["sha256"], items[1]["sha256"]
    long[252:254] = ["", "no hash"]
    quality = [20 if 254 <= row < 257 else 80 for row in range(ROWS)]
    columns |= {"phash": pa.array([*hashes[:-1], None]), "sha256": pa.array(sha256), "pdq": pa.array(long)}
    columns["pdq_quality"] = pa.array(quality, pa.uint8())
    whole = {name: column.take(pa.array(order)) for name, column in columns.items()}

    def of_shard(shard: int, first: int, rows: int, seed: int) -> dict[str, pa.Array]:
        return {name: column.slice(first, rows) for name, column in whole.items()}

    write_dataset(folder, ROWS, shard_rows=shard_rows, columns=of_shard)
    return folder


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, evaluation: Path) -> Path:
    return write_training(tmp_path_factory.mktemp("training"), evaluation, list(range(ROWS)))


def overlap_of(dataset: Path, subset: Subset) -> list[dict[str, object]]:
    (file,) = subset.overlaps
    return list(pq.ParquetFile(dataset / file.path).read().to_pylist())


def expected_overlap(evaluation: Path, training: Path, limits: dict[LeakKind, int]) -> list[dict[str, object]]:
    """The overlap by brute force: every row against every hash of every picture."""
    table = pa.concat_tables([pq.ParquetFile(each).read() for each in sorted(training.glob("pairs/*.parquet"))])
    rows = table.select(["uid", "sha256", *limits]).to_pylist()
    digits = {"phash": 16, "pdq": 64}
    hashed = {kind: [row for row in rows if len(row[kind] or "") == digits[kind]] for kind in limits}
    hashes = {
        kind: np.array([np.frombuffer(bytes.fromhex(row[kind]), ">u8") for row in hashed[kind]], np.uint64)
        for kind in limits
    }
    found = []
    for item in items_of(evaluation):
        named = {"item_uid": item["uid"], "item_row_id": item["row_id"]}
        same = sorted(row["uid"] for row in rows if row["sha256"] == item["sha256"])
        if same:
            way = {"by": "sha256", "variant": "same", "distance": None, "cosine": None}
            found.append(named | way | {"rows": len(same), "uid": same[0]})
        if is_plain(gray(item["pixels"])):
            continue
        for variant in VARIANTS:
            for kind, limit in limits.items():
                words, _ = variant_hashes(gray(item["pixels"]), kind, [variant])
                bits = np.bitwise_count(hashes[kind][:, None] ^ words).sum(axis=2).min(axis=1)
                near = [(int(bits[at]), hashed[kind][at]["uid"]) for at in np.flatnonzero(bits <= limit)]
                if near:
                    way = {"by": kind, "variant": variant, "distance": min(near)[0], "cosine": None}
                    found.append(named | way | {"rows": len(near), "uid": min(near)[1]})
    return found


def uids_of(dataset: Path, name: str) -> set[str]:
    rows = {row["row_id"]: row["uid"] for path in dataset.glob("pairs/*.parquet")
            for row in pq.ParquetFile(path).read(["row_id", "uid"]).to_pylist()}  # fmt: skip
    return {rows[row_id] for row_id in row_ids(dataset, name)}


@pytest.mark.parametrize("by", ["phash", "pdq"])
def test_the_overlap_equals_brute_force(
    evaluation: Path, training: Path, by: LeakKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 100)
    monkeypatch.setattr("pairmill.pipeline.leak.step.MAX_ENTRIES", 1_000)  # so that several scans are needed
    limit = {"phash": 6, "pdq": 31}[by]
    subset = make_subset(training, f"by_{by}", {"leak": {"against": str(evaluation), "by": ["sha256", by]}})
    expected = expected_overlap(evaluation, training, {by: limit})
    found = overlap_of(training, subset)
    assert [each | {"cosine": None} for each in found] == expected
    report = subset.reports[2].leak
    assert report is not None and report.items == len(items_of(evaluation))
    assert report.not_compared == {"phash": {}, "pdq": {"pdq": 2 + 3}}[by]
    assert report.items_hit == len({each["item_uid"] for each in expected}) > 10
    assert sum(each.rows for each in report.found) == subset.reports[2].rows_in - subset.reports[2].rows_out
    ways = defaultdict[tuple[str, str], int](int)
    for each in expected:
        ways[each["by"], each["variant"]] += 1
    assert {(each.by, each.variant): each.items for each in report.found} == ways
    assert len(ways) == 5, "all variants occur"
    assert not (training / "tmp").exists()


def test_the_overlap_does_not_depend_on_row_order_or_shards(tmp_path: Path, evaluation: Path, training: Path) -> None:
    order = np.random.default_rng(8).permutation(ROWS).tolist()
    other = write_training(tmp_path, evaluation, order, shard_rows=17)
    step = {"leak": str(evaluation)}
    one, two = make_subset(training, "one", step), make_subset(other, "one", step)
    assert overlap_of(training, one) == overlap_of(other, two)
    assert uids_of(training, "one") == uids_of(other, "one")
    planted = {f"{8 * number + how:032x}" for number in range(len(items_of(evaluation))) for how in range(4)}
    kept = uids_of(training, "one")
    plain = sum(is_plain(gray(each["pixels"])) for each in items_of(evaluation))
    assert len(planted & kept) <= 4 * plain + 4
    assert len(kept - planted) == ROWS - len(planted) - 2  # two rows with the SHA-256 of an evaluation picture
    leaks = [subset.reports[2].leak for subset in (one, two)]
    assert leaks[0] and leaks[1] and leaks[0].found == leaks[1].found and leaks[0].blake2b == leaks[1].blake2b


def test_captions_of_a_picture_count_once_and_rejects_are_compared_by_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 0 to 9 are captions of three pictures, in two shards. Rows 10 to 15 are rejects: a picture of which only the
    SHA-256 is known, the URL of a pair, and three dead links, one of which two rows share."""
    of_picture = [0, 0, 0, 1, 1, 2, 2, 2, 0, 1, 10, 11, 12, 13, 13, 15]
    sha256 = [hashlib.sha256(b"picture %d" % number).hexdigest() for number in of_picture]
    make = picture_dataset._shard

    def captions(world: picture_dataset.World, shard: Shard) -> pa.Table:
        table = make(world, shard)
        first = table.take(pa.array([each % 6 for each in of_picture]))
        is_pair = [row < 10 for row in range(16)]
        changed = {
            "sha256": pa.array([each if row < 11 else None for row, each in enumerate(sha256)]),
            "url": pa.array(
                [f"https://a.example/{number if row != 11 else 2}" for row, number in enumerate(of_picture)]
            ),
            "is_pair": pa.array(is_pair),
            "status": pa.array(["ok" if each else "not_an_image" for each in is_pair]),
            "image": pa.array([each if row < 10 else None for row, each in enumerate(first["image"].to_pylist())]),
        }
        start = shard.first_row
        changed = {name: changed[name][start : start + shard.num_rows] for name in changed}
        for name, values in changed.items():
            field = table.schema.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, values.cast(field.type))
        return table

    monkeypatch.setattr(picture_dataset, "_shard", captions)
    evaluation, training = tmp_path / "evaluation", tmp_path / "training"
    picture_dataset.write(evaluation, 16, PAIRS, shard_rows=8)

    def row(shard: int, first: int, rows: int, seed: int) -> dict[str, pa.Array]:
        kept = {"status": pa.array(["ok"] * rows), "sha256": pa.array([sha256[0], sha256[10], sha256[12]])}
        return default_columns(shard, first, rows, seed) | kept

    write_dataset(training, 3, columns=row)
    subset = make_subset(training, "a", {"leak": str(evaluation)})
    leak = subset.reports[2].leak
    assert leak is not None
    assert (leak.items, leak.items_hit, leak.rejected_items, leak.missing_items) == (4, 2, 1, 3)
    assert [each.items for each in leak.found] == [2] and leak.hashes["phash"] == (3 - leak.plain_items) * 240
    found = [each["item_row_id"] for each in overlap_of(training, subset)]
    assert found == ["0:0", "0:1", "0:2", "1:0", "1:2"], "all rows of the pictures found"
    kept = make_subset(training, "b", {"leak": {"against": str(evaluation), "rows": "kept"}}).reports[2].leak
    assert kept is not None and (kept.items, kept.rejected_items, kept.missing_items) == (3, 0, 0)
    by_phash = make_subset(training, "c", {"leak": {"against": str(evaluation), "by": "phash"}}).reports[2].leak
    assert by_phash is not None and (by_phash.items, by_phash.missing_items) == (3, 4)
    notes = leak_notes(by_phash)
    assert "4 rejected pictures of the evaluation set not compared" in notes and "only `by: embedding`" in notes[-1]


def test_mirrored_and_cropped_copies_stay_if_variants_are_off(evaluation: Path, training: Path) -> None:
    subset = make_subset(training, "same", {"leak": {"against": str(evaluation), "by": "phash", "variants": []}})
    assert {each["variant"] for each in overlap_of(training, subset)} == {"same"}


def test_the_nearest_pairs_are_named_and_a_refresh_gives_the_same_report(evaluation: Path, training: Path) -> None:
    subset = make_subset(training, "again", {"leak": str(evaluation)})
    report = subset.reports[2].leak
    assert report is not None and report.earlier_blake2b is None
    exact = [each for each in report.nearest if each.by == "sha256"]
    first = items_of(evaluation)[0]
    assert isinstance(exact[0], LeakPair) and exact[0].item_uid == first["uid"] and exact[0].distance is None
    assert max(each.distance or 0 for each in report.nearest) <= 6
    again = refresh(SelectJob(dataset=str(training), name="again")).reports[2].leak
    assert again == report
    assert len(list((training / "subsets/again/overlaps").iterdir())) == 1


def test_embeddings_are_compared_with_those_from_the_same_weights(tmp_path: Path, evaluation: Path) -> None:
    other = tmp_path / "other"
    picture_dataset.write(other, 60, PAIRS, shard_rows=11)  # the first two shards equal the evaluation set's
    subset = make_subset(other, "some", {"leak": {"against": str(evaluation), "by": "embedding", "threshold": 0.5}})
    vectors = []
    for folder in (evaluation, other):
        tables = [pq.ParquetFile(each).read() for each in sorted(folder.glob("pairs/*.parquet"))]
        table = pa.concat_tables(tables)
        values = np.stack(table["image_embedding_clip_b32"].to_numpy()).astype(np.float64)
        vectors.append((table["uid"].to_pylist(), values / np.linalg.norm(values, axis=1, keepdims=True),
                        table["status"].to_pylist()))  # fmt: skip
    (items, theirs, _), (uids, mine, status) = vectors
    cosines = theirs @ mine[[each == "ok" for each in status]].T
    kept = [uid for uid, each in zip(uids, status, strict=True) if each == "ok"]
    near = {
        item: (row.max(), kept[int(row.argmax())], int((row >= 0.5).sum()))
        for item, row in zip(items, cosines, strict=True)
    }
    expected = {item: each for item, each in near.items() if each[0] >= 0.5}
    found = {each["item_uid"]: (each["cosine"], each["uid"], each["rows"]) for each in overlap_of(other, subset)}
    assert found.keys() == expected.keys() and len(found) > 0
    for item, (cosine, uid, rows) in found.items():
        assert cosine == pytest.approx(expected[item][0], abs=1e-9)
        assert (uid, rows) == expected[item][1:]


def test_rows_without_an_embedding_are_counted(tmp_path: Path, training: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    shutil.copytree(training, mine, ignore=shutil.ignore_patterns("subsets"))
    write_dataset(theirs, 40)
    zeros = np.zeros((ROWS, 4), np.float16)
    zeros[7:] = 1
    add_embeddings(mine, "clip", lambda rows: zeros[rows])
    add_embeddings(theirs, "clip", lambda rows: np.eye(4, dtype=np.float16)[np.arange(rows.start, rows.stop) % 4])
    subset = make_subset(mine, "some", {"leak": {"against": str(theirs), "by": "embedding", "model": "clip"}})
    report = subset.reports[2].leak
    assert report is not None and report.not_compared == {"embedding": 7}
    assert leak_notes(report)[0] == "7 rows not compared by embedding: the value is missing or unusable"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"against": "nowhere"}, "nowhere does not exist; make a dataset of the"),
        ({"by": "pdq"}, "there is no column 'pdq'"),
        ({"by": "embedding"}, "embeddings by: none"),
    ],
)
def test_datasets_that_cannot_be_compared_are_an_error(
    tmp_path: Path, evaluation: Path, settings: dict[str, object], message: str
) -> None:
    write_dataset(tmp_path, 10)
    with pytest.raises(JobError, match=message):
        make_subset(tmp_path, "x", {"leak": {"against": str(evaluation)} | settings})


def test_the_dataset_itself_cannot_be_the_evaluation_set(evaluation: Path) -> None:
    with pytest.raises(JobError, match="is the dataset itself"):
        make_subset(evaluation, "x", {"leak": str(evaluation)})


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.9},
        {"pdq": 10},
        {"by": ["pdq"], "phash": 4},
        {"phash": 9},
        {"by": []},
        {"by": "sha256", "variants": []},
    ],
)
def test_incompatible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        SelectStep.model_validate({"leak": {"against": "x"} | settings})


def test_purged_rows_are_in_no_overlap(tmp_path: Path, evaluation: Path) -> None:
    training = write_training(tmp_path / "own", evaluation, list(range(ROWS)), shard_rows=200)
    subset = make_subset(training, "clean", {"leak": str(evaluation)})
    gone = overlap_of(training, subset)[0]["uid"]
    (tmp_path / "uids.txt").write_text(gone)
    before = overlap_of(training, subset)
    pairmill.purge(training, uids=tmp_path / "uids.txt", reason="test")
    after = pairmill.open(training)  # the dataset can still be read
    assert after is not None
    (path,) = (training / "subsets/clean/overlaps").iterdir()
    assert pq.ParquetFile(path).read().to_pylist() == [each for each in before if each["uid"] != gone]
    row_id = f"{int(gone, 16) // 200}:{int(gone, 16) % 200}"
    assert f'"{row_id}"' not in (training / "subsets/clean/selection.json").read_text().replace("item_row_id", "")


def test_the_hash_of_a_crop_equals_the_hash_of_its_pixels(evaluation: Path) -> None:
    """Compares the hashes of all crops and their mirror images, which are computed by linear algebra, with the hash of
    each crop after it is cut out."""
    differences = []
    for item in items_of(evaluation)[:6]:
        luma = np.kron(gray(item["pixels"]), np.ones((2, 2), np.uint8))
        for variant in ("cropped", "mirrored_cropped"):
            words, _ = variant_hashes(luma, "phash", [variant])
            cut = iter(words[:, 0].tolist())
            for share, offsets in CROPS:
                tall, wide = (share * side for side in luma.shape)
                for top in np.linspace(0, luma.shape[0] - tall, offsets):
                    for left in np.linspace(0, luma.shape[1] - wide, offsets):
                        part = luma[round(top) : round(top + tall), round(left) : round(left + wide)]
                        part = np.ascontiguousarray(part[:, ::-1] if variant != "cropped" else part)
                        differences.append((next(cut) ^ int(phash_of_luma(part), 16)).bit_count())
            assert next(cut, None) is None
    assert np.mean(differences) < 1.5 and max(differences) <= 8


def test_the_first_hash_is_that_of_the_unchanged_picture(evaluation: Path) -> None:
    for item in items_of(evaluation)[:10]:
        luma = gray(item["pixels"])
        words, variants = variant_hashes(luma, "phash", ["same", "mirrored"])
        assert [f"{int(word):016x}" for word in words[:, 0]] == [
            phash(item["pixels"]),
            phash(np.ascontiguousarray(item["pixels"][:, ::-1])),
        ]
        assert variants.tolist() == [0, 1]


def test_all_hashes_of_a_picture_are_in_the_same_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairmill.pipeline.leak.step.MAX_ENTRIES", 5)
    entries = np.zeros(30, hash_entry(1))
    entries["item"] = np.sort(np.repeat([0, 1, 2, 3, 4], [3, 2, 9, 1, 15]))
    parts = list(_parts(entries))
    assert [sorted(set(part["item"].tolist())) for part in parts] == [[0, 1], [2], [3], [4]]
    assert np.array_equal(np.concatenate(parts), entries)
