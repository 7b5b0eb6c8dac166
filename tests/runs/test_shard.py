"""Shares of the work: disjoint, together the whole, whatever is selected."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmis.errors import UserError
from fsmis.runs.records import Cell
from fsmis.runs.sweep import parse_shard, share

EVERY = [Cell(fold, str(fold), str(query)) for fold in range(5) for query in range(4)]
VARIANTS = st.text("0123456789abcdef", min_size=12, max_size=12)
FOLDS = st.lists(st.integers(0, 4), unique=True)


@given(n=st.integers(1, 30), variant=VARIANTS, folds=FOLDS)
def test_shares_are_disjoint_and_together_the_whole(n: int, variant: str, folds: list[int]) -> None:
    cells = [cell for cell in EVERY if cell.fold in folds]
    shares = [share(cells, EVERY, f"{number}/{n}", variant) for number in range(1, n + 1)]
    assert sorted(chain(*shares), key=cells.index) == cells
    assert all(part == sorted(part, key=cells.index) for part in shares)
    whole = [share(EVERY, EVERY, f"{number}/{n}", variant) for number in range(1, n + 1)]
    assert all(set(part) <= set(of_all) for part, of_all in zip(shares, whole, strict=True))
    assert max(map(len, whole)) - min(map(len, whole)) <= 1


def test_small_runs_of_a_sweep_spread_over_the_shares() -> None:
    first = EVERY[:1]
    taken = {
        number
        for variant in ("000000000000", "000000000001", "00000000000a")
        for number in (1, 2, 3)
        if share(first, EVERY, f"{number}/3", variant)
    }
    assert taken == {1, 2}


def test_no_shard_is_all() -> None:
    assert share(EVERY, EVERY, None, "abc") == EVERY


@pytest.mark.parametrize(
    "shard", ["0/4", "5/4", "x", "1/0", "1", "1/2/3", "-1/4", "1.0/4", " 1/4", "1/4\n", ""]
)
def test_bad_shards_are_refused(shard: str) -> None:
    with pytest.raises(UserError, match="give i/n, the share i of n"):
        parse_shard(shard)
