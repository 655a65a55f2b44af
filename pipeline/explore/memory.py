"""Remembers recently computed values."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

_MAX_VALUES = 48
"""Maximum number of cached values. Most are masks and orders of rows, which take 1 or 8 bytes per row."""

_Value = TypeVar("_Value")


class Memory:
    """Caches the most recently used values. Thread-safe."""

    def __init__(self) -> None:
        self._values: OrderedDict[object, Any] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, key: object, compute: Callable[[], _Value]) -> _Value:
        """The value of a key, computed unless it is in the cache."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]  # type: ignore[no-any-return]
        value = compute()
        with self._lock:
            self._values[key] = value
            while len(self._values) > _MAX_VALUES:
                self._values.popitem(last=False)
        return value
