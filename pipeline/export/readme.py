"""Writes the `README.md` of an export, which tells Hugging Face `datasets` where the data files are and what types
their columns have.

https://huggingface.co/docs/datasets/repository_structure . Parquet exports have no README: `datasets` finds their files
without one, and Arrow, pandas and Polars would mistake a README in the folder for data.
"""

from collections.abc import Sequence

import pyarrow as pa
import yaml

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.export.hf_features import yaml_features

DATA_FILES = {"webdataset": "*.tar", "parquet": "*.parquet"}
"""The files that `datasets` reads, by format. For all other formats, it reads the metadata."""


def readme(form: str, rows: int, sample: pa.Schema | None, endings: Sequence[str], caption: str = "original") -> str:
    """The text of the README. `sample`: the columns in a tar's .json; `endings`: the file extensions of the pictures in
    the tars; `caption`: as in the job."""
    config = {"config_name": "default", "data_files": DATA_FILES.get(form, "metadata/*.parquet")}
    header: dict[str, object] = {"configs": [config]}
    if sample is not None:
        image = [{"name": ending, "dtype": "image"} for ending in endings]
        strings = [{"name": name, "dtype": "string"} for name in ("txt", "__key__", "__url__")]
        fields = [*image, strings[0], {"name": "json", "struct": yaml_features(sample)}, *strings[1:]]
        header["dataset_info"] = {"config_name": "default", "features": fields}
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    pairs = f"{counted(rows, 'pair')} of pictures and captions"
    written = "" if caption == "original" else f" Captions: {caption}, some of them written by a model."
    return f"---\n{front}---\n\n{pairs}, exported by pairmill in the format {form}.{written}\n"
