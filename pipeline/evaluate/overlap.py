"""Compares the accuracy on evaluation pictures that overlap with the training set with that on all other pictures.

As in CLIP's paper, section 5 (https://arxiv.org/abs/2103.00020): is the model better on the overlap than on the clean
pictures by more than chance explains? The answer is given by a one-tailed binomial test against the clean accuracy and
a 99.5 % Clopper-Pearson interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.foreign_parquet import open_parquet
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.intervals import binomial_tail, clopper_pearson
from pairmill.pipeline.evaluate.labels import find_file
from pairmill.pipeline.evaluate.results import OverlapResult
from pairmill.pipeline.select.uid_file import uid_digits

MAX_ITEMS = 10_000_000
CONFIDENCE = 0.995
_COLUMN = "item_uid"


@dataclass(frozen=True)
class Overlap:
    """The uids of the evaluation pictures that overlap with a training set."""

    uids: pa.Array

    @classmethod
    def read(cls, store: Store, path: str) -> "Overlap":
        """Read a file that the select step `leak` wrote: local, s3://, or in the dataset's folder. Raises EvaluateError
        and StepError."""
        uri = find_file(store, path)
        try:
            with Files(store.files.s3).open(uri) as file, open_parquet(file) as parquet:
                if parquet.metadata.num_rows > MAX_ITEMS:
                    raise EvaluateError(f"{uri} has more than {MAX_ITEMS:,} rows, too many for an evaluation set")
                if parquet.schema_arrow.names.count(_COLUMN) != 1:
                    raise EvaluateError(
                        f"{uri} has no column {_COLUMN!r}: use a file from subsets/NAME/overlaps/, written by the "
                        "step leak of pairmill select"
                    )
                column = parquet.read([_COLUMN])[_COLUMN].combine_chunks()
                column.validate(full=True)
                return cls(uid_digits(uri, column.cast(pa.string())).unique())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise EvaluateError(f"{uri} is not a readable Parquet file: {clean_text(str(error))}") from None

    def has(self, uids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """For each row, whether its picture is in the overlap: bool [rows]."""
        return np.asarray(pc.is_in(uids, value_set=self.uids).to_numpy())


def compare(all_hits: int, all_rows: int, hits: int, rows: int) -> tuple[OverlapResult | None, Sequence[str]]:
    """(the comparison, notes). `hits`, `rows`: in the overlap. The comparison is None if the overlap contains no rows
    or all rows."""
    clean = all_rows - rows
    if not rows or not clean:
        which = "no labeled picture is" if not rows else "all labeled pictures are"
        return None, [f"{which} in the overlap, so there is nothing to compare"]
    accuracy = (all_hits - hits) / clean
    result = OverlapResult(
        rows=rows,
        clean_rows=clean,
        accuracy_all=all_hits / all_rows,
        accuracy_clean=accuracy,
        accuracy_overlap=hits / rows,
        overlap_interval=clopper_pearson(hits, rows, CONFIDENCE),
        difference=all_hits / all_rows - accuracy,
        p_value=binomial_tail(hits, rows, accuracy),
    )
    return result, []
