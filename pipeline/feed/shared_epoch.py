"""Shares the epoch that `set_epoch` asks for with a loader's running workers."""

import torch


class SharedEpoch:
    """The trainer's process sets the epoch; loader workers, which have copies of the dataset, read it.

    It is shared with workers no matter how they are started. A copy made by plain pickling, for example on another
    machine, shares nothing with the original, but can be shared with workers there.
    """

    def __init__(self) -> None:
        self._values = torch.zeros(2, dtype=torch.int64)  # the epoch, and how often it was set
        self._values.share_memory_()  # type: ignore[no-untyped-call]

    def set(self, epoch: int) -> None:
        """Ask for an epoch, even for the same one again."""
        self._values[0] = epoch
        self._values[1] += 1

    def get(self) -> tuple[int, int]:
        """(epoch, how often it was set)."""
        return int(self._values[0]), int(self._values[1])

    def __getstate__(self) -> torch.Tensor:
        return self._values

    def __setstate__(self, values: torch.Tensor) -> None:
        self._values = values
        if not values.is_shared():  # type: ignore[no-untyped-call]
            values.share_memory_()  # type: ignore[no-untyped-call]
