"""Defines the base classes of all jobs and records, and the type of paths."""

import os
from typing import Annotated, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from pairmill.schemas.s3 import without_secrets


def _as_text(path: object) -> object:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


Uri = Annotated[str, BeforeValidator(_as_text), AfterValidator(without_secrets)]
"""A path (`str` or `pathlib.Path`) or URL. It is stored in files and logs, so it must not contain secrets."""


class Settings(BaseModel):
    """Base class of jobs and records. Unknown keys are errors, and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GrowingSettings(Settings):
    """Settings in files that earlier versions of pairmill may read. Those versions refuse keys that they do not
    know."""

    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that earlier versions do not know. They are written only if they differ from their default."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = serialize(self)
        fields = type(self).model_fields
        for name in self.later:
            if name in values and getattr(self, name) == fields[name].get_default(call_default_factory=True):
                del values[name]
        return values
