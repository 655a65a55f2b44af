"""Tests that columns and keys are found by name exactly as by a slower loop over all names."""

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.source.names import Names, find_column

ALIKE = st.sampled_from(["url", "URL", " url", "u rl", "u_rl", "u-rl", "U  rl", "", "-", "_", "İ", "i̇", "text"])


def searched(names: Sequence[str], wanted: str) -> str | None:
    if wanted in names:
        return wanted
    for fold in (lambda name: name.strip().lower(), lambda name: re.sub(r"[\s_-]+", "_", name.strip().lower())):
        close = [name for name in names if fold(name) == fold(wanted)]
        if close:
            return close[0] if len(close) == 1 else None
    return None


@given(st.lists(ALIKE | st.text(max_size=3), unique=True, max_size=6), st.lists(ALIKE, min_size=1, max_size=4))
def test_a_name_is_found_as_by_a_linear_search(names: list[str], wanted: list[str]) -> None:
    known = Names(names)
    for each in wanted:
        assert known.find(each) == find_column(iter(names), each) == searched(names, each)
