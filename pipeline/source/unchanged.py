"""Checks that the input files are still the ones that were planned.

Row numbers in a plan mean nothing in a changed file: if a list was sorted after planning, some rows would be lost and
others repeated.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.planned import Plan, PlanError, PlannedInput

READERS = 8


def check_lists(plan: Plan, uris: Collection[str], store: Store) -> None:
    """Compare the content of these Parquet lists with the plan. Files in `input/` are the output's own and always pass.

    Raises PlanError, which names the file.
    """
    lists = [file for file in plan.inputs if file.uri == file.source and file.uri in uris]
    with ThreadPoolExecutor(READERS) as pool:
        for file, fingerprint in zip(lists, pool.map(lambda file: _fingerprint(file, store.files), lists), strict=True):
            if fingerprint is None:
                raise PlanError(f"{file.source}: is in the plan of {store.root}, but is missing; put it back")
            if fingerprint != file.fingerprint:
                raise changed(file, store)


def changed(file: PlannedInput, store: Store) -> PlanError:
    """The error for a planned file whose content has changed."""
    addition = "folder" if file.source.endswith("/") else "file"
    return PlanError(
        f"{file.source}: has changed since it was planned into {store.root}; restore it and add new rows as "
        f"a new {addition}, or use another output"
    )


def _fingerprint(file: PlannedInput, files: Files) -> str | None:
    """The file's current fingerprint; None if the file is missing."""
    try:
        return files.fingerprint(file.source)
    except FileNotFoundError:
        return None
