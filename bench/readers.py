"""Opens exports of the demo and of real photographs with the tools that people use to read them.

    make bench-peers && .venv/bin/python -m bench.readers --photos ../shared/data/pairs --datacomp datacomp

`--datacomp` is a clone of github.com/mlfoundations/datacomp. Every reader is given only the folder and must find every
pair of the subset. Prints one line per dataset and reader; the exit status is 1 if any reader failed.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

PAIRMILL = [sys.executable, "-m", "pairmill"]
MODEL = "clip_l14"
"""Alias of `tiny` for the photographs, because DataComp's scripts look for scores with this name."""
OURS, PEERS, CLIP_RETRIEVAL, DATACOMP = (Path(name).absolute() for name in (
    sys.executable, ".venv-peers/bin/python", ".venv-clip-retrieval/bin/python", ".venv-datacomp/bin/python",
))  # fmt: skip
SCRIPT = Path(__file__).with_name("peers") / "open_export.py"


@dataclass(frozen=True)
class Reader:
    name: str
    form: str
    python: Path


READERS = [
    *(Reader("hugging_face_datasets", form, OURS) for form in ("webdataset", "parquet", "clip-retrieval", "datacomp")),
    *(Reader(name, "webdataset", OURS) for name in ("webdataset", "open_clip_train")),
    *(Reader(name, "parquet", OURS) for name in ("duckdb", "polars")),
    Reader("lance", "parquet", PEERS),
    *(Reader(f, "clip-retrieval", CLIP_RETRIEVAL) for f in ("clip_retrieval_index", "autofaiss", "embedding_reader")),
    Reader("datacomp_baselines", "datacomp", DATACOMP),
    Reader("datacomp_resharder", "webdataset", DATACOMP),
]


def demo(folder: Path) -> Path:
    pairmill("demo", "--out", str(folder / "demo"))
    return folder / "demo/dataset"


def photographs(folder: Path, pairs: Path) -> Path:
    """Embed a tar of all photographs, each with its first caption. Returns the dataset."""
    with tarfile.open(folder / "photographs.tar", "w") as tar:
        for number, line in enumerate((pairs / "pairs.jsonl").read_text().splitlines()):
            pair = json.loads(line)
            picture = Path(pair["file"])
            add_member(tar, f"{number:06d}{picture.suffix}", (pairs / picture).read_bytes())
            add_member(tar, f"{number:06d}.txt", pair["captions"][0].encode())
    out = folder / "photographs"
    pairmill(
        "embed",
        str(folder / "photographs.tar"),
        str(out),
        "--no-report",
        "--set",
        f"models=[{{name: tiny, alias: {MODEL}}}]",
    )
    return out


def add_member(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(body)
    tar.addfile(member, BytesIO(body))


def export(dataset: Path, folder: Path) -> int:
    """Export every kept pair in every format, to several files each. Returns the number of pairs."""
    pairmill("select", str(dataset), "everything", "--step", "where: caption_clean is not None")
    for form in ("webdataset", "parquet", "clip-retrieval", "datacomp"):
        options = ["--format", form, "--samples-per-file", "500"]
        pairmill("export", str(dataset), "everything", str(folder / form), *options)
    uids = np.load(folder / "datacomp/subset.npy")
    np.save(folder / "webdataset/subset.npy", uids)  # next to the tars, where the resharder needs it
    return len(uids)


def pairmill(*arguments: str) -> None:
    subprocess.run([*PAIRMILL, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--datacomp", type=Path, required=True)
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dataset in (demo(folder), photographs(folder, options.photos)):
            title = "demo" if dataset.name == "dataset" else dataset.name
            exports = folder / f"exports of {title}"
            expected = export(dataset, exports)
            for reader in READERS:
                found = run(reader, exports, folder / title / f"{reader.form} {reader.name}", options.datacomp)
                failed += found != str(expected)
                print(f"{title:12} {reader.form:15} {reader.name:24} {found} of {expected}", flush=True)
    sys.exit(failed > 0)


def run(reader: Reader, exports: Path, scratch: Path, datacomp: Path) -> str:
    """The number of pairs that the reader found or, if it failed, the last line of its error output."""
    command = [str(reader.python), str(SCRIPT.absolute()), reader.name, str(exports / reader.form), str(scratch)]
    ended = subprocess.run(command, cwd=datacomp, capture_output=True, text=True)
    words = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines()
    return words[-1] if words else f"exit status {ended.returncode}"


if __name__ == "__main__":
    main()
