"""Invariant: wherever a user's Parquet file is opened, encryption is an error that names the file.

Arrow aborts the process if it looks at an encrypted column, even at the footer's entry of it, or at an entry for which
the schema has no column.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from pairmill.jobs.build import prepare
from pairmill.pipeline.common.delta_log import check_tables
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.foreign_parquet import EncryptedParquetError, open_parquet
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.evaluate.labels import _read_file as read_labels
from pairmill.pipeline.evaluate.overlap import Overlap
from pairmill.pipeline.known.table_list import read_table_list
from pairmill.pipeline.purge.lists import read_any_list
from pairmill.pipeline.purge.needles import Needles
from pairmill.pipeline.purge.search_file import search_file
from pairmill.pipeline.select.uid_file import UidFile
from pairmill.pipeline.source.corpus.metadata_table import names_pictures
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.known import KnownRows

SECRET = "caption"
TABLE = pa.table({SECRET: ["a"], "uid": ["0" * 32], "url": ["http://e.org/1"], "file_name": ["1.jpg"], "label": ["x"]})


class Keys(pe.KmsClient):  # type: ignore[misc]
    def __init__(self, config: pe.KmsConnectionConfig) -> None:
        pe.KmsClient.__init__(self)

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)


def write(path: Path, hides_footer: bool) -> Path:
    factory = pe.CryptoFactory(Keys)
    keys = {"column": [SECRET]}
    config = pe.EncryptionConfiguration(footer_key="footer", column_keys=keys, plaintext_footer=not hides_footer)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(path, TABLE.schema, encryption_properties=properties) as writer:
        writer.write_table(TABLE)
    return path


def plan(path: Path, kind: str) -> None:
    source = {"paths": [str(path)], "kind": kind}
    values = {"source": source, "output": str(path.parent / "out"), "models": [{"name": "tiny"}]}
    prepare(BuildJob.model_validate(values))


def check_delta(path: Path) -> None:
    log = path.parent / "_delta_log"
    log.mkdir()
    path.rename(log / f"{10:020d}.checkpoint.parquet")
    (log / f"{11:020d}.json").write_text(json.dumps({"add": {"path": "1.parquet"}}))
    (log / "_last_checkpoint").write_text('{"version": 10, "size": 1}')
    check_tables([str(path.parent / "1.parquet")], [], Files())


DOORS: dict[str, Callable[[Path], object]] = {
    "list": lambda path: plan(path, "urls"),
    "corpus": lambda path: plan(path, "corpus"),
    "metadata table": lambda path: names_pictures(str(path), Files(), SourceConfig(paths=["-"])),
    "delta checkpoint": check_delta,
    "known list": lambda path: list(read_table_list(Files(), str(path), KnownRows(path=str(path)), Counter())),
    "uid file": lambda path: UidFile.of(Files(), str(path)).load(),
    "labels": lambda path: read_labels(Files(), str(path), "label"),
    "overlap": lambda path: Overlap.read(Store(str(path.parent)), str(path)),
    "purge list": lambda path: read_any_list(Files(), str(path)),
}


@pytest.mark.parametrize("hides_footer", [True, False])
@pytest.mark.parametrize("door", DOORS)
def test_an_encrypted_file_is_refused_by_name(tmp_path: Path, door: str, hides_footer: bool) -> None:
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in/secret.parquet", hides_footer)
    with pytest.raises(PairmillError, match=r"(secret\.parquet|_delta_log).*encrypted"):
        DOORS[door](path)


@pytest.mark.parametrize("hides_footer", [True, False])
def test_a_purge_reports_an_encrypted_file_as_unreadable(tmp_path: Path, hides_footer: bool) -> None:
    write(tmp_path / "secret.parquet", hides_footer)
    report = search_file(Store(str(tmp_path)), Needles({}), "secret.parquet")
    assert "encrypted" in str(report)


def with_footer(file: bytes, change: Callable[[bytes], bytes]) -> io.BytesIO:
    end = len(file) - 8 - int.from_bytes(file[-8:-4], "little")
    footer = change(file[end:-8])
    return io.BytesIO(file[:end] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize("tail_bytes", [0, 27, 29])
def test_an_encrypted_column_is_found_whatever_follows_the_metadata(tmp_path: Path, tail_bytes: int) -> None:
    signed = write(tmp_path / "signed.parquet", hides_footer=False).read_bytes()
    with pytest.raises(EncryptedParquetError):
        open_parquet(with_footer(signed, lambda footer: footer[:-28] + bytes(tail_bytes)))


def test_an_encrypted_column_is_found_in_any_row_group(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "plain.parquet")
    metadata = pq.read_metadata(tmp_path / "plain.parquet")
    metadata.append_row_groups(pq.read_metadata(write(tmp_path / "signed.parquet", hides_footer=False)))
    metadata.write_metadata_file(tmp_path / "joined.parquet")
    with open(tmp_path / "joined.parquet", "rb") as file, pytest.raises(EncryptedParquetError):
        open_parquet(file)


def test_a_column_that_the_schema_lacks_is_refused() -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), file := io.BytesIO(), store_schema=False)

    def without_b(footer: bytes) -> bytes:
        footer = footer.replace(b"\x19\x3c\x35\0\x18\x06schema\x15\x04", b"\x19\x2c\x35\0\x18\x06schema\x15\x02")
        footer = footer.replace(b"\x15\x04\x25\x02\x18\x01b\0", b"", 1)  # its type
        return footer.replace(b"\x19\x2c\x1c\0\0\x1c\0\0", b"\x19\x1c\x1c\0\0")  # its order

    crafted = with_footer(file.getvalue(), without_b)
    assert pq.read_schema(crafted).names == ["a"]
    with pytest.raises(pa.ArrowInvalid, match="columns of the schema"):
        open_parquet(crafted)


def test_plain_files_of_other_writers_are_opened(tmp_path: Path) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    pq.write_table(TABLE, tmp_path / "arrow.parquet")
    polars.from_arrow(TABLE).write_parquet(tmp_path / "polars.parquet")
    duckdb.from_arrow(TABLE).write_parquet(str(tmp_path / "duckdb.parquet"))
    for path in tmp_path.iterdir():
        with open(path, "rb") as file, open_parquet(file) as parquet:
            assert parquet.read().to_pylist() == TABLE.to_pylist()
