"""Records in the ledger what a request changes and deletes, before it does: a purge that was killed still says it."""

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_record
from pairmill.pipeline.dataset.withdrawn import purged_name
from pairmill.schemas.purge import ExportPurge, Purged

_REMEDY = "move it elsewhere, and finish the purge, which will not say what was done before"


class Effects:
    """What a request did so far."""

    def __init__(self, store: Store, number: int | None) -> None:
        """`number`: of the request; None: nothing is recorded."""
        self._store, self._number = store, number
        self.purged = Purged()
        if number is not None and store.exists(purged_name(number)):
            self.purged = read_record(store, purged_name(number), Purged, _REMEDY)

    def note(self, **changes: object) -> None:
        """Set fields."""
        new = self.purged.model_copy(update=changes)
        if new != self.purged and self._number is not None:
            self._store.replace(purged_name(self._number), new.model_dump_json(indent=1).encode())
        self.purged = new

    def add(self, field: str, *found: object) -> None:
        """Add to a list what is not in it yet."""
        self.note(**{field: list(dict.fromkeys([*getattr(self.purged, field), *found]))})

    def add_export(self, found: ExportPurge) -> None:
        """Say what became of an export. That nothing is left to do there does not replace what was done."""
        others = [each for each in self.purged.exports if each.output != found.output]
        if found.outcome != "nothing to withdraw" or len(others) == len(self.purged.exports):
            self.note(exports=[*others, found])


def together(several: list[Purged]) -> Purged:
    """What several requests did."""
    numbers = {name: sum(getattr(each, name) for each in several) for name in ("rows", "failures", "files_deleted")}
    scores = {name: settings for each in several for name, settings in each.scores.items()}
    names = ("shards", "subsets", "inputs", "labels", "indexes", "reports", "named_in_steps")
    lists = {name: list(dict.fromkeys(item for each in several for item in getattr(each, name))) for name in names}
    exports = [export for each in several for export in each.exports]
    return Purged.model_validate({**numbers, **lists, "scores": scores, "exports": exports})
