"""Creates in-flight tables from a few given values, and fills in the rest."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from pairmill.schemas.pairs import in_flight_schema

MakeTable = Callable[..., pa.Table]

GOOD_ROW: dict[str, object] = {
    "row_id": "0:0",
    "uid": "0" * 32,
    "url": "https://example.com/a.jpg",
    "caption": "a red circle above a blue square",
    "caption_clean": "a red circle above a blue square",
    "status": "ok",
    "is_pair": False,
    "original_bytes": 50_000,
    "original_width": 640,
    "original_height": 480,
    "md5": "0" * 32,
    "sha256": "0" * 64,
    "one_color": False,
    "image": b"pixels",
    "license": "CC-BY-4.0",
    "similarity_tiny": 0.5,
    "similarity_big": 0.5,
}


def make_in_flight(rows: list[dict[str, object]]) -> pa.Table:
    """A table with one row per dict. The dict says how the row differs from a good row."""
    scores = [("similarity_tiny", pa.float32()), ("similarity_big", pa.float32())]
    schema = in_flight_schema(pa.schema([("license", pa.string()), *scores]))
    filled = [GOOD_ROW | {"row_id": f"0:{place}"} | row for place, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, schema)


@pytest.fixture(scope="session")
def in_flight() -> MakeTable:
    return make_in_flight
