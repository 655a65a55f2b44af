"""Explains what is wrong with a job: one line per mistake, with the field and its line in the job file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pairmill.schemas.s3 import SECRET
from pairmill.schemas.subset import SUBSET_NAME

Path = tuple[int | str, ...]
"""Names of fields, keys and list indexes, from the outermost to the innermost."""


def explain(job: type[BaseModel], error: ValidationError, text: str, job_file: str | None) -> str:
    """One line per mistake: `job.yaml:12: fetch.timeout_s: ...`. `text`: the job file, for line numbers."""
    lines = []
    for mistake in _mistakes(job, error):
        field = _field(mistake.path)
        line = _line_of(mistake.path, text)
        where = f"{job_file}:{line}: " if job_file and line else f"{job_file}: " if job_file else ""
        message = _message(job, mistake)
        lines.append(f"{where}{field}: {message}" if field else f"{where}{message}")
    return "\n".join(lines)


def _field(path: Path) -> str:
    """The dotted name, as after `--set`, except that the steps of a select job are numbered from 1."""
    match path:
        case ("steps", int(place), *inner):
            return ": ".join([f"step {place + 1}", ".".join(map(str, inner))]).removesuffix(": ")
    return ".".join(map(str, path))


@dataclass(frozen=True)
class _Mistake:
    path: Path
    union: Path | None
    """Path of the enclosing field that accepts several kinds of values. None if there is none."""
    problem: ErrorDetails

    @property
    def is_wrong_kind(self) -> bool:
        """Whether the value has a different type than the problem assumes. The user may have meant another kind."""
        return self.problem["type"].endswith("_type")


def _mistakes(job: type[BaseModel], error: ValidationError) -> Iterator[_Mistake]:
    """The mistakes in a job. If a value can be of several kinds, pydantic reports an error for each; only those for the
    kind that was meant are kept."""
    found = [_mistake(job, problem) for problem in error.errors(include_url=False)]
    for number, mistake in enumerate(found):
        others = [other for other in found if other.union == mistake.union and other is not mistake]
        if mistake.union is not None and mistake.is_wrong_kind:
            if any(not other.is_wrong_kind for other in others):
                continue
            if any(other.union == mistake.union for other in found[:number]):  # already reported for the first kind
                continue
        yield mistake


def _mistake(job: type[BaseModel], problem: ErrorDetails) -> _Mistake:
    """Remove pydantic's names for the kinds of a value from the path, such as `constrained-float`."""
    annotation: Any = job
    path: list[int | str] = []
    union: Path | None = None
    for part in problem["loc"]:
        kinds = _kinds(annotation)
        if len(kinds) > 1:
            union = tuple(path)
            annotation = next((kind for kind in kinds if str(part).startswith(_name(kind))), None)
            continue
        annotation = _inside(kinds[0], part) if kinds else None
        path.append(part)
    return _Mistake(tuple(path), union, problem)


def _kinds(annotation: Any) -> Sequence[Any]:
    """The types that a value may have, except null."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for kind in get_args(annotation) if kind is not NoneType]
    return [] if annotation is None else [annotation]


def _name(kind: Any) -> str:
    """The beginning of pydantic's name for the kind."""
    return str(getattr(get_origin(kind) or kind, "__name__", "?"))


def _inside(kind: Any, part: int | str) -> Any:
    """The annotation of a field, or of the values of a list or mapping."""
    if get_origin(kind) is Annotated:
        return _inside(get_args(kind)[0], part)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return field.annotation if field else None
    return get_args(kind)[-1] if get_args(kind) else None


def _message(job: type[BaseModel], mistake: _Mistake) -> str:
    kind, message = mistake.problem["type"], mistake.problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"there is no such field{_did_you_mean(job, mistake.path)}"
    if kind == "missing":
        return "is required"
    if kind == "string_pattern_mismatch" and mistake.problem["ctx"]["pattern"] == f"^{SUBSET_NAME}$":
        message = "use up to 100 letters, digits, - and _, starting with a letter or digit"
    if kind == "model_type":
        message = "takes settings, each written as `name: value`"
    if kind == SECRET or not mistake.path:  # do not show a secret, or the whole job
        return message
    return f"{message} (got {mistake.problem['input']!r:.80})"


def _did_you_mean(job: type[BaseModel], path: Path) -> str:
    import difflib

    annotation: Any = job
    for part in path[:-1]:
        kinds = _kinds(annotation)
        annotation = _inside(kinds[0], part) if len(kinds) == 1 else None
    names = [name for kind in _kinds(annotation) for name in getattr(kind, "model_fields", ())]
    close = difflib.get_close_matches(str(path[-1]), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _line_of(path: Path, text: str) -> int | None:
    """Line of a field in the YAML text, or of its nearest parent if it is absent. None if there is no text."""
    node = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
    line = node.start_mark.line + 1 if node else None
    for part in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            return line
        line, node = found[0].start_mark.line + 1, found[1]
    return line
