"""THE place where all but one of a shard's pairs with the same uid are refused.

The first of these pairs that every rule keeps stays. If there is none, the first pair stays. So a pair that a rule
refuses never displaces one that every rule keeps. Rows that are not pairs keep their own status and are ignored.
"""

from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.dataset.previous_generation import PreviousGeneration
from pairmill.schemas.pairs import IS_PAIR_COLUMN, KEPT_STATUS
from pairmill.schemas.status import Status

_COLUMNS = ["uid", "row_id", "status"]


def refuse_duplicates(table: pa.Table) -> pa.Table:
    """An in-flight table whose pairs have distinct uids; duplicates get the status `duplicate_in_shard`."""
    return _refuse(table, _duplicates([_pairs(table)]))


def refuse_duplicates_in_generation(
    table: pa.Table, previous: PreviousGeneration
) -> tuple[pa.Table, PreviousGeneration]:
    """Like `refuse_duplicates`, for the rows that were fetched again and all other rows of the shard (`previous`).

    If a new pair and a committed pair have the same uid, the committed pair stays, unless every rule keeps the new one
    but not the committed one. In that case, the committed pair becomes a reject.
    """
    duplicates = _duplicates([previous.pairs, _pairs(table)])
    is_duplicate = pc.is_in(previous.pairs["row_id"], value_set=pa.array(duplicates, pa.string()))
    if pc.any(is_duplicate).as_py():
        names = previous.rejects.column_names
        moved = _with_status(previous.pairs.filter(is_duplicate).select(names), duplicates)
        earlier = _with_details(previous.rejects, duplicates)
        rejects = pa.concat_tables([earlier, moved.cast(earlier.schema)])
        previous = replace(previous, pairs=previous.pairs.filter(pc.invert(is_duplicate)), rejects=rejects)
    return _refuse(table, duplicates), previous


def _pairs(table: pa.Table) -> pa.Table:
    return table.select(_COLUMNS).filter(table[IS_PAIR_COLUMN.name])


def _duplicates(tables: Iterable[pa.Table]) -> dict[str, str]:
    """row_id of each pair to refuse -> row_id of the pair with its uid that stays."""
    columns = [table.select(_COLUMNS) for table in tables]
    pairs = pa.concat_tables([each.cast(columns[0].schema) for each in columns])
    if pc.count_distinct(pairs["uid"]).as_py() == pairs.num_rows:
        return {}
    rows = list(zip(*(column.to_pylist() for column in pairs), strict=True))
    chosen: dict[str, str] = {}
    for uid, row_id, _ in sorted(rows, key=lambda row: row[2] != KEPT_STATUS):
        chosen.setdefault(uid, row_id)
    return {row_id: chosen[uid] for uid, row_id, _ in rows if chosen[uid] != row_id}


def _refuse(table: pa.Table, duplicates: dict[str, str]) -> pa.Table:
    if not duplicates:
        return table
    table = _with_status(table, duplicates)
    index = table.schema.get_field_index(IS_PAIR_COLUMN.name)
    is_duplicate = pc.is_in(table["row_id"], value_set=pa.array(duplicates, pa.string()))
    return table.set_column(index, IS_PAIR_COLUMN, pc.and_not(table[IS_PAIR_COLUMN.name], is_duplicate))


def _with_details(rejects: pa.Table, duplicates: dict[str, str]) -> pa.Table:
    """The same rejects, but earlier duplicates of pairs that are refused now name the pair that stays."""
    details = rejects["status_detail"].to_pylist()
    for row, status in enumerate(rejects["status"].to_pylist()):
        if status == Status.DUPLICATE_IN_SHARD:
            name = details[row].removeprefix("row ")
            details[row] = f"row {duplicates.get(name, name)}"
    index = rejects.schema.get_field_index("status_detail")
    field = rejects.schema.field(index)
    return rejects.set_column(index, field, pa.array(details, field.type))


def _with_status(table: pa.Table, duplicates: dict[str, str]) -> pa.Table:
    statuses, details = table["status"].to_pylist(), table["status_detail"].to_pylist()
    for row, row_id in enumerate(table["row_id"].to_pylist()):
        if row_id in duplicates:
            statuses[row], details[row] = Status.DUPLICATE_IN_SHARD.value, f"row {duplicates[row_id]}"
    for name, values in (("status", statuses), ("status_detail", details)):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    return table
