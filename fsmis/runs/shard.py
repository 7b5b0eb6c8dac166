"""Shares of the work for machines without a common scheduler: ``shard=1/4`` ... ``shard=4/4``."""

import re

from fsmis.errors import UserError
from fsmis.runs.records import Cell


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Number of a share, from 1, and how many there are; 1 of 1 for None.

    Raises:
        UserError: it is no such share.
    """
    if shard is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"shard={shard}: give i/n, the share i of n, such as 1/4 to 4/4")
    return int(match[1]), int(match[2])


def share(cells: list[Cell], every: list[Cell], shard: str | None, variant: str) -> list[Cell]:
    """Those of the cells that are in a share.

    A cell's share depends on its place among all cells of the run and on the variant alone, not on
    the folds selected or what is done: the shares of one n are disjoint, together they are all, and
    they differ by one cell of a run at most. The variant shifts the start, so that many small runs
    of a sweep spread as well.

    Args:
        cells: the requested ones.
        every: those of all folds.
        shard: as in ``parse_shard``.
        variant: hash of the variant, hexadecimal.

    Raises:
        UserError: ``shard`` is none.
    """
    number, n_shares = parse_shard(shard)
    place = {cell: position + int(variant, 16) for position, cell in enumerate(every)}
    return [cell for cell in cells if place[cell] % n_shares == number - 1]
