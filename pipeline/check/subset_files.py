"""Checks the files of subsets and mixtures. If one is damaged, no data is lost: the rows can be selected again."""

from collections.abc import Iterator, Sequence

from pairmill.pipeline.check.files import check_file
from pairmill.pipeline.common.progress import OnStep
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.mixture import read_mixture, strays_of
from pairmill.pipeline.dataset.subset import (
    SubsetError,
    files_of,
    paths_of,
    read_subset,
    select_again,
    stray_files,
    subset_names,
)
from pairmill.schemas.mixture import Mixture
from pairmill.schemas.subset import Subset


def check_subsets(store: Store, on_step: OnStep) -> Iterator[str]:
    """One problem per missing or damaged file of a subset, with its remedy."""
    names = subset_names(store)
    for name in sorted({*store.folders("subsets")} - {*names}):
        if any(stray_files(store, name, frozenset())):
            folder = store.path(f"subsets/{name}")
            yield f"{folder} has no selection.json; if no `select` is running, select again, or delete the folder"
    for number, name in enumerate(names):
        on_step("reading subsets", number, len(names))
        try:
            subset = read_subset(store, name)
        except SubsetError as error:
            yield str(error)
            continue
        yield from _check_files(store, subset)
        for path in stray_files(store, name, paths_of(subset)):
            yield _stray(store, path, "subset")


def check_mixture(store: Store, on_step: OnStep) -> tuple[Mixture | None, Sequence[str]]:
    """A mixture and the problems with its files. Its datasets are not read."""
    try:
        mixture = read_mixture(store)
    except SubsetError as error:
        return None, [str(error)]
    problems: list[str] = []
    for number, source in enumerate(mixture.sources):
        on_step("reading the mixture", number, len(mixture.sources))
        problems += _check_files(store, source.rows)
    return mixture, [*problems, *(_stray(store, path, "mixture") for path in strays_of(store, mixture))]


def _stray(store: Store, path: str, whole: str) -> str:
    """The subset or mixture itself is intact, so it is not selected again."""
    return f"{store.path(path)} is not part of the {whole}; if no `select` is running, move it elsewhere"


def _check_files(store: Store, subset: Subset) -> Iterator[str]:
    for file in files_of(subset):
        if problem := check_file(store, file):
            yield f"{problem}; select again: {select_again(store, file.path)}"
