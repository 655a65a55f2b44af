"""Checks the files of search indexes. If an index is damaged, no data is lost, but searches find wrong rows or none."""

from collections.abc import Iterator

from pairmill.pipeline.check.files import check_file
from pairmill.pipeline.common.progress import OnStep
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record
from pairmill.schemas.index import IndexPart


def check_indexes(store: Store, on_step: OnStep) -> Iterator[str]:
    """One problem per damaged part of an index, and per file that belongs to no part, with its remedy."""
    folders = store.folders("index")
    for number, folder in enumerate(folders):
        on_step("reading the search index", number, len(folders))
        names = [name for name in store.list(f"index/{folder}/manifests") if name.endswith(".json")]
        parts = [_read_part(store, folder, f"index/{folder}/manifests/{name}") for name in names]
        for part in parts:
            if problem := part if isinstance(part, str) else _problem_with(store, folder, part):
                yield problem
        if any(isinstance(part, str) for part in parts):  # the other files may belong to these parts
            continue
        named = {part.file.path for part in parts if isinstance(part, IndexPart)}
        for path in (f"index/{folder}/{name}" for name in store.list(f"index/{folder}")):
            if path.endswith(".faiss") and path not in named:
                advice = f"if no `index` is running, delete it and {_again(store, folder)}"
                yield f"{path} is in no part of the index; {advice}"


def _read_part(store: Store, folder: str, name: str) -> IndexPart | str:
    """The record of a part, or the problem with it."""
    try:
        part = read_record(store, name, IndexPart, f"move it elsewhere and {_again(store, folder)}")
    except DamagedManifestError as error:
        return str(error)
    if part.file.path.rpartition("/")[0] != f"index/{folder}":  # never advise deleting a file that is not an index
        return (
            f"{name} lists a file outside its folder, so it is not pairmill's; move it elsewhere and "
            f"{_again(store, folder)}"
        )
    return part


def _problem_with(store: Store, folder: str, part: IndexPart) -> str | None:
    problem = check_file(store, part.file)
    if problem is None:
        return None
    return f"{problem}; {'' if problem.endswith('is missing') else 'delete it and '}{_again(store, folder)}"


def _again(store: Store, folder: str) -> str:
    alias, _, kind = folder.rpartition("-")
    options = ["--model", alias, *(["--of", "text"] if kind == "text" else [])]
    return f"run `{pairmill_command('index', store.root, *options)}` again"
