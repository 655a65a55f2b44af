"""Defines the section `models`: the models that score and embed the pairs."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pairmill.schemas.pairs import OWN_COLUMNS
from pairmill.schemas.settings import Settings, Uri

_ALIAS = re.compile(r"[a-z][a-z0-9_]{0,39}")

RESERVED_ALIASES = frozenset(name.rpartition("_")[2] for name in OWN_COLUMNS if "_" in name)
"""Suffixes of pairmill's own columns, which cannot be aliases: `SELECT COLUMNS('.*_id$')` must not match a model's
columns."""


class ModelConfig(Settings):
    """One CLIP-like model: the built-in `tiny`, a model that open_clip knows, a repository on the Hugging Face Hub, or
    a folder."""

    name: Uri
    """`tiny`; a model that open_clip knows; `hf-hub:ORG/REPO` or a folder in open_clip's layout; or `ORG/REPO` or a
    folder with a CLIP or SigLIP model in the layout of transformers. A folder takes precedence over a repository."""
    pretrained: Uri | None = None
    """open_clip's tag of the weights, or a local file. None for `tiny`, folders and Hub repositories."""
    alias: str = ""
    """Suffix of this model's columns. Empty: derived from the name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision in which the model computes. auto: the one that the output was started with; in a new output, bfloat16
    on a GPU and float32 on a CPU. Similarities are always float32."""
    quick_gelu: bool = False
    """Compute with QuickGELU, the activation of OpenAI's models, even if the architecture of this name uses GELU.
    Always on if open_clip's tag says that the weights were trained with it. Models in the layout of transformers have
    this in their config.json instead."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of the weights file; the job stops if it differs. For a model in the layout of transformers, the
    SHA-256 of the output of `sha256sum` for the files that are read, in the order of their names."""

    @model_validator(mode="before")
    @classmethod
    def _default_alias(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("name"), str) and not values.get("alias"):
            alias = re.sub(r"[^a-z0-9]+", "_", values["name"].lower()).strip("_")
            values = {**values, "alias": (alias if alias[:1].isalpha() else f"m_{alias}")[:40]}
        return values

    @field_validator("alias")
    @classmethod
    def _is_column_suffix(cls, alias: str) -> str:
        if not _ALIAS.fullmatch(alias):
            raise ValueError(
                "an alias must be a lower-case letter followed by lower-case letters, digits or _, at most 40 in all"
            )
        if alias in RESERVED_ALIASES:
            raise ValueError(f"other column names end in {alias!r}; use another alias, such as m_{alias}")
        return alias
