"""Lists every field of a job file with its type, default and meaning, for `pairmill fields` and for the docs."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pairmill.schemas.jobs import BuildJob

REQUIRED = "required"

_SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class JobField:
    """One field in the reference."""

    name: str
    """The dotted name, as for `--set`. `[]` is any item of a list, `NAME` any key of a mapping: `models[].alias`."""
    type: str
    """The type, in terms of YAML: `int 1..100`, `jpg | png | webp`, `list of str`, `str | null`."""
    default: str
    """The default in YAML, or `required`."""
    doc: str
    """The first sentence of the docstring below the field, with YAML's `null` for None."""
    details: str
    """The rest of that docstring; empty if there is none."""


def job_fields(prefix: str = "", job: type[BaseModel] = BuildJob) -> list[JobField]:
    """The fields of `job` (BuildJob, SelectJob, ...) whose dotted names start with `prefix`, in order.

    A section such as `fetch` is not a field itself; a list or mapping of sections (`models`, `s3.buckets`) is.
    """
    return [field for field in _fields(job, "") if field.name.startswith(prefix)]


def split_docstring(text: str) -> tuple[str, str]:
    """The first sentence and the rest, each on one line, with YAML's `null` for None."""
    line = re.sub(r"\bNone\b", "null", " ".join(text.split()))
    match = _SENTENCE.match(line)
    end = match.end() if match else len(line)
    return line[:end], line[end:].strip()


def _fields(model: type[BaseModel], parent: str) -> Iterator[JobField]:
    docs = _docstrings(model)
    for name, info in model.model_fields.items():
        dotted = f"{parent}{name}"
        section, suffix = _section(info.annotation)
        if section is None or suffix:
            type_text = _type_text(Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation)
            yield JobField(dotted, type_text, _default_text(info), *split_docstring(docs.get(name, "")))
        if section is not None:
            yield from _fields(section, f"{dotted}{suffix}.")


def _section(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model nested in a field, and the suffix between the field's name and the model's fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    arguments = get_args(annotation)
    if get_origin(annotation) is list:
        return _section(arguments[0])[0], "[]"
    if get_origin(annotation) is dict:
        return _section(arguments[1])[0], ".NAME"
    if get_origin(annotation) in (Union, UnionType):
        return next((found for each in arguments if (found := _section(each))[0]), (None, ""))
    return None, ""


def _type_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{_type_text(arguments[0])}{_bounds(arguments[1:])}"
    if origin in (Union, UnionType):
        return " | ".join(_type_text(each) for each in arguments)
    if origin is Literal:
        return " | ".join(str(each) for each in arguments)
    if origin is list:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type_text(arguments[0])} to {_type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return "null" if annotation is NoneType else str(annotation.__name__)


def _bounds(metadata: tuple[Any, ...]) -> str:
    """` 1..100` if the range includes both ends, otherwise comparisons."""
    constraints = [part for each in metadata for part in (each.metadata if isinstance(each, FieldInfo) else [each])]
    lower = next((each for each in constraints if isinstance(each, (Ge, Gt))), None)
    upper = next((each for each in constraints if isinstance(each, Le)), None)
    if isinstance(lower, Ge) and upper is not None:
        return f" {lower.ge}..{upper.le}"
    parts = [] if lower is None else [f">= {lower.ge}" if isinstance(lower, Ge) else f"> {lower.gt}"]
    parts += [] if upper is None else [f"<= {upper.le}"]
    return f" {', '.join(parts)}" if parts else ""


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return REQUIRED
    default = info.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "{}"
    return default if isinstance(default, str) and default else json.dumps(default)


@cache
def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring below it, for the model and its bases.

    Read from the source on demand: pydantic's `use_attribute_docstrings` would read it at every import, which
    takes 0.1 s.
    """
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                    found[name] = docstring
    return found
