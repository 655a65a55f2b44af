"""Provides 8,000 rows with real captions of very different frequencies, in shards of any size."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.synthetic_dataset import default_columns, write_dataset

SHARED_DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"

ROWS = 8_000
ODD_CAPTIONS = [None, "", "Dogs.\tand\ndogs", "in St. Louis, of course", "一只猫在睡觉", "cat,dog", "CAT dog `cat`"]
HOSTS = [
    "photos.example",
    "Photos.Example:8080",
    "user@other.example",
    "[2001:db8::1]:80",
    "bücher.example",
    "xn--bcher-kva.example",
    "other.example.",
]


def captions() -> list[str | None]:
    """Captions for all rows. A few captions make up most rows, as on the web; some are unusual."""
    lines = (SHARED_DATA / "pairs/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    real = sorted({caption for line in lines for caption in json.loads(line)["captions"]})
    numbers = np.minimum(np.random.default_rng(5).zipf(1.3, ROWS) - 1, len(real) + len(ODD_CAPTIONS) - 1)
    every = [*ODD_CAPTIONS, *real]
    return [every[number] for number in numbers]


def columns() -> dict[str, pa.Array]:
    """Columns of `pairs/`. `original_format` is used as a class, `content_type` as a language."""
    rng = np.random.default_rng(6)
    found = default_columns(0, 0, ROWS, 1)
    hosts = [*HOSTS, *(f"h{number}.example" for number in range(3_000))]
    urls = [f"https://{hosts[number]}/a:b@c.jpg" for number in np.minimum(rng.zipf(1.4, ROWS) - 1, len(hosts) - 1)]
    urls[:3] = [None, "no url", "//host.example/a"]
    classes = pa.array([f"class {number}" for number in np.minimum(rng.zipf(1.5, ROWS), 40)])
    languages = np.array(["en", "de", "fr"])[rng.choice(3, ROWS, p=[0.6, 0.3, 0.1])]
    return found | {
        "caption_clean": pa.array(captions(), pa.string()),
        "url": pa.array(urls, pa.string()),
        "original_format": pa.array(classes.to_pylist(), pa.string(), mask=rng.random(ROWS) < 0.02),
        "content_type": pa.array(languages.tolist(), pa.string()),
        "status": pa.array(["ok"] * ROWS),
    }


def write(folder: Path, rows: dict[str, pa.Array], shard_rows: int) -> Path:
    """Write a dataset of these rows."""

    def columns(shard: int, first: int, count: int, seed: int) -> dict[str, pa.Array]:
        return {name: column.slice(first, count) for name, column in rows.items()}

    write_dataset(folder, ROWS, shard_rows=shard_rows, columns=columns)
    return folder
