"""Writes the `README.md` of an export, which tells Hugging Face `datasets` where the data files are and what types
their columns have.

https://huggingface.co/docs/datasets/repository_structure . Parquet exports have no README: `datasets` finds their files
without one, and Arrow, pandas and Polars would mistake a README in the folder for data.

`datasets` caches the rows that it has read. The key of a folder with a README is its name and a hash of the header, so
the header contains a digest of the data files. Otherwise, `datasets` would return the rows of an earlier export of the
same name, or rows that were purged. Without a README, the key depends on the files' times or ETags.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa
import yaml

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.export.hf_features import yaml_features
from pairmill.schemas.export import ExportedPart

DATA_FILES = {"webdataset": "*.tar", "parquet": "*.parquet"}
"""The files that `datasets` reads, by format. For all other formats, it reads the metadata."""
_NUM_PAIRS = re.compile(r"(?m)^[\d,]+ pairs?\b")
_DIGEST = re.compile(r"(?m)^(  description: .*)\b[0-9a-f]{32}$")


def readme(
    form: str,
    parts: Sequence[ExportedPart],
    sample: pa.Schema | None,
    endings: Sequence[str],
    caption: str = "original",
) -> str:
    """The text of the README. `sample`: the columns in a tar's .json; `endings`: the file extensions of the pictures in
    the tars; `caption`: as in the job."""
    config = {"config_name": "default", "data_files": DATA_FILES.get(form, "metadata/*.parquet")}
    info: dict[str, object] = {"config_name": "default", "description": f"Files with the BLAKE2b {_digest(parts)}"}
    if sample is not None:
        image = [{"name": ending, "dtype": "image"} for ending in endings]
        strings = [{"name": name, "dtype": "string"} for name in ("txt", "__key__", "__url__")]
        fields = [*image, strings[0], {"name": "json", "struct": yaml_features(sample)}, *strings[1:]]
        info["features"] = fields
    front = yaml.safe_dump({"configs": [config], "dataset_info": info}, sort_keys=False, allow_unicode=True)
    pairs = f"{_num_pairs(parts)} of pictures and captions"
    written = "" if caption == "original" else f" Captions: {caption}, some of them written by a model."
    return f"---\n{front}---\n\n{pairs}, exported by pairmill in the format {form}.{written}\n"


def purged_readme(text: str, parts: Sequence[ExportedPart]) -> str:
    """The text of a README after these parts were purged. READMEs of earlier versions have no digest."""
    return _DIGEST.sub(rf"\g<1>{_digest(parts)}", _NUM_PAIRS.sub(_num_pairs(parts), text, count=1), count=1)


def _num_pairs(parts: Iterable[ExportedPart]) -> str:
    return counted(sum(part.rows for part in parts), "pair")


def _digest(parts: Iterable[ExportedPart]) -> str:
    """The BLAKE2b of the checksums of all files: 32 hex characters."""
    files = sorted((name, file.blake2b) for part in parts for name, file in part.files.items())
    return hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()
