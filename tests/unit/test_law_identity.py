"""Invariant: the uid of a picture in the input includes its digest if the URL is missing, blank or shared.

If no other row has the same URL and caption, the uid does not include the digest.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus.load import Loader
from pairmill.pipeline.source.plan import load_plan, make_plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.pipeline.source.uid import pair_uid
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import shards_from_table
from pairmill.schemas.record import JobRecord

Row = tuple[str | None, str | None, int]  # URL, caption, picture


def picture(number: int) -> bytes:
    body = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(body, "PNG")
    return body.getvalue()


PICTURES = [picture(number) for number in range(4)]


def write(path: Path, rows: list[Row]) -> None:
    columns = {"image": [PICTURES[n] for _, _, n in rows], "url": [url for url, _, _ in rows]}
    types = pa.schema([("image", pa.binary()), ("url", pa.string()), ("caption", pa.string())])
    pq.write_table(pa.table({**columns, "caption": [caption for _, caption, _ in rows]}, schema=types), path)


def write_tar(path: Path, rows: list[Row]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (url, caption, n) in enumerate(rows):
            texts = json.dumps({"url": url, "caption": caption}).encode()
            for ending, body in (("png", PICTURES[n]), ("json", texts)):
                info = tarfile.TarInfo(f"{number:03d}.{ending}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))


def uids(output: Path, source: Path, shard_rows: int) -> list[tuple[str, str]]:
    """(uid, status) of each row, in order."""
    values = {"source": {"paths": [str(source)], "kind": "corpus"}, "output": str(output), "shard_rows": shard_rows}
    store = Store(str(output))
    job = BuildJob.model_validate({**values, "models": [{"name": "tiny"}]})
    make_plan(JobRecord(job, "f" * 32), store)
    plan = load_plan(store)
    with closing(ShardReader(store, plan.mapping)) as reader, closing(Loader(job, Files())) as loader:
        tables = [loader(reader.read(shard), has_pictures=True) for shard in shards_from_table(plan.shards)]
    rows = pa.concat_tables(tables).to_pylist()
    return [(row["uid"], row["status"]) for row in rows]


rows = st.lists(
    st.tuples(
        st.sampled_from([None, "", " ", "http://e.org/1", "http://e.org/2", "http://e.org/3"]),
        st.sampled_from(["a photo", "a dog"]),
        st.integers(0, len(PICTURES) - 1),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=settings.default.max_examples // 4)  # each example makes a plan
@given(rows, st.sampled_from([2, 100]), st.sampled_from([write, write_tar]))
def test_different_pictures_have_different_uids_and_equal_pairs_have_the_same_uid(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], shard_rows: int, writer: object
) -> None:
    folder = tmp_path_factory.mktemp("uids")
    source = folder / ("in.parquet" if writer is write else "in.tar")
    writer(source, rows)  # type: ignore[operator]
    found = [uid for uid, _ in uids(folder / "out", source, shard_rows)]
    urls = [url if url and url.strip() else None for url, _, _ in rows]
    pairs = [(url, caption, n) for url, (_, caption, n) in zip(urls, rows, strict=True)]
    assert len(found) == len(rows)
    assert len(set(found)) == len(set(pairs))
    assert len(set(zip(found, pairs, strict=True))) == len(set(pairs))
    once = Counter((url, caption) for url, caption, _ in pairs)
    for uid, (url, caption, _) in zip(found, pairs, strict=True):
        if url is not None and caption is not None and once[url, caption] == 1:
            assert uid == pair_uid(url.encode(), caption.encode())


def test_uids_are_the_same_as_in_earlier_versions(tmp_path: Path) -> None:
    """Computes the uids of rows with and without a URL by hand, as uid.py defines them."""
    write(tmp_path / "in.parquet", [("http://e.org/1", "a", 0), (None, "b", 1), ("http://e.org/1", "c", 0)])
    digest = hashlib.sha256(PICTURES[1]).hexdigest()
    by_hand = [
        hashlib.blake2b(b"".join(b"\1" + len(part).to_bytes(8, "little") + part for part in parts), digest_size=16)
        for parts in ((b"http://e.org/1", b"a"), (digest.encode(), b"b"), (b"http://e.org/1", b"c"))
    ]
    found = uids(tmp_path / "out", tmp_path / "in.parquet", 100)
    assert found == [(each.hexdigest(), "ok") for each in by_hand]


def test_a_url_that_later_files_share_gets_distinct_uids_from_then_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/0.parquet", [("http://e.org/1", "a", 0)])
    ((first, _),) = uids(tmp_path / "out", tmp_path / "in", 100)
    assert first == pair_uid(b"http://e.org/1", b"a")
    write(tmp_path / "in/1.parquet", [("http://e.org/1", "a", 1)])
    _, (later, status) = uids(tmp_path / "out", tmp_path / "in", 100)
    assert (later != first, status) == (True, "ok")
