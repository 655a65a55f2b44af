"""Checks the filters of `rules.known` in an output folder."""

from collections.abc import Iterator

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import ManifestError
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.prepare import RECORD, read_known


def check_known(store: Store) -> Iterator[str]:
    """One line per filter that is missing or does not match its checksum."""
    try:
        record = read_known(store)
    except (KnownError, ManifestError) as error:
        yield str(error)
        return
    for each in record.filters if record is not None else []:
        try:
            intact = store.checksum(each.file.path) == (each.file.blake2b, each.file.num_bytes)
        except FileNotFoundError:
            intact = False
        if not intact:
            yield (
                f"{store.path(each.file.path)} is missing or damaged; restore it from a copy. Without a copy, move the "
                f"output elsewhere, because a rebuilt filter may differ ({RECORD} lists its sources)"
            )
