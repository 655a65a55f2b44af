"""Defines the base of all jobs and records, and the type of paths."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from pairmill.schemas.s3 import without_secrets


def _as_text(path: object) -> object:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


Uri = Annotated[str, BeforeValidator(_as_text), AfterValidator(without_secrets)]
"""A path (`str` or `pathlib.Path`) or URL. It is stored in files and logs, so it must not contain secrets."""


class Settings(BaseModel):
    """Unknown keys are errors, and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
