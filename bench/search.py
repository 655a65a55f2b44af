"""Compares libraries for approximate search: speed, recall, memory, and CPU time to build, on synthetic embeddings.

    python -m venv /tmp/search && /tmp/search/bin/pip install faiss-cpu usearch pylance numpy psutil
    /tmp/search/bin/python -m bench.search --rows 1000000

The embeddings are float16 [rows, 512] with the statistics of OpenAI's ViT-B-32 on Flickr8k: two pictures have a cosine
of 0.56 on average, a caption and its picture 0.33, a caption and another picture 0.18. Pictures come in groups of
unequal sizes. Queries are either a slightly changed picture, or a caption. Recall is that of the ten nearest rows
compared with brute force. Each library runs in its own process, one query at a time, with the index mapped into memory
if the library supports this. CPU counts all threads; MB is the memory that the index adds to the process, including
mapped pages.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

DIM, QUERIES, NEAREST, SEED = 512, 200, 10, 0
Floats = npt.NDArray[np.float32]
Search = Callable[[Floats], npt.NDArray[np.int64]]
"""A function from one query [1, dim] to the nearest rows [1, k]."""

CANDIDATES = (
    *("faiss flat fp16", "faiss IVF fp16", "faiss IVF SQ8", "faiss IVF PQ+refine"),
    *("usearch HNSW i8", "lance IVF PQ+refine"),
)


class Synthetic:
    """Draws embeddings as sums of a direction common to all, one of the group and one of the row. The directions of
    groups and rows have a decaying spectrum."""

    def __init__(self, rows: int) -> None:
        self.rng = np.random.default_rng(SEED)
        self.scale = ((np.arange(DIM) + 4.0) ** -0.75).astype(np.float32)
        self.image_mean, other = self._unit(2)
        self.text_mean = 0.33 * self.image_mean + np.sqrt(1 - 0.33**2) * other
        self.basis = np.linalg.qr(self.rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
        self.groups = self._spectral(max(1, rows // 50))

    def _unit(self, n: int) -> Floats:
        found = self.rng.standard_normal((n, DIM)).astype(np.float32)
        return _normalized(found)

    def _spectral(self, n: int) -> Floats:
        found = (self.rng.standard_normal((n, DIM)).astype(np.float32) * self.scale) @ self.basis
        return _normalized(found)

    def images(self, n: int) -> Floats:
        """Pictures, L2-normalized, float32 [n, dim]."""
        group = (len(self.groups) * self.rng.random(n) ** 2).astype(np.int64)
        return _normalized(0.75 * self.image_mean + 0.66 * _normalized(
            0.8 * self.groups[group] + 0.6 * self._spectral(n)))  # fmt: skip

    def captions_of(self, images: Floats) -> Floats:
        """The embedding of a caption for each picture, L2-normalized, float32 [n, dim]."""
        about = _normalized(images - images @ self.image_mean[:, None] * self.image_mean)
        noise = 0.38 * self._spectral(len(images)) + 0.55 * self._unit(len(images))
        return _normalized(0.71 * self.text_mean + 0.23 * about + noise)


def _normalized(vectors: npt.NDArray[np.floating[Any]]) -> Floats:
    found: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def make(folder: Path, rows: int) -> None:
    """Write vectors.npy, queries.npy [2, QUERIES, dim] and truth.npy [2, QUERIES, NEAREST]."""
    synthetic = Synthetic(rows)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, (rows, DIM))
    for start in range(0, rows, 50_000):
        vectors[start : start + 50_000] = synthetic.images(min(50_000, rows - start))
    some = vectors[synthetic.rng.choice(rows, QUERIES, replace=False)].astype(np.float32)
    queries = np.stack([_normalized(some + 0.3 * synthetic._spectral(QUERIES)), synthetic.captions_of(some)])
    flat = queries.reshape(-1, DIM)
    best = np.full((len(flat), NEAREST), -2, np.float32)
    truth = np.zeros((len(flat), NEAREST), np.int64)
    for start in range(0, rows, 50_000):
        scores = np.concatenate([best, flat @ vectors[start : start + 50_000].astype(np.float32).T], axis=1)
        found = np.argpartition(-scores, NEAREST, axis=1)[:, :NEAREST]
        known = np.take_along_axis(truth, np.minimum(found, NEAREST - 1), axis=1)
        truth = np.where(found < NEAREST, known, found - NEAREST + start)
        best = np.take_along_axis(scores, found, axis=1)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "truth.npy", truth.reshape(2, QUERIES, NEAREST))


def faiss_index(name: str, folder: Path) -> tuple[Callable[[], None], Callable[[], dict[str, Search]], Path]:
    """Returns (how to build one of faiss's indexes, how to open it with several settings, its path)."""
    import faiss

    path, inner = folder / f"{name.replace(' ', '-')}.faiss", faiss.METRIC_INNER_PRODUCT
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    lists = max(16, min(4096, int(4 * np.sqrt(len(vectors)))) // 4)
    lists = 1 << (lists - 1).bit_length()
    kinds = {
        "faiss flat fp16": "SQfp16",
        "faiss IVF fp16": f"IVF{lists},SQfp16",
        "faiss IVF SQ8": f"IVF{lists},SQ8",
        "faiss IVF PQ+refine": f"IVF{lists},PQ128x4fs,Refine(SQfp16)",
    }

    def build() -> None:
        index = faiss.index_factory(DIM, kinds[name], inner)
        sample = np.random.default_rng(SEED).choice(len(vectors), min(len(vectors), 64 * lists), replace=False)
        index.train(vectors[np.sort(sample)].astype(np.float32))
        for start in range(0, len(vectors), 50_000):
            index.add(vectors[start : start + 50_000].astype(np.float32))
        faiss.write_index(index, str(path))

    def open_index() -> dict[str, Search]:
        flags = faiss.IO_FLAG_MMAP_IFC if "PQ" in name or "flat" in name else faiss.IO_FLAG_MMAP
        index = faiss.read_index(str(path), flags)
        if name == "faiss flat fp16":
            return {"": lambda query: index.search(query, NEAREST)[1]}

        def with_probes(probes: int) -> Search:
            parameters = faiss.SearchParametersIVF(nprobe=probes)
            if "PQ" in name:
                parameters = faiss.IndexRefineSearchParameters(k_factor=20, base_index_params=parameters)
            return lambda query: index.search(query, NEAREST, params=parameters)[1]

        return {f"{probes} of {lists} lists": with_probes(probes) for probes in (8, 16, 32, 64, 128)}

    return build, open_index, path


def usearch_index(name: str, folder: Path) -> tuple[Callable[[], None], Callable[[], dict[str, Search]], Path]:
    """Like `faiss_index`, for usearch."""
    from usearch.index import Index

    path = folder / "usearch.index"
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")

    def build() -> None:
        index = Index(ndim=DIM, metric="ip", dtype=name.split()[-1])
        for start in range(0, len(vectors), 50_000):
            block = np.asarray(vectors[start : start + 50_000])
            index.add(np.arange(start, start + len(block)), block, threads=2)
        index.save(str(path))

    def open_index() -> dict[str, Search]:
        def with_expansion(expansion: int) -> Search:
            index = Index.restore(str(path), view=True)
            index.expansion_search = expansion
            return lambda query: np.asarray(index.search(query[0], NEAREST).keys, np.int64)[None]

        return {f"expansion {expansion}": with_expansion(expansion) for expansion in (64, 256, 512)}

    return build, open_index, path


def lance_index(_: str, folder: Path) -> tuple[Callable[[], None], Callable[[], dict[str, Search]], Path]:
    """Like `faiss_index`, for Lance, whose files also contain the vectors."""
    import lance
    import pyarrow as pa

    path = folder / "vectors.lance"
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    schema = pa.schema([pa.field("v", pa.list_(pa.float16(), DIM)), pa.field("row", pa.int64())])

    def batches() -> Any:
        for start in range(0, len(vectors), 50_000):
            block = np.asarray(vectors[start : start + 50_000])
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), DIM)
            yield pa.record_batch([column, pa.array(np.arange(start, start + len(block)))], schema=schema)

    def build() -> None:
        data = lance.write_dataset(batches(), str(path), schema=schema)
        lists = max(16, int(np.sqrt(len(vectors))))
        data.create_index("v", "IVF_PQ", metric="dot", num_partitions=lists, num_sub_vectors=64)

    def open_index() -> dict[str, Search]:
        data = lance.dataset(str(path))

        def with_probes(probes: int) -> Search:
            def search(query: Floats) -> npt.NDArray[np.int64]:
                nearest = {"column": "v", "q": query[0], "k": NEAREST, "nprobes": probes, "refine_factor": 20}
                found = data.to_table(columns=["row", "_distance"], nearest=nearest)["row"].to_numpy()
                return np.pad(found, (0, NEAREST - len(found)), constant_values=-1)[None]

            return search

        return {f"{probes} partitions": with_probes(probes) for probes in (32, 128)}

    return build, open_index, path


def measure(name: str, folder: Path) -> list[dict[str, object]]:
    """Build, open and query one candidate."""
    kind = {"faiss": faiss_index, "usearch": usearch_index, "lance": lance_index}[name.split()[0]]
    _build, open_index, path = kind(name, folder)
    child = subprocess.run([sys.executable, "-m", "bench.search", "--build", name, "--folder", str(folder)], check=True,
                           capture_output=True, text=True)  # fmt: skip
    cpu_s, build_mb = json.loads(child.stdout.splitlines()[-1])
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    num_bytes = sum(each.stat().st_size for each in files)
    process = psutil.Process()
    before = process.memory_info().rss
    started = time.perf_counter()
    settings = open_index()
    open_ms = 1e3 * (time.perf_counter() - started)
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    rows = []
    for setting, search in settings.items():
        recalls, latencies = [], []
        for of_kind, expected in zip(queries, truth, strict=True):
            hits = 0
            for query, best in zip(of_kind, expected, strict=True):
                began = time.perf_counter()
                found = search(query[None])
                latencies.append(1e3 * (time.perf_counter() - began))
                hits += len(set(found[0].tolist()) & set(best.tolist()))
            recalls.append(round(hits / (QUERIES * NEAREST), 4))
        rows.append({
            "index": f"{name}, {setting}".rstrip(", "), "build_cpu_s": round(cpu_s), "build_mb": round(build_mb),
            "bytes_per_row": round(num_bytes / len(np.load(folder / "vectors.npy", mmap_mode="r"))),
            "open_ms": round(open_ms), "mb": round((process.memory_info().rss - before) / 1e6),
            "query_ms": round(float(np.median(latencies)), 1),
            "query_ms_p95": round(float(np.percentile(latencies, 95)), 1),
            "recall_image": recalls[0], "recall_text": recalls[1],
        })  # fmt: skip
    return rows


def run_build(name: str, folder: Path) -> None:
    """Build in this process, and print CPU seconds and peak MB."""
    import resource

    kind = {"faiss": faiss_index, "usearch": usearch_index, "lance": lance_index}[name.split()[0]]
    kind(name, folder)[0]()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", default=CANDIDATES)
    parser.add_argument("--build")
    parser.add_argument("--measure")
    arguments = parser.parse_args()
    if arguments.build:
        run_build(arguments.build, arguments.folder)
        return
    if arguments.measure:
        for row in measure(arguments.measure, arguments.folder):
            print(json.dumps(row), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="bench-search-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "truth.npy").exists():
            make(folder, arguments.rows)
        for name in arguments.only:
            subprocess.run(
                [sys.executable, "-m", "bench.search", "--measure", name, "--folder", str(folder)], check=False
            )


if __name__ == "__main__":
    main()
