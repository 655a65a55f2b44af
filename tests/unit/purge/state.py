"""Reads the content of a dataset and its exports, without the parts that can differ between two runs."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

_VOLATILE = ("image_tar", "image_offset")


def rows_of(path: Path) -> list[dict[str, object]]:
    """All rows of a Parquet file, without the positions of pictures in tars."""
    table = pq.ParquetFile(io.BytesIO(path.read_bytes())).read()
    return table.drop_columns([name for name in _VOLATILE if name in table.column_names]).to_pylist()


def state_of(root: Path) -> dict[str, object]:
    """File -> its content, parsed so that it can be compared."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or "/index/" in name or "/withdrawn/" in name:
            continue
        if path.suffix == ".parquet":
            found[name] = rows_of(path)
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                found[name] = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        elif path.suffix == ".npy":
            found[name] = np.load(path).tolist()
        elif path.suffix == ".npz":
            found[name] = {key: value.tolist() for key, value in np.load(path).items()}
        elif path.suffix == ".json":
            found[name] = _stable(json.loads(path.read_bytes()))
        else:
            found[name] = path.read_bytes()
    return found


def _stable(value: Any) -> Any:
    """The JSON value without attempts, and without checksums and sizes, which depend on them."""
    if isinstance(value, dict):
        volatile = ("attempt", "blake2b", "pairs_blake2b", "num_bytes", "generations_blake2b")
        return {key: _stable(item) for key, item in value.items() if key not in volatile}
    return [_stable(item) for item in value] if isinstance(value, list) else value
