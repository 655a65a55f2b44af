"""Checks the files of search indexes. If an index is damaged, no data is lost, but searches find wrong rows or none."""

from collections.abc import Iterator

from pairmill.pipeline.check.files import check_file
from pairmill.pipeline.common.progress import OnStep
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record
from pairmill.schemas.index import IndexPart


def check_indexes(store: Store, on_step: OnStep) -> Iterator[str]:
    """One problem per damaged part of an index, with its remedy."""
    names = [
        (folder, f"index/{folder}/manifests/{name}")
        for folder in store.folders("index")
        for name in store.list(f"index/{folder}/manifests")
        if name.endswith(".json")
    ]
    for number, (folder, name) in enumerate(names):
        on_step("reading the search index", number, len(names))
        if problem := _check_part(store, folder, name):
            yield problem


def _check_part(store: Store, folder: str, name: str) -> str | None:
    alias, _, kind = folder.rpartition("-")
    options = ["--model", alias, *(["--of", "text"] if kind == "text" else [])]
    again = f"run `{pairmill_command('index', store.root, *options)}` again"
    try:
        part = read_record(store, name, IndexPart, f"move it elsewhere and {again}")
    except DamagedManifestError as error:
        return str(error)
    if part.file.path.rpartition("/")[0] != f"index/{folder}":  # never advise deleting a file that is not an index
        return f"{name} lists a file outside its folder, so it is not pairmill's; move it elsewhere and {again}"
    problem = check_file(store, part.file)
    if problem is None:
        return None
    return f"{problem}; {'' if problem.endswith('is missing') else 'delete it and '}{again}"
