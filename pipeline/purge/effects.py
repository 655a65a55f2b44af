"""Records in the ledger what a request is about to change and delete, so that the record survives if the purge is
killed."""

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_record, record_bytes
from pairmill.pipeline.dataset.withdrawn import PURGED_REMEDY, purged_name
from pairmill.schemas.purge import ExportPurge, Purged


class Effects:
    """What a request has done so far."""

    def __init__(self, store: Store, number: int | None) -> None:
        """`number`: the number of the request; None to record nothing."""
        self._store, self._number = store, number
        self.purged = Purged()
        if number is not None and store.exists(purged_name(number)):
            self.purged = read_record(store, purged_name(number), Purged, PURGED_REMEDY)

    def note(self, **changes: object) -> None:
        """Set fields of the record, and write it if it changed."""
        new = self.purged.model_copy(update=changes)
        if new != self.purged and self._number is not None:
            self._store.replace(purged_name(self._number), record_bytes(new))
        self.purged = new

    def add(self, field: str, *found: object) -> None:
        """Add values to a list, except those that it already contains."""
        self.note(**{field: list(dict.fromkeys([*getattr(self.purged, field), *found]))})

    def add_export(self, found: ExportPurge) -> None:
        """Record the outcome for an export. `nothing to withdraw` does not replace an earlier outcome."""
        others = [each for each in self.purged.exports if each.output != found.output]
        if found.outcome != "nothing to withdraw" or len(others) == len(self.purged.exports):
            self.note(exports=[*others, found])


def together(several: list[Purged]) -> Purged:
    """What several requests did, combined."""
    numbers = {
        name: sum(getattr(each, name) for each in several)
        for name in ("rows", "not_compared", "failures", "files_deleted")
    }
    scores = {name: settings for each in several for name, settings in each.scores.items()}
    names = ("shards", "subsets", "inputs", "labels", "indexes", "reports", "named_in_steps")
    lists = {name: list(dict.fromkeys(item for each in several for item in getattr(each, name))) for name in names}
    exports = [export for each in several for export in each.exports]
    return Purged.model_validate({**numbers, **lists, "scores": scores, "exports": exports})
