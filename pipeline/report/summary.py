"""Summarizes the rows of a shard for the report. Summaries of several shards merge into one.

Random rows are those with the lowest uids: uids are hashes, so the choice depends on nothing else.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.hosts import hosts_of
from pairmill.schemas.status import Status

ROWS_PER_GROUP = 24
"""Maximum number of random rows that are kept for each group."""
MAX_HOSTS = 200_000
"""Maximum number of hosts; beyond it, the rarest are forgotten. The same applies to languages."""
_MAX_NAME_CHARS = 255
"""Maximum length of a host or language. No DNS name is longer (RFC 1035)."""

REJECT_COLUMNS = ("uid", "url", "caption_clean", "status", "status_detail", "fetched_at")
PAIR_COLUMNS = (
    *REJECT_COLUMNS,
    "kept",
    "original_format",
    "original_width",
    "original_height",
    "width",
    "height",
)
SIDE, ASPECT, CHARS, WORDS = "longer side", "aspect", "characters", "words"
"""Names of the numbers that are computed for each pair."""

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
"""float32 for float32 and float16 scores, so that they compare with a threshold as in `select`, and for sizes and
lengths; otherwise float64."""
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]

_FLOAT32 = pa.float32()
_STATUSES = pa.array([status.value for status in Status])


class Ref(NamedTuple):
    """One row of the dataset."""

    file: Literal["pairs", "rejects"]
    position: int
    """Position of its shard in the snapshot."""
    row: int
    """Row in that file."""


class Group(NamedTuple):
    """Rows that are shown together."""

    kind: Literal["chosen", "reason", "step", "only", "both"]
    name: str = ""
    """For a reason, the status or, for a custom rule, `custom_rule: NAME`; for a step, its number; for `only`, the name
    of a subset."""


@dataclass
class HostCount:
    """The rows of one host."""

    rows: int = 0
    chosen: int = 0
    statuses: Counter[str] = field(default_factory=Counter)


@dataclass
class Summary:
    """A summary of the rows of some shards."""

    rows: int = 0
    pairs: int = 0
    numbers: dict[str, list[Floats]] = field(default_factory=dict)
    """Name -> parts of shape (pairs,); NaN is null."""
    chosen: list[Bools] = field(default_factory=list)
    """Whether each pair is kept or, for a subset, in the subset; parts of shape (pairs,)."""
    refs: list[tuple[int, int]] = field(default_factory=list)
    """(position of the shard, number of its pairs), in the order of the parts."""
    times: list[npt.NDArray[np.int64]] = field(default_factory=list)
    """`fetched_at` in microseconds since 1970, of rows that have one."""
    outcomes: list[Codes] = field(default_factory=list)
    """For each of `times`, the index of the row's Status, or -1."""
    formats: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    hosts: dict[str, HostCount] = field(default_factory=dict)
    names_forgotten: bool = False
    """Whether there were too many hosts or languages to count all of them."""
    groups: dict[Group, list[tuple[str, Ref]]] = field(default_factory=dict)
    """Random rows of each group, with their uids, lowest uid first."""
    group_rows: Counter[Group] = field(default_factory=Counter)
    """The number of rows in each group."""

    def add(self, other: "Summary") -> None:
        """Merge the summary of later shards into this one."""
        self.rows += other.rows
        self.pairs += other.pairs
        for name, parts in other.numbers.items():
            self.numbers.setdefault(name, []).extend(parts)
        for mine, theirs in (
            (self.chosen, other.chosen),
            (self.refs, other.refs),
            (self.times, other.times),
            (self.outcomes, other.outcomes),
        ):
            mine.extend(theirs)  # type: ignore[arg-type]
        self.formats.update(other.formats)
        self.languages.update(other.languages)
        if len(self.languages) > MAX_HOSTS:
            self.languages = Counter(dict(self.languages.most_common(MAX_HOSTS // 2)))
            self.names_forgotten = True
        self.group_rows.update(other.group_rows)
        for group, rows in other.groups.items():
            self.groups[group] = nsmallest(ROWS_PER_GROUP, [*self.groups.get(group, []), *rows])
        self._add_hosts(other.hosts)

    def _add_hosts(self, hosts: Mapping[str, HostCount]) -> None:
        for name, count in hosts.items():
            mine = self.hosts.setdefault(name, HostCount())
            mine.rows += count.rows
            mine.chosen += count.chosen
            mine.statuses.update(count.statuses)
        if len(self.hosts) > MAX_HOSTS:
            ordered = sorted(self.hosts.items(), key=lambda item: (-item[1].rows, item[0]))
            self.hosts = dict(ordered[: MAX_HOSTS // 2])
            self.names_forgotten = True

    def number(self, name: str) -> Floats:
        """The values of the number `name` for all pairs; shape (pairs,)."""
        return np.concatenate([np.empty(0, np.float32), *self.numbers.get(name, [])])

    def is_chosen(self) -> Bools:
        """Whether each pair is kept or, for a subset, in the subset; shape (pairs,)."""
        return np.concatenate([np.empty(0, np.bool_), *self.chosen])

    def pair_refs(self) -> npt.NDArray[np.int64]:
        """(position of the shard, row) of all pairs; shape (pairs, 2)."""
        parts = [np.stack([np.full(rows, position), np.arange(rows)], axis=1) for position, rows in self.refs]
        return np.concatenate([np.empty((0, 2), np.int64), *parts])


def summarize(
    position: int,
    pairs: pa.Table,
    rejects: pa.Table | None,
    scores: Sequence[str],
    language: str | None,
    chosen: Bools | None,
    labels: Mapping[Group, Bools],
    custom_rules: Collection[str] = (),
) -> Summary:
    """Summarize one shard.

    Args:
        position: Position of the shard in the snapshot.
        pairs: PAIR_COLUMNS, `scores` and `language` of its pairs.
        rejects: REJECT_COLUMNS and `language` of its rejects; None if it has none.
        scores: The score columns.
        language: The column with languages.
        chosen: Whether each pair is in the subset, shape (pairs,); None for the kept pairs.
        labels: More groups of pairs: whether each pair belongs to the group, shape (pairs,).
        custom_rules: Names of custom rules. Rows dropped by a rule of another name are in the group `custom_rule`.
    """
    kept = np.asarray(pairs["kept"].combine_chunks().to_numpy(zero_copy_only=False), bool)
    found = Summary(pairs.num_rows, pairs.num_rows, refs=[(position, pairs.num_rows)])
    found.chosen = [kept if chosen is None else chosen]
    found.numbers = {name: [values] for name, values in _numbers(pairs, scores).items()}
    found.formats.update(_counts(pairs["original_format"]))
    of_pairs = {Group("chosen"): found.chosen[0], **labels, **_reasons(pairs, custom_rules)}
    _add_rows(found, "pairs", position, pairs, of_pairs, language)
    _add_hosts(found, pairs, found.chosen[0])
    if rejects is not None and rejects.num_rows:
        found.rows += rejects.num_rows
        _add_rows(found, "rejects", position, rejects, _reasons(rejects, custom_rules), language)
        _add_hosts(found, rejects, np.zeros(rejects.num_rows, bool))
    return found


def _add_rows(
    found: Summary,
    file: Literal["pairs", "rejects"],
    position: int,
    table: pa.Table,
    groups: Mapping[Group, Bools],
    language: str | None,
) -> None:
    """Add the groups, the times and the languages of the rows of a file."""
    uids = table["uid"].combine_chunks()
    order = np.asarray(pc.sort_indices(uids))
    for group, members in groups.items():
        if number := int(members.sum()):
            rows = order[members[order]][:ROWS_PER_GROUP]
            some = [
                (uid, Ref(file, position, int(row))) for uid, row in zip(uids.take(rows).to_pylist(), rows, strict=True)
            ]
            found.groups[group] = nsmallest(ROWS_PER_GROUP, [*found.groups.get(group, []), *some])
            found.group_rows[group] += number
    fetched = table.select(["fetched_at", "status"]).filter(table["fetched_at"].is_valid())  # without the long captions
    found.times.append(np.asarray(fetched["fetched_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()), np.int64))
    found.outcomes.append(np.asarray(pc.index_in(fetched["status"], value_set=_STATUSES).fill_null(-1), np.int32))
    if language is not None:
        found.languages.update(_counts(table[language]))


def _reasons(table: pa.Table, custom_rules: Collection[str]) -> dict[Group, Bools]:
    """For each reason, whether it rejected each row."""
    reasons = table["status"].combine_chunks()
    custom = pc.equal(reasons, Status.CUSTOM_RULE.value)
    if pc.any(custom).as_py():
        rule = pc.replace_substring_regex(pc.fill_null(table["status_detail"].combine_chunks(), ""), r"(?s):.*$", "")
        named = pc.binary_join_element_wise(pa.scalar(Status.CUSTOM_RULE.value), rule, ": ")
        known = pc.is_in(rule, value_set=pa.array(list(custom_rules), pa.string()))
        reasons = pc.if_else(pc.and_(custom, known), named, reasons)
    encoded = reasons.dictionary_encode()
    codes = np.asarray(encoded.indices)
    names = encoded.dictionary.to_pylist()
    return {Group("reason", name): codes == code for code, name in enumerate(names) if name != Status.OK}


def _numbers(pairs: pa.Table, scores: Sequence[str]) -> dict[str, Floats]:
    captions = pairs["caption_clean"]
    sides = [pc.coalesce(pairs[f"original_{name}"], pairs[name]) for name in ("width", "height")]
    width, height = (_floats(side) for side in sides)
    return {
        **{name: _floats(pairs[name], _score_type(pairs[name].type)) for name in scores},
        SIDE: np.maximum(width, height),
        ASPECT: width / np.where(height > 0, height, np.nan),
        CHARS: _floats(pc.utf8_length(captions)),
        WORDS: _floats(_words(captions)),
    }


def _words(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """The number of words in each caption. Clean captions have single spaces, and only between words."""
    return pc.if_else(pc.equal(captions, ""), 0, pc.add(pc.count_substring(captions, " "), 1))


def _score_type(kind: pa.DataType) -> pa.DataType:
    return pa.float32() if pa.types.is_float32(kind) or pa.types.is_float16(kind) else pa.float64()


def _floats(column: pa.ChunkedArray, kind: pa.DataType = _FLOAT32) -> Floats:
    return np.asarray(column.cast(kind, safe=False).to_numpy(), kind.to_pandas_dtype())


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Value, cut to _MAX_NAME_CHARS -> number of rows; without nulls."""
    counts = pc.value_counts(pc.utf8_slice_codeunits(column.combine_chunks(), 0, _MAX_NAME_CHARS)).to_pylist()
    return {str(each["values"]): each["counts"] for each in counts if each["values"] is not None}


def _add_hosts(found: Summary, table: pa.Table, chosen: Bools) -> None:
    hosts = pc.utf8_slice_codeunits(hosts_of(table["url"]), 0, _MAX_NAME_CHARS)
    grouped = pa.table({"host": hosts, "status": table["status"], "chosen": pa.array(chosen)})
    grouped = grouped.filter(grouped["host"].is_valid())
    counts = grouped.group_by(["host", "status"]).aggregate([("chosen", "count"), ("chosen", "sum")])
    for host, status, rows, number in zip(
        *(counts[n].to_pylist() for n in ("host", "status", "chosen_count", "chosen_sum")), strict=True
    ):
        count = found.hosts.setdefault(host, HostCount())
        count.rows += rows
        count.chosen += number
        count.statuses[status] += rows
