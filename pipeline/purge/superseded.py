"""Finds files that nothing needs: superseded generations, and files that interrupted commands left behind."""

from collections.abc import Iterator
from dataclasses import dataclass

from pairmill.pipeline.columns.score_card import stray_states
from pairmill.pipeline.common.storage import Store, is_in_use
from pairmill.pipeline.dataset.manifests import (
    DamagedManifestError,
    committed,
    manifests_of,
    read_columns_manifest,
    read_manifest,
    read_manifests,
)
from pairmill.pipeline.dataset.strays import DATA_FOLDERS, DATA_NAME, SIZES_NAME
from pairmill.pipeline.dataset.subset import paths_of, read_subset, stray_files, subset_names
from pairmill.pipeline.search.part_files import read_parts
from pairmill.schemas.manifest import manifest_name

ABANDONED_S = 3_600
"""A file that is not committed yet can still be committed: it counts as left behind only when it is this old."""


@dataclass(frozen=True)
class Unneeded:
    """A file that can be deleted."""

    name: str
    why: str


def unneeded_files(store: Store, min_age_s: float = ABANDONED_S) -> Iterator[Unneeded]:
    """All unneeded files, in the order in which to delete them: data files before the manifests that name them. Files
    that pairmill did not write are left out.

    `min_age_s`: use 0 only if nothing else can be writing to the output folder now. Raises ManifestError.
    """
    yield from _of_shards(store, min_age_s)
    for name in store.folders("columns"):
        yield from _of_columns(store, name, min_age_s)
        yield from _of_score(store, name, min_age_s)
    for name in store.folders("subsets"):
        yield from _of_subset(store, name, min_age_s)
    for name in store.folders("index"):
        yield from _of_index(store, f"index/{name}", min_age_s)
    for name in store.list("tmp"):
        if not is_in_use(name) and _is_old(store, f"tmp/{name}", min_age_s):
            yield Unneeded(f"tmp/{name}", "temporary file")
    done = committed(store)
    for name in store.list("failures"):
        shard = name.removesuffix(".txt")
        if shard.isdigit() and int(shard) in done:
            yield Unneeded(f"failures/{name}", "failure of a shard that is now finished")


def delete_all(store: Store, files: Iterator[Unneeded]) -> list[Unneeded]:
    """Delete files. Returns the deleted files."""
    deleted = []
    for file in list(files):
        store.delete(file.name)
        deleted.append(file)
    return deleted


def _of_shards(store: Store, min_age_s: float) -> Iterator[Unneeded]:
    newest = committed(store)
    named = {file.path for manifest in read_manifests(store) for file in manifest.files.values()}
    yielded = set[str]()
    for shard, generations in manifests_of(store).items():
        for generation in generations[:-1]:
            name = manifest_name(shard, generation)
            for file in read_manifest(store, name).files.values():
                if file.path not in named | yielded:
                    yielded.add(file.path)
                    yield Unneeded(file.path, "superseded generation")
            yield Unneeded(f"manifests/{name}", "superseded generation")
    for folder in DATA_FOLDERS:
        for name in store.list(folder):
            path, match = f"{folder}/{name}", DATA_NAME.fullmatch(name)
            if match is None or path in named | yielded or path == SIZES_NAME:
                continue
            is_settled = newest.get(int(match["shard"]), -1) >= int(match["generation"] or 0)
            if is_settled or _is_old(store, path, min_age_s):
                yield Unneeded(path, "in no manifest")


def _of_columns(store: Store, name: str, min_age_s: float) -> Iterator[Unneeded]:
    folder, newest = f"columns/{name}", committed(store)
    named, older = set[str](), []
    manifests, files = manifests_of(store, f"{folder}/manifests"), store.list(folder)
    usual = {manifest_name(*each).replace(".json", ".parquet") for each in newest.items()}
    if all(generations == [newest.get(shard)] for shard, generations in manifests.items()) and usual.issuperset(
        file for file in files if DATA_NAME.fullmatch(file)
    ):
        return  # without reading the manifests
    for shard, generations in manifests.items():
        for generation in generations:
            record = read_columns_manifest(store, name, manifest_name(shard, generation))
            if generation >= newest.get(shard, 0) and generation == generations[-1]:
                named.add(record.file.path)
            else:
                older.append((record.file.path, f"{folder}/manifests/{record.name}"))
    for path, manifest in older:
        if path not in named:
            named.add(path)
            yield Unneeded(path, "superseded columns")
        yield Unneeded(manifest, "superseded columns")
    for file in files:
        path = f"{folder}/{file}"
        if DATA_NAME.fullmatch(file) and path not in named and _is_old(store, path, min_age_s):
            yield Unneeded(path, "in no manifest")


def _of_score(store: Store, name: str, min_age_s: float) -> Iterator[Unneeded]:
    try:
        strays = stray_states(store, name)
    except DamagedManifestError:  # `verify` reports it, with the remedy
        return
    for path in strays:
        if _is_old(store, path, min_age_s):
            yield Unneeded(path, "of no score")


def _of_subset(store: Store, name: str, min_age_s: float) -> Iterator[Unneeded]:
    named = paths_of(read_subset(store, name)) if name in subset_names(store) else frozenset[str]()
    for path in stray_files(store, name, named):
        if _is_old(store, path, min_age_s):
            yield Unneeded(path, "in no subset")


def _of_index(store: Store, folder: str, min_age_s: float) -> Iterator[Unneeded]:
    try:
        named = {part.file.path for part in read_parts(store, folder).values()}
    except DamagedManifestError:  # `verify` reports it, with the remedy
        return
    for name in store.list(folder):
        path = f"{folder}/{name}"
        if name.endswith(".faiss") and path not in named and _is_old(store, path, min_age_s):
            yield Unneeded(path, "in no index")


def _is_old(store: Store, name: str, min_age_s: float) -> bool:
    return not min_age_s or store.age_s(name) > min_age_s
