"""Writes a finished dataset of any size, with pictures, scores and embeddings, like a build's but without a build.

A few dozen small photographs or drawings and their captions repeat over all rows. Everything else resembles a dataset
from the web: hosts with Zipf-distributed sizes, some of which lose most of their rows; dead links, small pictures and
duplicates; similarities ~ N(0.25, 0.05), with pairs below 0.2 dropped; and embeddings of 512 elements, in one cluster
per picture and subject. Scores cannot be recomputed, because the model never ran.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pairmill.jobs.yaml_loader import dump_yaml
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import ShardWriter
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.encode.tiny.draw import caption, random_scene, render
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.planned import PlannedInput, to_bytes
from pairmill.schemas.batch import BatchInfo, ScoreContract, ShardBatch
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import in_flight_schema, score_columns
from pairmill.schemas.record import JobRecord
from pairmill.schemas.version import VERSION

SHARD_ROWS, DIM, ALIAS = 4_096, 512, "clip_b32"
MIN_SIMILARITY = 0.2
PICTURES, SIDE = 48, 112
SUBJECTS = ("at dawn", "in the rain", "from above", "in the city", "at night", "by the sea")
LOSSES = (
    ("http_4xx", 0.35, "404 Not Found", 404),
    ("timeout", 0.2, "no answer in 30 s", None),
    ("dns_error", 0.15, "the name does not exist", None),
    ("image_too_small", 0.12, "48 x 48 pixels", 200),
    ("not_an_image", 0.08, "text/html", 200),
    ("http_5xx", 0.05, "503 Service Unavailable", 503),
    ("caption_too_short", 0.05, "2 characters", None),
)
"""(status, share of the rejects, detail, HTTP status)."""
EXTRA = pa.schema([("language", pa.string()), ("aesthetic", pa.float32())])
LANGUAGES = ("en", "de", "fr", "es", "ja", "ru")
CONTRACT = ScoreContract(ALIAS, "ViT-B-32", "openai", "0" * 64, {}, "float32", 77)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Photograph:
    """One of the repeating pictures."""

    jpeg: bytes
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class World:
    """The data that all shards share."""

    photographs: Sequence[Photograph]
    hosts: int
    centers: Floats
    """(pictures x subjects, DIM), unit norm."""
    seed: int


def photographs(folder: Path | None) -> list[Photograph]:
    """Small copies of pictures spread over a folder, with captions from its `pairs.jsonl` if it has one; drawings if
    there is no folder."""
    if folder is None:
        return [_drawing(Random(seed)) for seed in range(PICTURES)]
    found = []
    captions = _captions(folder)
    paths = sorted(folder.rglob("*.jpg"))
    for path in paths[:: max(len(paths) // PICTURES, 1)][:PICTURES]:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        body = io.BytesIO()
        small.save(body, "JPEG", quality=80)
        found.append(Photograph(body.getvalue(), *small.size, captions.get(path.name, path.stem)))
    return found


def _drawing(rng: Random) -> Photograph:
    scene, body = random_scene(rng), io.BytesIO()
    render(scene, rng, SIDE).save(body, "JPEG", quality=80)
    return Photograph(body.getvalue(), SIDE, SIDE, caption(scene, rng))


def _captions(folder: Path) -> dict[str, str]:
    """File name of each picture -> its caption, from `pairs.jsonl`."""
    try:
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return {}
    return {Path(row["file"]).name: row["captions"][0] for row in rows if row["captions"]}


def write(folder: Path, num_rows: int, pictures: Path | None, seed: int = 1, shard_rows: int = SHARD_ROWS) -> None:
    """Write the plan and the shards. Existing shards stay."""
    store = Store(str(folder))
    rng = np.random.default_rng(seed)
    found = photographs(pictures)
    centers = _unit(rng.normal(size=(len(found) * len(SUBJECTS), DIM)).astype(np.float32))
    world = World(found, max(10, min(5_000, num_rows // 200)), centers, seed)
    starts = range(0, num_rows, shard_rows)
    shards = [Shard(n, "in.parquet", start, min(shard_rows, num_rows - start), "") for n, start in enumerate(starts)]
    record = _plan(store, shards, num_rows)
    writer = ShardWriter(store, EXTRA, [ALIAS], record.job.images, record.fingerprint, record.versions)
    done = committed(store)
    for shard in shards:
        if shard.shard not in done:
            table = _shard(world, shard)
            writer.commit(ShardBatch(BatchInfo(shard, rows_in=shard.num_rows, contracts=(CONTRACT,)), table))
    store.remove_temporary()


def _plan(store: Store, shards: Sequence[Shard], num_rows: int) -> JobRecord:
    """Plan the shards that no earlier call planned."""
    values = {
        "source": {"paths": ["in.parquet"]},
        "output": store.root,
        "images": {"size": SIDE},
        "models": [{"name": "ViT-B-32", "pretrained": "openai", "alias": ALIAS}],
        "rules": {"min_similarity": MIN_SIMILARITY, "image_min_side": 64, "caption_min_chars": 3},
    }
    record = JobRecord(BuildJob.model_validate(values), "0" * 32, {"pairmill": VERSION})
    plans = len(store.list("plan"))
    planned = max(committed(store), default=-1) + 1 if plans else 0
    if planned < len(shards):
        table = pa.concat_tables([shard.to_table() for shard in shards[planned:]])
        mapping = ColumnMapping("url", "caption", None, None, None, EXTRA, tuple(EXTRA.names))
        inputs = [] if plans else [PlannedInput("in.parquet", "in.parquet", "blake2b:0:0", num_rows)]
        store.create(f"plan/{plans}.parquet", to_bytes(table, mapping, inputs, record))
        store.create("job.yaml", dump_yaml(record.to_json()).encode())
    return record


def _shard(world: World, shard: Shard) -> pa.Table:
    """The in-flight table of one shard."""
    rng, rows = np.random.default_rng([world.seed, shard.shard]), shard.num_rows
    number = np.arange(shard.first_row, shard.first_row + rows)
    host = (rng.zipf(1.3, rows) - 1) % world.hosts
    cluster = rng.integers(0, len(world.centers), rows)
    lost = rng.random(rows) < np.where(host % 7 == 3, 0.7, 0.12)
    similarity = rng.normal(0.25, 0.05, rows).astype(np.float32)
    image, text = _embeddings(rng, world.centers[cluster], similarity)
    original = np.where(rng.random(rows) < 0.1, rng.integers(0, shard.first_row + rows, rows), number)
    losses = rng.choice(len(LOSSES), rows, p=[share for _, share, _, _ in LOSSES])
    photos = [world.photographs[each // len(SUBJECTS)] for each in cluster]
    captions = [
        f"{photo.caption.rstrip('.')} {SUBJECTS[each % len(SUBJECTS)]}"
        for photo, each in zip(photos, cluster, strict=True)
    ]
    fetched = [loss is None or LOSSES[loss][3] is not None for loss in _or_none(losses, lost)]
    columns = {
        "row_id": [f"{shard.shard}:{n}" for n in range(rows)],
        "uid": [hashlib.blake2b(f"{world.seed} {n}".encode(), digest_size=16).hexdigest() for n in number],
        "url": [f"https://{_host(h)}/albums/{n // 1000}/{n}.jpg" for h, n in zip(host, number, strict=True)],
        "caption": captions,
        "caption_clean": captions,
        "caption_index": [0] * rows,
        "status": [
            LOSSES[loss][0] if loss is not None else "ok" if score >= MIN_SIMILARITY else "low_similarity"
            for loss, score in zip(_or_none(losses, lost), similarity, strict=True)
        ],
        "status_detail": [None if loss is None else LOSSES[loss][2] for loss in _or_none(losses, lost)],
        "is_pair": ~lost,
        "http_status": [200 if loss is None else LOSSES[loss][3] for loss in _or_none(losses, lost)],
        "content_type": ["image/jpeg" if each else None for each in fetched],
        "original_bytes": pa.array(rng.integers(20_000, 900_000, rows)),
        "fetch_attempts": [1] * rows,
        "fetch_s": rng.exponential(0.4, rows).astype(np.float32),
        "fetched_at": [
            datetime(2026, 5, 1, tzinfo=UTC) + timedelta(seconds=float(n) / 180 + 20 * float(jitter))
            for n, jitter in zip(number, rng.random(rows), strict=True)
        ],
        "sha256": [
            None if gone else hashlib.sha256(b"%d" % n).hexdigest() for n, gone in zip(original, lost, strict=True)
        ],
        "original_format": _pick(rng, ("JPEG", "PNG", "WEBP", "GIF"), (0.8, 0.1, 0.08, 0.02), rows, lost),
        "original_width": [None if gone else 4 * photo.width for photo, gone in zip(photos, lost, strict=True)],
        "original_height": [None if gone else 4 * photo.height for photo, gone in zip(photos, lost, strict=True)],
        "phash": [
            None if gone else f"{(int(n) * 6364136223846793005 + 1) % 2**64:016x}"
            for n, gone in zip(original, lost, strict=True)
        ],
        "one_color": [None if gone else False for gone in lost],
        "width": [None if gone else photo.width for photo, gone in zip(photos, lost, strict=True)],
        "height": [None if gone else photo.height for photo, gone in zip(photos, lost, strict=True)],
        "image": [None if gone else photo.jpeg for photo, gone in zip(photos, lost, strict=True)],
        "language": _pick(rng, LANGUAGES, (0.6, 0.12, 0.1, 0.08, 0.06, 0.04), rows),
        "aesthetic": rng.normal(5, 1, rows).astype(np.float32),
        f"similarity_{ALIAS}": pa.array(similarity, mask=lost),
        f"image_embedding_{ALIAS}": image,
        f"text_embedding_{ALIAS}": text,
    }
    schema = pa.schema([*in_flight_schema(EXTRA), *score_columns(ALIAS, DIM)])
    arrays = [_array(columns.get(field.name), field, rows) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _embeddings(rng: np.random.Generator, centers: Floats, similarity: Floats) -> tuple[Floats, Floats]:
    """Picture and caption embeddings near the centers. The cosine of each pair is its similarity. (rows, DIM), unit
    norm."""
    image = _unit(centers + rng.normal(0, 0.7 / DIM**0.5, centers.shape).astype(np.float32))
    other = _unit(np.roll(centers, 7, axis=1) + rng.normal(0, 0.7 / DIM**0.5, centers.shape).astype(np.float32))
    other = _unit(other - (other * image).sum(axis=1, keepdims=True) * image)
    cosine = similarity[:, None]
    return image, (cosine * image + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _array(values: object, field: pa.Field, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, field.type)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(values.astype(np.float16).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, type=field.type)
    return pa.array(values, field.type)


def _or_none(values: Integers, present: npt.NDArray[np.bool_]) -> list[int | None]:
    return [int(value) if here else None for value, here in zip(values, present, strict=True)]


def _pick(
    rng: np.random.Generator, names: Sequence[str], shares: Sequence[float], rows: int, missing: object = None
) -> pa.Array:
    return pa.array(rng.choice(names, rows, p=shares), pa.string(), mask=missing)


def _host(number: int) -> str:
    return f"{('photos', 'img', 'cdn', 'static')[number % 4]}{number}.example"
