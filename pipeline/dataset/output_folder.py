"""Decides from one listing whether a job may write to an output folder.

A folder is free if it is empty or has only hidden files (`.DS_Store`). It is a dataset if it has a plan, which is
written before everything except `input/`, `known/` and `tmp/`. If only those exist, another driver may have just
started, or may have been killed or found the disk full before it could write its plan.
The folder of a dataset may contain other files too. An export is recognized by its record.
"""

import re
from pathlib import Path

from pairmill.pipeline.common.storage import Store
from pairmill.schemas.errors import JobError
from pairmill.schemas.mixture import MIXTURE_RECORD

EXPORT_RECORDS = ".pairmill"
"""Folder of an export's own records. The name is hidden, so that tools that read a whole export do not mistake it for
data."""
_OLD_EXPORT_RECORDS = "export"
"""The folder of these records in exports from before 0.2."""

_PLAN_FILE = re.compile(r"\d+\.parquet")
_CONVERTED_FILE = re.compile(r".+-[0-9a-f]{16}\.parquet")
_KNOWN_FILE = re.compile(r"known\.json|.+\.[0-9a-f]{32}\.keys")


def check_dataset_folder(store: Store) -> None:
    """Raise JobError for a folder that is neither free nor a dataset, or if part of the path is a file."""
    names = names_in_output(store)
    if is_export(store):
        raise JobError(_refusal(store, names))
    begun = {"input/", "known/", "tmp/"}
    if "plan/" in names and not store.list("plan") and not store.folders("plan"):
        begun.add("plan/")
    foreign = [name for name in names if name not in begun]
    if "input/" in names:
        foreign += [f"input/{name}" for name in store.list("input") if not _CONVERTED_FILE.fullmatch(name)]
    if "known/" in names:
        foreign += [f"known/{name}" for name in store.list("known") if not _KNOWN_FILE.fullmatch(name)]
    # Check for a plan last: another driver may be writing, and drivers write their plan first.
    if foreign and not _has_plan(store):
        raise JobError(_refusal(store, foreign))


def check_export_folder(store: Store) -> None:
    """Raise JobError for a folder that is neither free nor an export, or if part of the path is a file."""
    foreign = [name for name in names_in_output(store) if name != "tmp/"]
    if foreign and not is_export(store):
        raise JobError(_refusal(store, foreign))


def check_mixture_folder(store: Store) -> None:
    """Raise JobError for a folder that is neither free nor a mixture, or if part of the path is a file."""
    foreign = [name for name in names_in_output(store) if name not in ("sources/", "tmp/")]
    if foreign and not store.exists(MIXTURE_RECORD):
        raise JobError(_refusal(store, foreign))


def _has_plan(store: Store) -> bool:
    return any(_PLAN_FILE.fullmatch(name) for name in store.list("plan"))


def is_export(store: Store) -> bool:
    """Whether the folder contains the record of an export."""
    return store.exists(f"{records_folder(store)}/export.json")


def records_folder(store: Store) -> str:
    """The folder of an export's records. If there are no records yet, it is the folder for new exports."""
    return _OLD_EXPORT_RECORDS if store.exists(f"{_OLD_EXPORT_RECORDS}/export.json") else EXPORT_RECORDS


def why_not_there(store: Store) -> str | None:
    """The message for a folder that does not exist. None if it exists."""
    if names_in(store) if store.remote else Path(store.root).is_dir():
        return None
    is_file = not store.remote and Path(store.root).exists()
    return f"{store.root} is a file, not a folder" if is_file else f"{store.root} does not exist"


def names_in(store: Store) -> list[str]:
    """Names directly in the folder, sorted, excluding hidden names. Folders end in `/`."""
    try:
        entries = store.fs.ls(store.root, detail=True)
    except FileNotFoundError:
        return []
    root = store.fs._strip_protocol(store.root)
    found = []
    for entry in entries:
        path = str(entry["name"]).rstrip("/")
        name = path.rpartition("/")[2]
        if path != root and not name.startswith("."):  # S3 consoles create an object for the folder itself
            found.append(f"{name}/" if entry["type"] == "directory" else name)
    return sorted(found)


def names_in_output(store: Store) -> list[str]:
    """The result of `names_in`. Raises JobError if no folder can exist at this path."""
    if store.remote:
        return names_in(store)
    try:
        for path in (Path(store.root), *Path(store.root).parents):
            if path.exists() and not path.is_dir():
                raise JobError(f"output: {path} is a file, not a folder")
        return names_in(store)
    except OSError as error:
        raise JobError(f"output: {store.root}: cannot be a folder ({error.strerror}); use another output") from None


def _refusal(store: Store, foreign: list[str]) -> str:
    kinds = {"an export": is_export(store), "a mixture": store.exists(MIXTURE_RECORD), "a dataset": _has_plan(store)}
    for kind, is_there in kinds.items():
        if is_there:
            return f"output: {store.root} is {kind}; use a new or empty folder"
    more = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
    return (
        f"output: {store.root} is not empty and is not pairmill's: it contains {foreign[0]}{more}; use a new or empty "
        "folder"
    )
