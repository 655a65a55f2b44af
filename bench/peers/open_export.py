"""Opens an export with one reader and prints the number of pairs that it found. Called by bench.readers.

python bench/peers/open_export.py READER FOLDER SCRATCH
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd


def hugging_face_datasets(folder: Path, scratch: Path) -> int:
    """Load the folder with `load_dataset`, and decode every value."""
    import datasets

    rows = datasets.load_dataset(str(folder), cache_dir=str(scratch))["train"]
    return sum(1 for _ in rows)


def tars(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar")))


def webdataset(folder: Path, _: Path) -> int:
    import webdataset as wds

    samples = wds.WebDataset(tars(folder), shardshuffle=False).decode("pil")
    return sum({"__key__", "txt", "json"} <= sample.keys() for sample in samples)


def open_clip_train(folder: Path, _: Path) -> int:
    """Read with open_clip's validation loader, which yields each sample once."""
    from argparse import Namespace

    from open_clip_train.data import get_wds_dataset

    urls = "::".join(tars(folder))
    paths = {"train_data": urls, "val_data": urls, "train_num_samples": None, "val_num_samples": None}
    process = {"workers": 0, "batch_size": 64, "world_size": 1, "rank": 0, "distributed": False, "seed": 0}
    options = Namespace(**paths, **process, dataset_resampled=False, train_data_upsampling_factors=None)
    loaded = get_wds_dataset(
        options,
        lambda picture: np.asarray(picture.convert("RGB").resize((8, 8))),
        is_train=False,
        tokenizer=lambda text: [np.array([len(text)])],
    )
    return sum(len(images) for images, _ in loaded.dataloader)


def duckdb(folder: Path, _: Path) -> int:
    import duckdb as engine

    query = f"select count(*) from '{folder}/*.parquet' where octet_length(image.bytes) > 0 and uid is not null"  # noqa: S608
    return int(engine.sql(query).fetchall()[0][0])


def polars(folder: Path, _: Path) -> int:
    import polars as engine

    frame = engine.scan_parquet(folder / "*.parquet").select("uid", engine.col("image").struct.field("bytes")).collect()
    return frame.drop_nulls().height


def lance(folder: Path, scratch: Path) -> int:
    """Copy the Parquet files into a Lance dataset, and read it back."""
    import lance as engine
    import pyarrow.dataset as pads

    source = pads.dataset(sorted(map(str, folder.glob("*.parquet"))))
    copied = engine.write_dataset(source.to_batches(), str(scratch / "copy.lance"), schema=source.schema)
    return int(copied.to_table(columns=["uid", "image"]).num_rows)


def clip_retrieval_index(folder: Path, scratch: Path) -> int:
    """Run `clip-retrieval index` on the folder, and count both indices and the copied metadata."""
    import faiss
    from clip_retrieval.clip_index import clip_index

    clip_index(str(folder), str(scratch), max_index_memory_usage="1G", current_memory_available="2G", nb_cores=1)
    indexed = {faiss.read_index(str(scratch / f"{kind}.index")).ntotal for kind in ("image", "text")}
    return _one({*indexed, len(pd.read_parquet(scratch / "metadata"))})


def autofaiss(folder: Path, _: Path) -> int:
    from autofaiss import build_index

    index, _ = build_index(str(folder / "img_emb"), save_on_disk=False, max_index_memory_usage="1G", nb_cores=1)
    return int(index.ntotal)


def embedding_reader(folder: Path, _: Path) -> int:
    """Read the embeddings together with their metadata."""
    from embedding_reader import EmbeddingReader

    reader = EmbeddingReader(
        str(folder / "img_emb"),
        metadata_folder=str(folder / "metadata"),
        meta_columns=["image_path", "caption"],
        file_format="parquet_npy",
    )
    return sum(len(embeddings) for embeddings, _ in reader(batch_size=64, show_progress=False))


def datacomp_baselines(folder: Path, scratch: Path) -> int:
    """Run DataComp's `baselines.py`, which is in the working directory, for all uids and for the better half by
    score."""
    metadata = folder / "metadata"
    every = _run_filter(metadata, scratch / "all.npy", "no_filter")
    assert (every == np.load(folder / "subset.npy")).all()
    if "clip_l14_similarity_score" in pd.read_parquet(next(metadata.glob("*.parquet"))).columns:
        half = _run_filter(metadata, scratch / "half.npy", "clip_score", "--arch", "l14", "--fraction", "0.5")
        assert abs(2 * len(half) - len(every)) <= 2, (len(every), len(half))
    return len(every)


def _run_filter(metadata: Path, path: Path, name: str, *options: str) -> npt.NDArray[np.void]:
    """The sorted uids that one of DataComp's filters keeps, as written to `path`."""
    command = [sys.executable, "baselines.py", "--name", name, *options]
    subprocess.run([*command, "--metadata_dir", str(metadata), "--save_path", str(path)], check=True)
    uids: npt.NDArray[np.void] = np.load(path)
    return uids


def datacomp_resharder(folder: Path, scratch: Path) -> int:
    """Run DataComp's `resharder.py`, which is in the working directory, on the folder's tars and subset.npy."""
    paths = ["-i", str(folder), "-o", str(scratch), "-s", str(folder / "subset.npy")]
    subprocess.run([sys.executable, "resharder.py", *paths, "--shard-format", "{:05d}.tar", "-j", "1"], check=True)
    return webdataset(scratch, scratch)


def _one(counts: Iterable[int]) -> int:
    """The only value among the counts. Raises ValueError if they differ."""
    (count,) = set(counts)
    return count


if __name__ == "__main__":
    name, export, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    scratch.mkdir(parents=True)
    print(f"\n{globals()[name](export, scratch)}")
