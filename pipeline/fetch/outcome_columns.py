"""THE place where outcomes become columns of the shard's table."""

from collections.abc import Mapping

import pyarrow as pa

from pairmill.pipeline.common.arrow import binary_column
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.pipeline.fetch.url_join import rows_to_fetch
from pairmill.pipeline.image.measure_columns import append_measures
from pairmill.schemas.job.pictures import PictureScore
from pairmill.schemas.pairs import FETCHED, IMAGE_COLUMN, KEPT_STATUS, PICTURE
from pairmill.schemas.status import Status

NO_SCORES: Mapping[str, PictureScore] = {}

_NO_URL = FetchOutcome(Status.URL_MISSING)


def with_outcomes(
    table: pa.Table,
    outcomes: Mapping[str, FetchOutcome],
    sha256_column: str | None,
    scores: Mapping[str, PictureScore] = NO_SCORES,
) -> pa.Table:
    """The in-flight table with the outcomes of its `ok` rows; all other rows, and their order, stay as they are.

    `outcomes`: by URL. `sha256_column`: see `rows_to_fetch`. Sets `status`, `status_detail`, the columns of FETCHED and
    PICTURE, and `image` (large_binary). They are null where an outcome lacks them; `image`, the columns of PICTURE, and
    the appended columns of `scores` are also null where the row is refused.
    """
    statuses = table["status"].to_pylist()
    details = table["status_detail"].to_pylist()
    fetched: list[FetchOutcome | None] = [None] * table.num_rows
    for row in rows_to_fetch(table, sha256_column):
        outcome = _for_row(_NO_URL if row.url is None else outcomes[row.url], row.sha256)
        fetched[row.index] = outcome
        statuses[row.index], details[row.index] = outcome.status.value, outcome.detail
    images = [outcome.image if outcome and outcome.status == KEPT_STATUS else None for outcome in fetched]
    columns = {
        "status": statuses,
        "status_detail": details,
        **{name: [outcome and getattr(outcome, name) for outcome in fetched] for name in FETCHED.names},
        **{name: [image and getattr(image, name) for image in images] for name in PICTURE.names},
    }
    for name, values in columns.items():
        table = _replaced(table, name, pa.array(values, table.schema.field(name).type))
    table = append_measures(table, scores, [None if image is None else image.measured for image in images])
    return _replaced(
        table, IMAGE_COLUMN.name, binary_column([None if image is None else image.image for image in images])
    )


def _for_row(outcome: FetchOutcome, expected_sha256: str | None) -> FetchOutcome:
    """The URL's outcome for one row: rows with the same URL may expect different bytes."""
    if expected_sha256 is None or outcome.sha256 in (None, expected_sha256):
        return outcome
    return outcome.refused(Status.CONTENT_CHANGED, f"expected sha256 {expected_sha256[:64]}")


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)
