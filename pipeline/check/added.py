"""Checks the folders of the models and scores that were added to a dataset: their cards, their states, and files that
belong to none of them."""

from collections.abc import Collection, Iterator

from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.columns.added_columns import ColumnSet, column_sets, lost_cards
from pairmill.pipeline.columns.added_model import read_card
from pairmill.pipeline.columns.score_card import read_score_card, read_state, stray_states
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import ManifestError


def check_added(store: Store, report: VerifyReport) -> list[ColumnSet]:
    """The models and scores that were added to the dataset. Reports missing or damaged card and state files as
    problems, and files that belong to no model or score."""
    try:
        added = list(column_sets(store))
    except ManifestError as error:
        report.problems.append(str(error))
        return []
    report.problems.extend(lost_cards(store))
    for each in added:
        try:
            if each.kind == "score":
                read_state(store, read_score_card(store, each.name))
            else:
                read_card(store, each.name)
        except ManifestError as error:
            report.problems.append(str(error))
    report.problems.extend(_strays(store, {each.name for each in added}))
    return added


def _strays(store: Store, added: Collection[str]) -> Iterator[str]:
    for name in store.folders("columns"):
        strays = stray_states(store, name)
        if name not in added and not store.list(f"columns/{name}/manifests"):
            strays += [f"columns/{name}/{file}" for file in store.list(f"columns/{name}") if file.endswith(".parquet")]
        for path in strays:
            yield f"{store.path(path)} belongs to no model or score; if no command is adding one now, delete it"
