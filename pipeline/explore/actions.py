"""Makes the changes that a page can request: labels, subsets, and the state of the dataset that is shown."""

import re
from urllib.parse import parse_qsl, urlencode

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.subset import read_subset, subset_names
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.page import PageError
from pairmill.pipeline.explore.pages import job_yaml
from pairmill.pipeline.explore.query import Query
from pairmill.schemas.subset import SUBSET_NAME, Subset

_DRY_RUN = "dry-run"


class Actions:
    """The actions of the pages. Each takes the fields of a form and returns JSON or the address of the next page."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer

    def label(self, form: dict[str, str]) -> dict[str, object]:
        """Label the pair `uid` with `label` (good or bad), or undo the last label (`label=undo`)."""
        labels, uid, label = self._explorer.labels, form.get("uid", ""), form.get("label", "")
        if label == "undo":
            undone = labels.undo()
            return self._labeled(undone, None if undone is None else labels.get(undone))
        if label not in ("good", "bad"):
            raise PageError("label must be good, bad or undo")
        if self._explorer.shown is None or self._explorer.shown.view.lookup.find(uid) is None:
            raise PageError("No pair shown here has this uid.", 404)
        labels.put(uid, label == "good")
        return self._labeled(uid, label == "good")

    def _labeled(self, uid: str | None, label: bool | None) -> dict[str, object]:
        good, bad = self._explorer.labels.counts
        return {"uid": uid, "label": None if label is None else "good" if label else "bad", "good": good, "bad": bad}

    def exact(self, form: dict[str, str]) -> dict[str, object]:
        """Count the rows that `query` selects from the whole dataset, with a dry run of select."""
        return {"count": self._select(form, _DRY_RUN, True).rows_out}

    def save_subset(self, form: dict[str, str]) -> str:
        """Select the rows of `query` as the subset `name`, and store its job file in the subset's folder."""
        name = form.get("name", "").strip()
        if not re.fullmatch(SUBSET_NAME, name):
            raise PageError("A name must consist of letters, digits, - and _, and begin with a letter or digit.")
        if new := self._explorer.new_shards:
            raise PageError(f"{counted(new, 'new shard')} would be selected too. Reload first, then save.")
        if name in subset_names(self._explorer.store):
            raise PageError(f"A subset {name!r} already exists. Choose another name.")
        subset = self._select(form, name, False)
        steps = [step.model_dump(exclude_none=True) for step in subset.steps]
        text = job_yaml(self._explorer, name, subset.rows, steps)
        self._explorer.store.create(f"subsets/{name}/select.yaml", text.encode())
        return f"/?{urlencode({'subset': name, 'saved': '1'})}"

    def _select(self, form: dict[str, str], name: str, dry_run: bool) -> Subset:
        if self._explorer.shown is None:
            raise PageError("No shard is finished yet.", 404)
        query = Query.parse(parse_qsl(form.get("query", ""), keep_blank_values=True, max_num_fields=500))
        base = read_subset(self._explorer.store, query.subset) if query.subset else None
        where = self._explorer.shown.view.expression(query)
        return self._explorer.run_select(self._explorer.select_job(name, query.rows, base, where), dry_run)

    def reload(self, form: dict[str, str]) -> str:
        """Show the current state of the dataset."""
        self._explorer.reload()
        return "/"
