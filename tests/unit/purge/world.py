"""Provides a small dataset with everything that a purge must reach, and an independent search of a whole folder."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import pairmill
from pairmill.jobs.yaml_loader import dump_yaml
from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import ShardWriter
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.encode.embedding_columns import float16_column
from pairmill.pipeline.explore.labels import LABELS_SCHEMA, Labels
from pairmill.pipeline.source.convert import convert, converted_name, inspect_text
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.planned import PlannedInput, to_bytes
from pairmill.pipeline.source.uid import pair_uid
from pairmill.schemas.batch import BatchInfo, ScoreContract, ShardBatch
from pairmill.schemas.export import ExportFormat
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import in_flight_schema, score_columns
from pairmill.schemas.record import JobRecord

SHARD_ROWS, DIM = 12, 8
B16 = ScoreContract("b16", "ViT-B-16", "openai", "1" * 64, {}, "float32", 77)
CONTRACT = ScoreContract("b32", "ViT-B-32", "openai", "0" * 64, {}, "float32", 77)
NO_EXTRA = pa.schema([])
EXPORTS: dict[str, ExportFormat] = {
    "tars": "webdataset",
    "tables": "parquet",
    "arrays": "clip-retrieval",
    "pool": "datacomp",
}


class Source:
    """The rows of the input. Everything about a row follows from its number."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        rng = np.random.default_rng(7)
        vectors = rng.standard_normal((4, rows, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        self.vectors, self.more_vectors = vectors[:2], vectors[2:]

    def url(self, row: int) -> str:
        """The URL of a row. Every fifth URL is on a subdomain of a second host, with a capital letter in its name."""
        host = "img.Elsewhere.example" if row % 5 == 0 else "pictures.example"
        return f"https://{host}/photo/{row:04d}/full.jpg"

    def caption(self, row: int) -> str:
        """A caption that is unique and too long to occur elsewhere by chance."""
        return f"a caption about subject number {row:04d} and its neighbour"

    def uid(self, row: int) -> str:
        """The uid of a row, as the reader computes it."""
        return pair_uid(self.url(row).encode(), self.caption(row).encode())

    def is_reject(self, row: int) -> bool:
        """Whether the row was rejected: every seventh row could not be fetched."""
        return row % 7 == 3

    def sha256(self, row: int) -> str:
        """The SHA-256 of the original bytes. Rows 30 and 31 have the same picture as row 2."""
        return hashlib.sha256(f"picture {2 if row in (30, 31) else row}".encode()).hexdigest()

    def picture(self, row: int) -> bytes:
        """The stored picture: noise, as JPEG."""
        pixels = np.random.default_rng(int(self.sha256(row)[:8], 16)).integers(0, 256, (10, 20, 3), np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG")
        return data.getvalue()

    def vector(self, kind: int, row: int) -> bytes:
        """The stored bytes of an embedding."""
        return (self.vectors, self.more_vectors)[kind // 2][kind % 2, row].astype(np.float16).tobytes()

    def marks(self, row: int) -> list[bytes]:
        """Byte strings that must not be found anywhere after the row is withdrawn, unless another row shares them."""
        marks = [self.uid(row).encode(), self.url(row).encode(), self.caption(row).encode()]
        if self.is_reject(row):
            return marks
        vectors = [self.vector(kind, row) for kind in range(4)]
        return [*marks, *vectors, self.picture(row), self.sha256(row).encode()]


def write_world(root: Path, rows: int = 60, uncommitted: int = 1) -> Source:
    """Write the dataset `root/out`, with columns, subsets, an index, labels and reports, and its exports beside it.

    The input is a CSV file, so `input/` contains all URLs and captions. The last `uncommitted` shards are
    not committed.
    """
    source, out = Source(rows), root / "out"
    lines = [f"{source.url(row)},{source.caption(row)}" for row in range(rows)]
    (root / "in.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
    store = Store(str(out))
    shards = _plan(store, root / "in.csv", rows)
    writer = ShardWriter(store, NO_EXTRA, ["b32"], _job(store, root / "in.csv").images, "0" * 32, {"pairmill": "1"})
    for shard in shards[: len(shards) - uncommitted]:
        writer.commit(ShardBatch(BatchInfo(shard, contracts=(CONTRACT,)), in_flight(source, shard)))
    add_everything(out, source)
    return source


def add_everything(out: Path, source: Source) -> None:
    """Add columns, subsets, an index, labels, reports, failures and exports."""
    pairmill.score(out, "words", score="captions: {measures: [words]}")
    _add_model(Store(str(out)), source)
    pairmill.select(out, "all", settings={"partial": True})
    steps = ["where: similarity >= 0", "dedup: {by: sha256}", "balance: {by: host, curve: 30}"]
    steps += [
        f"balance: {{by: {name}, curve: 0.999}}" for name in ("uid", "url", "caption", "sha256")
    ]  # so that every entry has more rows than the curve's threshold
    pairmill.select(out, "half", steps=[*steps, "repeat: {weight: 1 + similarity}"], settings={"partial": True})
    pairmill.index(out, model="b16")
    pairmill.report(out)
    uids = pairmill.open(out).table(["uid"])["uid"].to_pylist()
    labels = Labels(Store(str(out)), "session")
    for number, uid in enumerate(uids):
        labels.put(uid, number % 2 == 0)
    labels.save()
    assert pq.read_table(out / "labels/session.parquet").schema == LABELS_SCHEMA
    for name, form in EXPORTS.items():
        models = "b32" if name in ("arrays", "pool") else None
        pairmill.export(out, "all", out.parent / name, format=form, samples_per_file=15, models=models)
    (out / "failures").mkdir()
    (out / "failures/000000009.txt").write_text("ArrowInvalid: https://pictures.example/photo/0001/full.jpg")


def _add_model(store: Store, source: Source) -> None:
    """Write the columns of the model `b16`, as `embed --add-model` does."""
    store.create("columns/b16/model.json", b'{"name": "ViT-B-16", "fingerprint": "f"}')
    for manifest in read_manifests(store):
        row_ids = pq.read_table(store.path(manifest.files["pairs"].path), columns=["row_id"])["row_id"]
        numbers = [int(each.partition(":")[2]) + manifest.first_row for each in row_ids.to_pylist()]
        kinds = (source.more_vectors[0, numbers], source.more_vectors[1, numbers])
        valid = np.ones(len(numbers), bool)
        columns = [row_ids, pa.array(np.full(len(numbers), 0.5, np.float32))]
        columns += [float16_column(vectors, valid) for vectors in kinds]
        table = pa.table(columns, schema=pa.schema([pa.field("row_id", pa.string()), *score_columns("b16", DIM)]))
        write_columns(store, "b16", table, manifest, {"models": [asdict(B16)]}, "f" * 32)


def _job(store: Store, csv: Path) -> BuildJob:
    values = {
        "source": {"paths": [str(csv)]},
        "output": store.root,
        "images": {"store": "pairs"},
        "models": [{"name": "ViT-B-32", "pretrained": "openai", "alias": "b32"}],
        "shard_rows": SHARD_ROWS,
    }
    return BuildJob.model_validate(values)


def _plan(store: Store, csv: Path, rows: int) -> list[Shard]:
    mapping = ColumnMapping("url", "caption", None, None, None, NO_EXTRA, (), has_checksums=True)
    file = inspect_text(str(csv), "csv", store.files, SourceConfig(paths=[str(csv)]))
    fingerprint = store.files.fingerprint(str(csv))
    name = converted_name(file, fingerprint, mapping, SHARD_ROWS)
    convert(file, name, mapping, SHARD_ROWS, store)
    shards = [
        Shard(number, name, start, min(SHARD_ROWS, rows - start), fingerprint)
        for number, start in enumerate(range(0, rows, SHARD_ROWS))
    ]
    table = pa.concat_tables([shard.to_table() for shard in shards])
    record = JobRecord(_job(store, csv), "0" * 32)
    store.create("plan/0.parquet", to_bytes(table, mapping, [PlannedInput(str(csv), name, fingerprint, rows)], record))
    store.create("job.yaml", dump_yaml(record.to_json()).encode())
    return shards


def in_flight(source: Source, shard: Shard) -> pa.Table:
    """The rows of a shard before its commit."""
    numbers = range(shard.first_row, shard.first_row + shard.num_rows)
    rows = [_row(source, shard, row) for row in numbers]
    table = pa.Table.from_pylist(rows, schema=in_flight_schema(NO_EXTRA))
    images, texts = (source.vectors[kind, shard.first_row : shard.first_row + shard.num_rows] for kind in (0, 1))
    valid = np.array([not source.is_reject(row) for row in numbers])
    similarity = pa.array((images * texts).sum(axis=1), mask=~valid)
    made = (similarity, float16_column(images, valid), float16_column(texts, valid))
    for field, column in zip(score_columns("b32", DIM), made, strict=True):
        table = table.append_column(field, column)
    return table


def _row(source: Source, shard: Shard, row: int) -> dict[str, object]:
    identity = {
        "row_id": f"{shard.shard}:{row - shard.first_row}",
        "uid": source.uid(row),
        "url": source.url(row),
        "caption": source.caption(row),
        "caption_clean": source.caption(row),
        "caption_index": 0,
    }
    if source.is_reject(row):
        detail = f"redirect to {source.url(row)}"
        return {**identity, "is_pair": False, "status": "http_4xx", "status_detail": detail, "final_url": None}
    fetched = {"final_url": source.url(row), "sha256": source.sha256(row), "width": 20, "height": 10}
    return {**identity, "is_pair": True, "status": "ok", "image": source.picture(row), **fetched}


def grep(folder: Path, marks: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """(file, mark) for each mark in a file: in its raw bytes, in any value of a Parquet file or any member of a tar.

    Does not use the code under test, and assumes nothing about the layout.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            whole = b"\0".join([path.name.encode(), *_contents(path)])
            found += [(str(path.relative_to(folder)), mark) for mark in marks if mark in whole]
    return found


def _contents(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    if data[:4] == b"PAR1":
        table = pq.ParquetFile(io.BytesIO(data)).read()
        yield json.dumps({str(key): str(value) for key, value in (table.schema.metadata or {}).items()}).encode()
        for column in table.columns:
            yield from _values(column.to_pylist())
    elif path.suffix == ".tar":
        with tarfile.open(path) as tar:
            for member in tar:
                yield member.name.encode()
                file = tar.extractfile(member)
                yield file.read() if file else b""


def _values(values: object) -> Iterator[bytes]:
    if isinstance(values, dict):
        for item in values.values():
            yield from _values(item)
    elif isinstance(values, list) and values and isinstance(values[0], float | np.floating):
        yield np.array(values, np.float16).tobytes()
    elif isinstance(values, list):
        for item in values:
            yield from _values(item)
    elif isinstance(values, bytes):
        yield values
    elif isinstance(values, str):
        yield values.encode()
