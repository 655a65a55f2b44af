"""Tars as WebDataset and img2dataset write them: files that stand together and share their stem are one sample.

Nothing is extracted: names in the tar are only compared, links and devices are passed over, and of the content only
captions and JSON are read, up to a limit.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, Any

from pipeline import storage
from pipeline.corpus.index import CAPTION_ENDINGS, MAX_TEXT_BYTES, PICTURE_ENDINGS, Sample, split_name
from pipeline.sources import MALFORMED_COLUMN, SourceError
from pipeline.text import describe


def tar_rows(uri: str) -> Iterator[dict[str, Any]]:
    """Rows of INDEX_SCHEMA. A tar that is cut ends in a row that says where. Raises SourceError for what is no tar."""
    with storage.open_input(uri) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if not size:
            return
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        except tarfile.TarError as error:
            raise SourceError(
                f"{uri}: is not an uncompressed tar ({error}); pictures are read from it by range, so unpack .tar.gz"
            ) from error
        with tar:
            yield from _samples(uri, tar, file, size)


def _samples(uri: str, tar: tarfile.TarFile, file: IO[bytes], size: int) -> Iterator[dict[str, Any]]:
    sample: Sample | None = None
    try:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it ever saw
            if not member.isreg():
                continue
            key, ending = split_name(member.name)
            if sample is not None and key != sample.key:
                yield from sample.rows()
                sample = None
            sample = sample or Sample(key)
            _add(sample, uri, member, ending, file, size)
    except (tarfile.TarError, OSError, ValueError) as error:  # ValueError: numbers in headers
        if sample is not None:
            yield from sample.rows()
        yield {MALFORMED_COLUMN: f"the tar is cut or damaged at byte {tar.offset:,}: {describe(error)}"}
        return
    if sample is not None:
        yield from sample.rows()


def _add(sample: Sample, uri: str, member: tarfile.TarInfo, ending: str, file: IO[bytes], size: int) -> None:
    if member.offset_data + member.size > size:
        sample.problem = f"the tar is cut within {ending or 'a file'} of this key"
        return
    if member.issparse():
        sample.problem = "a sparse file, whose bytes do not stand together"
    elif ending in PICTURE_ENDINGS:
        sample.pictures.append((uri, member.offset_data, member.size))
    elif ending in (*CAPTION_ENDINGS, "json") and member.size <= MAX_TEXT_BYTES:
        place = file.tell()
        file.seek(member.offset_data)
        data = file.read(member.size)
        file.seek(place)
        if ending == "json":
            sample.add_json(data)
        elif sample.caption is None:
            sample.caption = data
    elif ending in CAPTION_ENDINGS:
        sample.problem = f"a caption of {member.size:,} bytes"
