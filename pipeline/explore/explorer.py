"""Provides the state that all pages share: the dataset as of its last (re)load, its pictures, and the labels."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.explore.columns import ColumnCache, cache_folder, remove_old
from pairmill.pipeline.explore.labels import Labels
from pairmill.pipeline.explore.live import LiveState
from pairmill.pipeline.explore.nearest import Searcher
from pairmill.pipeline.explore.pictures import Pictures
from pairmill.pipeline.explore.sample import MAX_ROWS, sample
from pairmill.pipeline.explore.view import View
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.subset import SelectJob, Subset

RunSelect = Callable[[SelectJob, bool], Subset]
"""Runs a select job. If the flag is True, only counts the rows. Raises PairmillError."""


_LOOK_S, _LOOK_REMOTE_S = 2.0, 60.0
"""Seconds between two checks for new shards, in a local folder and on S3."""


@dataclass(frozen=True)
class Shown:
    """One state of the dataset."""

    view: View
    pictures: Pictures
    searcher: Searcher
    version: str
    """Differs for every state; part of the addresses of pictures, so that browsers can cache them."""

    def close(self) -> None:
        """Close files and stop threads."""
        self.view.close()
        self.pictures.close()


class Explorer:
    """The state shared by the pages of one output folder. Close it after use."""

    def __init__(
        self,
        store: Store,
        run_select: RunSelect,
        labels: Labels,
        home: Path,
        max_rows: int = MAX_ROWS,
        on_step: OnStep = ignore_step,
    ) -> None:
        """Opens the dataset. Raises PlanError if the folder is not an output."""
        self.store, self.run_select, self.labels = store, run_select, labels
        self._home, self._max_rows = home, max_rows
        self.live = LiveState(store)
        self._looked = (-_LOOK_REMOTE_S, 0)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._warming: threading.Thread | None = None
        self.plan = load_plan(store)
        self.shown: Shown | None = None
        self._before: Shown | None = None
        """The state before the last reload, which some requests may still be reading."""
        self.generations: dict[int, int] = {}
        """Shard -> generation, for the shards that were finished when the shown state was opened."""
        self.reload(on_step)

    def close(self) -> None:
        """Save the labels, close files and stop threads."""
        try:
            self.labels.save()
        finally:
            self._end_warm_up()
            self.live.close()
            for each in (self._before, self.shown):
                if each:
                    each.close()

    def reload(self, on_step: OnStep = ignore_step) -> None:
        """Show the current state of the dataset."""
        with self._lock:
            self.plan = load_plan(self.store)
            generations = committed(self.store)
            if not generations or generations == self.generations:
                return
            self._end_warm_up()
            sampled = sample(Snapshot.of(self.store), self._max_rows)
            folder = cache_folder(sampled.snapshot, self._home)
            view = View(sampled, ColumnCache(sampled.snapshot, folder), on_step)
            remove_old(folder)
            if self._before:
                self._before.close()
            self._before, self.generations = self.shown, generations
            self._looked = (-_LOOK_REMOTE_S, 0)
            self.shown = Shown(view, Pictures(sampled.snapshot), Searcher(view), folder.name.rpartition("-")[2][:12])
        self._ended = threading.Event()
        self._warming = threading.Thread(target=view.warm_up, args=[self._ended], daemon=True)
        self._warming.start()

    def _end_warm_up(self) -> None:
        self._ended.set()
        if self._warming:
            self._warming.join()

    @property
    def name(self) -> str:
        """The last part of the output's path."""
        return self.store.root.rstrip("/").rpartition("/")[2] or self.store.root

    @property
    def new_shards(self) -> int:
        """Number of shards that were finished or rebuilt since the last reload."""
        return sum(self.generations.get(shard) != generation for shard, generation in committed(self.store).items())

    @property
    def lately_new_shards(self) -> int:
        """`new_shards` as of a moment ago, because listing a bucket costs time and money."""
        at, number = self._looked
        if time.monotonic() - at > (_LOOK_REMOTE_S if self.store.remote else _LOOK_S):
            number = self.new_shards
            self._looked = time.monotonic(), number
        return number

    @property
    def was_unfinished(self) -> bool:
        """Whether shards are missing from what is shown. Does not access the storage."""
        return len(self.generations) < self.plan.num_shards

    @property
    def is_unfinished(self) -> bool:
        """Whether shards are still missing, so `select` needs `partial`."""
        return len(committed(self.store)) < self.plan.num_shards

    def select_job(self, name: str, rows: str, subset: Subset | None, where: str) -> SelectJob:
        """The job that selects what a page shows."""
        steps = [step.model_dump(exclude_none=True) for step in (subset.steps if subset else [])]
        return SelectJob.model_validate(
            {
                "dataset": self.store.root,
                "name": name,
                "rows": subset.rows if subset else rows,
                "partial": self.is_unfinished,
                "steps": [*steps, *([{"where": where}] if where else [])],
                "s3": self.store.files.s3.model_dump(exclude_unset=True),
            }
        )
