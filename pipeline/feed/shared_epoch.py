"""Shares the epoch of the next loop between the trainer's process and a loader's workers."""

import torch


class SharedEpoch:
    """The epoch of the next loop. The trainer's process sets it, and so do loader workers, which have copies of the
    dataset, when their loader gives them a checkpoint.

    It is shared with workers no matter how they are started. A copy made by plain pickling, for example for another
    machine, shares nothing with the original, but can in turn be shared with workers there.
    """

    def __init__(self) -> None:
        self._values = torch.zeros(2, dtype=torch.int64)  # the epoch, and the number of requests
        self._values.share_memory_()  # type: ignore[no-untyped-call]

    def set(self, epoch: int) -> None:
        """Request an epoch, which may be the current one. All copies start over."""
        self._values[0] = epoch
        self._values[1] += 1

    def resume(self, epoch: int) -> None:
        """Set the epoch without making any copy start over."""
        self._values[0] = epoch

    def get(self) -> tuple[int, int]:
        """(epoch, number of times it was requested)."""
        return int(self._values[0]), int(self._values[1])

    def __getstate__(self) -> torch.Tensor:
        return self._values

    def __setstate__(self, values: torch.Tensor) -> None:
        self._values = values
        if not values.is_shared():  # type: ignore[no-untyped-call]
            values.share_memory_()  # type: ignore[no-untyped-call]
