"""Loads custom rules. Each is a function in your own module, referred to as `module:function` in the job file.

    import pairmill
    import pyarrow as pa, pyarrow.compute as pc

    @pairmill.at("caption")
    def no_questions(rows: pa.Table) -> pa.BooleanArray:
        return pc.invert(pc.ends_with(rows["caption_clean"], "?"))

True keeps a row; false and null drop it as `custom_rule`. To add reasons, return a tuple of that array and a string
array. Without `@at`, a rule runs after scoring, when every column exists, including `similarity_ALIAS` and the
embeddings. A rule never sees the picture's bytes.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeVar

import pyarrow as pa

from pairmill.pipeline.common.text import message_of
from pairmill.schemas.errors import JobError, PairmillError
from pairmill.schemas.status import Step

_Function = TypeVar("_Function", bound=Callable[..., Any])

_STEP_ATTRIBUTE = "pairmill_step"
_STEPS = (Step.CAPTION, Step.URL, Step.IMAGE, Step.SCORE)


class CustomRuleError(PairmillError):
    """A custom rule raised an exception or did not return a verdict. The shard fails with this error."""

    @classmethod
    def of(cls, name: str, error: BaseException) -> Self:
        """The error for a rule that raised `error`."""
        return cls(f"custom rule {name} failed: {type(error).__name__}: {message_of(error)}")


@dataclass(frozen=True)
class CustomRule:
    """A user's rule: its name in the job file, the function, and the step at which it runs."""

    name: str
    function: Callable[[pa.Table], Any]
    step: Step = Step.SCORE


def rule(function: _Function) -> _Function:
    """Decorator: mark a custom rule that runs after scoring. It is optional and changes nothing."""
    return at(Step.SCORE)(function)


def at(step: str) -> Callable[[_Function], _Function]:
    """Decorator: run this custom rule at the step `caption`, `url`, `image` or `score`. Raises JobError for other
    steps."""
    if step not in _STEPS:
        raise JobError(f"a custom rule can run at {', '.join(_STEPS[:-1])} or {_STEPS[-1]}, but not at {step!r}")

    def mark(function: _Function) -> _Function:
        setattr(function, _STEP_ATTRIBUTE, Step(step))
        return function

    return mark


def load_custom_rule(name: str, search: Path | None = None) -> CustomRule:
    """Load `module:function` from a file or package in the folder `search`, or else from an installed module.

    The module is registered in `sys.modules` under its own name. `search` does not stay in `sys.path`, so none of its
    files can shadow our packages. Raises ValueError, which names what is missing.
    """
    module_name, _, function_name = name.partition(":")
    top = module_name.partition(".")[0]
    if not module_name or not function_name:
        raise ValueError(f"a custom rule is written as module:function, not {name!r}")
    if top == "pairmill":
        raise ValueError(f"custom rule {name}: the module name {top!r} is pairmill's own; rename your module")
    if top == "__main__":
        raise ValueError(
            f"custom rule {name}: workers cannot import what is defined in a notebook or in the program that runs; put "
            "the function in a module of its own, such as my_rules.py, and name it my_rules:function"
        )
    module = _load_module(module_name, name, search)
    function = getattr(module, function_name, None)
    if function is None:
        raise ValueError(f"custom rule {name}: the module {module_name} has no function {function_name!r}")
    if not callable(function):
        raise ValueError(f"custom rule {name}: {function_name!r} is no function; its type is {type(function).__name__}")
    return CustomRule(name, function, getattr(function, _STEP_ATTRIBUTE, Step.SCORE))


def _load_module(module_name: str, rule_name: str, search: Path | None) -> ModuleType:
    top = module_name.partition(".")[0]
    path = _find_path(top, search) if search else None
    owner = _origin(top)
    if path and path.is_file() and owner not in (None, path):
        raise ValueError(f"custom rule {rule_name}: {path} has the name of another module, {owner}; rename your file")
    try:
        if search and path and owner is None:
            _register(top, path, search)
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            where = f"in {search} or among the installed modules" if search else "installed"
            raise ValueError(f"custom rule {rule_name}: there is no module {module_name!r} {where}") from error
        raise ValueError(
            f"custom rule {rule_name}: importing {module_name} raised {type(error).__name__}: {message_of(error)}"
        ) from error


def _find_path(top: str, search: Path) -> Path | None:
    """The file of a module or package, or the folder of a package without `__init__.py`; None if there is none."""
    folder = search.absolute()
    for candidate in (folder / top / "__init__.py", folder / f"{top}.py"):
        if candidate.is_file():
            return candidate
    return folder / top if (folder / top).is_dir() else None


def _origin(top: str) -> Path | None:
    """The place where an import of this name would find a module: a file or folder, `Path("built-in")`, or None."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    if spec.has_location and spec.origin:
        return Path(spec.origin).absolute()
    return Path(folders[0]) if folders else Path("built-in")


def _register(top: str, path: Path, search: Path) -> None:
    """Import a top-level module from `search`."""
    if path.is_dir():
        spec = importlib.machinery.ModuleSpec(top, None, is_package=True)
        spec.submodule_search_locations = [str(path)]
        sys.modules[top] = importlib.util.module_from_spec(spec)
        return
    spec = importlib.util.spec_from_file_location(top, path)  # type: ignore[assignment]
    assert spec.loader is not None  # every .py has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[top] = module
    # While the module loads, it can import files beside it. Their folder is last in the path, so they shadow nothing.
    sys.path.append(str(search.absolute()))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[top]
        raise
    finally:
        sys.path.remove(str(search.absolute()))
