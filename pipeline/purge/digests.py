"""Sets of SHA-256 digests as sorted arrays: 32 bytes per digest in every process that looks values up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DigestSet:
    """Distinct digests of 32 bytes, sorted."""

    entries: npt.NDArray[np.bytes_]

    @classmethod
    def of(cls, digests: Iterable[bytes]) -> "DigestSet":
        """A set of these digests."""
        return cls(np.unique(np.frombuffer(b"".join(digests), dtype="S32")))

    @classmethod
    def union(cls, sets: Sequence["DigestSet"]) -> "DigestSet":
        """The digests that are in any of the sets."""
        return cls(np.unique(np.concatenate([np.empty(0, "S32"), *(each.entries for each in sets)])))

    def __len__(self) -> int:
        return len(self.entries)

    def contains(self, digests: Sequence[bytes | None]) -> npt.NDArray[np.bool_]:
        """For each digest, whether it is in the set; False for None."""
        if not len(self.entries) or not digests:
            return np.zeros(len(digests), np.bool_)
        # numpy's `S` ignores trailing zero bytes in comparisons, which is harmless because all have the same length
        queries = np.array([digest or b"" for digest in digests], dtype="S32")
        places = np.minimum(np.searchsorted(self.entries, queries), len(self.entries) - 1)
        found: npt.NDArray[np.bool_] = self.entries[places] == queries
        return found & np.array([digest is not None for digest in digests], np.bool_)

    def __contains__(self, digest: bytes) -> bool:
        return bool(self.contains([digest])[0])
