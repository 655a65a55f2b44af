"""Keeps pyarrow from importing pandas."""

import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa


class _NoPandas(MetaPathFinder):
    """Makes `import pandas` fail."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def leave_pandas_out() -> None:
    """Let pyarrow believe that pandas is not installed, unless this process has imported it.

    Otherwise, the first `pa.array(values)` imports it, only to ask whether `values` is a Series, which takes 0.1 s and
    40 MB. `to_pandas()` looks for it again, and so still works.
    """
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(finder)
