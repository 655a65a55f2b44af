"""Recomputes the scores and embeddings of some pairs from their pictures.

The sample is spread evenly over the shards. The pictures come from the tars of a build or from the corpus.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.columns.pairs_reader import PairsReader
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.footers import footer_of
from pairmill.pipeline.dataset.manifests import committed, read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.source.cursor import ReadError
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.manifest import ShardManifest, manifest_name, shards_from_table

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-3}
"""Maximum error of a recomputed similarity, and maximum of 1 - cosine between a stored and a recomputed embedding."""


def rescore_sample(
    store: Store,
    plan: Plan,
    scored: Sequence[int],
    num_pairs: int,
    report: VerifyReport,
    on_step: OnStep = ignore_step,
) -> Iterator[tuple[ShardManifest, str]]:
    """Recompute the scores of `num_pairs` pairs, evenly spread over the `scored` shards. Yields (manifest, problem)."""
    num_shards = min(num_pairs, len(scored))
    job = plan.job
    newest = committed(store)
    for position in range(num_shards):
        on_step("recomputing scores", position, num_shards)
        shard = scored[position * len(scored) // num_shards]
        manifest = read_manifest(store, manifest_name(shard, newest[shard]))
        rows, contracts = _sample(store, manifest, -(-num_pairs // num_shards))
        if not contracts or not rows.num_rows:
            continue
        try:
            pictures = _pictures(store, plan, manifest, rows)
        except (ReadError, LocalFault, OSError) as error:
            yield manifest, f"its pictures cannot be read: {error}"
            continue
        uris = rows["image_tar"].to_pylist()
        missing = sum(uri is not None and picture is None for uri, picture in zip(uris, pictures, strict=True))
        if missing:
            sample = counted(rows.num_rows, "picture")
            yield manifest, f"{missing:,} of {sample} in the sample are missing or have changed"
            continue
        report.rescored += rows.num_rows
        for contract in contracts:
            for problem in _differences(rows, pictures, contract, report, job.images):
                yield manifest, problem


def _sample(store: Store, manifest: ShardManifest, num_rows: int) -> tuple[pa.Table, Sequence[ScoreContract]]:
    """The `num_rows` pairs with the lowest uids, so that every run checks the same pairs."""
    path = manifest.files["pairs"].path
    pairs = read_table(store, path)
    contracts = footer_of(pairs.schema, store.path(path)).models
    usable = pairs.filter(pc.is_valid(pairs["image_tar"])) if "images" in manifest.files else pairs
    return usable.sort_by("uid").slice(0, num_rows), contracts


def _pictures(store: Store, plan: Plan, manifest: ShardManifest, rows: pa.Table) -> list[bytes | None]:
    """The picture of each row. None if the row has no picture, or if the picture is missing or has changed."""
    reader = PairsReader(store, plan.mapping, plan.job)
    try:
        (shard,) = shards_from_table(plan.shards.slice(manifest.shard, 1))
        return reader.pictures(shard, manifest, rows)
    finally:
        reader.close()


def _differences(
    rows: pa.Table,
    pictures: Sequence[bytes | None],
    contract: ScoreContract,
    report: VerifyReport,
    images: ImagesConfig,
) -> Iterator[str]:
    from pairmill.pipeline.encode.clip_model import is_unit, load_model
    from pairmill.pipeline.encode.encoder import encode_pictures

    names = ("name", "pretrained", "alias", "dtype", "quick_gelu")
    model = load_model(ModelConfig(**{name: getattr(contract, name) for name in names}), RunConfig())
    alias, tolerance = contract.alias, TOLERANCE[contract.dtype]
    if model.contract.weights_sha256 != contract.weights_sha256:
        yield f"the weights of {alias} are not those with which its scores were computed"
        return
    captions = rows["caption_clean"].to_pylist()
    image = np.zeros((rows.num_rows, model.embedding_dim), np.float32)
    text = np.zeros_like(image)
    with_picture = [row for row, picture in enumerate(pictures) if picture]
    with_caption = [row for row, caption in enumerate(captions) if caption is not None]
    if with_picture:
        image[with_picture] = encode_pictures(model, [pictures[row] or b"" for row in with_picture], images)
    if with_caption:
        text[with_caption] = model.encode_captions([captions[row] for row in with_caption])
    for embeddings in (image, text):
        embeddings[~is_unit(embeddings)] = 0  # invalid embeddings are stored as null
    gaps = np.stack(
        [
            _score_gaps(rows[f"similarity_{alias}"], (image * text).sum(axis=1)),
            _embedding_gaps(rows[f"image_embedding_{alias}"], image),
            _embedding_gaps(rows[f"text_embedding_{alias}"], text),
        ]
    ).max(axis=0)  # [rows]
    report.max_score_difference = max(report.max_score_difference, float(gaps.max()))
    for uid, gap in zip(rows["uid"].to_pylist(), gaps, strict=True):
        if not gap <= tolerance:
            yield f"the score or embedding of {uid} is off by {gap:.4f}"


def _score_gaps(stored: pa.ChunkedArray, recomputed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """|stored - recomputed| [rows], or 0 where no score is stored."""
    values = stored.fill_null(np.nan).to_numpy()
    return np.where(np.isnan(values), 0, np.abs(values - recomputed)).astype(np.float32)


def _embedding_gaps(stored: pa.ChunkedArray, recomputed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """|1 - cosine| of stored and recomputed embedding [rows]. 0 if neither exists, 1 if only one of them does."""
    gaps: npt.NDArray[np.float32] = np.any(recomputed != 0, axis=1).astype(np.float32)
    for row, value in enumerate(stored.to_pylist()):
        if value is not None:
            vector = np.asarray(value, np.float32)
            gaps[row] = abs(1 - float(vector @ recomputed[row]) / max(float(np.linalg.norm(vector)), 1e-6))
    return gaps
