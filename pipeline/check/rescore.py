"""Scores and embeddings of some pairs, computed again from the pictures that the rows name.

A sample spread evenly over the shards; pictures come from the tars of a build, or are read as the load stage read them.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.columns.added_model import PairsReader
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed, read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.source.cursor import ReadError
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.jobs import ImagesConfig, ModelConfig, RunConfig
from pairmill.schemas.manifest import ShardManifest, manifest_name, shards_from_table

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-3}
"""By what a similarity, or the cosine of an embedding with itself, may be off once it is computed again."""


def rescore_sample(
    store: Store, plan: Plan, scored: Sequence[int], wanted: int, report: VerifyReport
) -> Iterator[tuple[ShardManifest, str]]:
    """Compute `wanted` pairs again, the same number in each of at most that many shards; yields what does not hold."""
    num_shards = min(wanted, len(scored))
    job = plan.job
    newest = committed(store)
    for place in range(num_shards):
        shard = scored[place * len(scored) // num_shards]
        manifest = read_manifest(store, manifest_name(shard, newest[shard]))
        rows, contracts = _sample(store, manifest, -(-wanted // num_shards))
        if not contracts or not rows.num_rows:
            continue
        try:
            pictures = _pictures(store, plan, manifest, rows)
        except (ReadError, LocalFault, OSError) as error:
            yield manifest, f"its pictures cannot be read: {error}"
            continue
        gone = sum(
            place is not None and picture is None for place, picture in zip(_places(rows), pictures, strict=True)
        )
        if gone:
            yield manifest, f"{gone} of {rows.num_rows} pictures looked at are no longer where, or what, their rows say"
            continue
        report.rescored += rows.num_rows
        for contract in contracts:
            for problem in _differences(rows, pictures, contract, report, job.images):
                yield manifest, problem


def _sample(store: Store, manifest: ShardManifest, num_rows: int) -> tuple[pa.Table, list[ScoreContract]]:
    """Up to `num_rows` pairs, by uid: the same ones every time."""
    pairs = read_table(store, manifest.files["pairs"].path)
    models = json.loads(pairs.schema.metadata[b"pairmill"])["models"]
    contracts = [ScoreContract(**model) for model in models]
    usable = pairs.filter(pc.is_valid(pairs["image_tar"])) if "images" in manifest.files else pairs
    return usable.sort_by("uid").slice(0, num_rows), contracts


def _places(rows: pa.Table) -> list[str | None]:
    return rows["image_tar"].to_pylist()  # type: ignore[no-any-return]


def _pictures(store: Store, plan: Plan, manifest: ShardManifest, rows: pa.Table) -> list[bytes | None]:
    """The picture of every row, None where it has none, it is gone, or it is another one."""
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
    from pairmill.pipeline.encode.clip_model import load_model
    from pairmill.pipeline.encode.encoder import encode_pictures

    names = ("name", "pretrained", "alias", "dtype")
    model = load_model(ModelConfig(**{name: getattr(contract, name) for name in names}), RunConfig())
    alias, tolerance = contract.alias, TOLERANCE[contract.dtype]
    if model.contract.weights_sha256 != contract.weights_sha256:
        yield f"the weights of {alias} are not those that made its scores"
        return
    captions = rows["caption_clean"].to_pylist()
    image = np.zeros((rows.num_rows, model.embedding_dim), np.float32)
    text = np.zeros_like(image)
    seen = [place for place, picture in enumerate(pictures) if picture]
    said = [place for place, caption in enumerate(captions) if caption is not None]
    if seen:
        image[seen] = encode_pictures(model, [pictures[place] or b"" for place in seen], images)
    if said:
        text[said] = model.encode_captions([captions[place] for place in said])
    gaps = np.stack(
        [
            _gap(rows[f"similarity_{alias}"], (image * text).sum(axis=1)),
            _turned(rows[f"image_embedding_{alias}"], image),
            _turned(rows[f"text_embedding_{alias}"], text),
        ]
    ).max(axis=0)  # [rows]
    report.max_score_difference = max(report.max_score_difference, float(gaps.max()))
    for uid, gap in zip(rows["uid"].to_pylist(), gaps, strict=True):
        if not gap <= tolerance:
            yield f"the score or embedding of {uid} is off by {gap:.4f}"


def _gap(stored: pa.ChunkedArray, again: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """|stored - again| [rows]; 0 where there is no score."""
    values = stored.fill_null(np.nan).to_numpy()
    return np.where(np.isnan(values), 0, np.abs(values - again)).astype(np.float32)


def _turned(stored: pa.ChunkedArray, again: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 - cosine of the stored embedding and the one computed again [rows]; 0 where there can be none."""
    gaps: npt.NDArray[np.float32] = np.any(again != 0, axis=1).astype(
        np.float32
    )  # one that is missing is off by all there is
    for row, value in enumerate(stored.to_pylist()):
        if value is not None:
            before = np.asarray(value, np.float32)
            gaps[row] = abs(1 - float(before @ again[row]) / max(float(np.linalg.norm(before)), 1e-6))
    return gaps
