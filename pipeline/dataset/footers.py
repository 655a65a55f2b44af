"""Reads what pairmill records in the footers of its Parquet files."""

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.dataset.parquet import read_schema
from pairmill.schemas.batch import ScoreContract


class Footer(BaseModel):
    """The part of a footer that readers use."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 0
    models: tuple[ScoreContract, ...] = ()
    """The models whose columns are in the file."""


def read_footer(store: Store, name: str) -> Footer:
    """The footer of a file; empty if pairmill did not write the file. Raises DamagedFileError or MissingFileError."""
    return footer_of(read_schema(store, name), store.path(name))


def footer_of(schema: pa.Schema, path: str) -> Footer:
    """Like `read_footer`, from the schema of a file that has been read. `path`: for the message."""
    try:
        return Footer.model_validate_json((schema.metadata or {}).get(b"pairmill", b"{}"))
    except ValidationError as error:
        raise DamagedFileError(f"{path} is damaged: pairmill did not write its footer") from error
