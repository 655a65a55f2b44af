"""Checks that a checkpoint belongs to the run that loads it."""

from collections.abc import Mapping
from typing import Any

from pairmill.pipeline.feed.config import FeedError, FeedState

_OTHER_ROWS = (
    "; after a retry, a purge or a new selection, the rows are not the same: start a new epoch with set_epoch, without "
    "the checkpoint"
)


def check_checkpoint(state: Mapping[str, Any], current: FeedState, world_size: int) -> None:
    """Raise FeedError if the rows would come in a different order or with other values than before the checkpoint.
    `current`: the checkpoint that the consumer would save now."""
    if not isinstance(state, Mapping) or not FeedState.__required_keys__ <= state.keys():
        raise FeedError("this is not a checkpoint of a PairDataset")
    if (state["consumer"], state["consumers"]) != (current["consumer"], current["consumers"]):
        raise FeedError(
            f"the checkpoint belongs to consumer {state['consumer']} of {state['consumers']}, not to "
            f"{current['consumer']} of {current['consumers']}: use the same number of ranks and workers as before"
        )
    free = {"epoch", "rows_done", "is_over", "added"}
    if current["consumers"] == world_size:  # with one worker per rank, batches do not affect the shares
        free |= {"batch_size", "drop_last"}
    for name, value in current.items():
        if name not in free and state.get(name, value) != value:
            label, why = name, ""
            if name in ("choice", "rows"):
                label, why = "subset" if name == "choice" else name, _OTHER_ROWS
            raise FeedError(
                f"the checkpoint belongs to another run: {label} was {state[name]!r}, now it is {value!r}{why}"
            )
    before, now = state.get("added", {}), current["added"]
    if changed := [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]:
        raise FeedError(
            f"the checkpoint has values of {', '.join(changed)} from before it was replaced: start a new epoch with "
            "set_epoch, without the checkpoint"
        )
