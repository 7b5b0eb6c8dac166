"""The pictures of the page: worst and best scans as overlays, and loss curves, made small."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from fsmis.reporting.runs import StoredRun
from fsmis.reporting.statistics import ranked
from fsmis.runs.records import Cell

WIDTH = 1000  # pixels of a picture at most
QUALITY = 80  # of WebP


@dataclass(frozen=True)
class Case:
    """A query scan: its Dice in percent by organ, the worst first, and their mean, and its overlay
    where one was drawn, as a data URL."""

    cell: Cell
    dice: dict[Any, float]
    mean: float
    overlay: str | None


@dataclass(frozen=True)
class Cases:
    """The worst and the best scans of the leading run of a method, and how to draw what is not."""

    name: str
    dataset: str
    worst: list[Case]
    best: list[Case]
    missing: str | None


def cases(
    frame: pd.DataFrame, names: pd.Series, runs: list[StoredRun], n_cases: int
) -> list[Cases]:
    """For each dataset, protocol and method the run of the highest mean, and its extreme scans.

    Args:
        frame: see ``overview.tabulate``.
        names: names of the runs, of the same index.
        runs: of the table.
        n_cases: how many worst and how many best, fewer where there are not twice as many scans.
    """
    leading = frame.dropna(subset=["mean"]).groupby(["dataset", "protocol", "method"], sort=False)
    found = []
    for index in leading["mean"].idxmax():
        run = runs[index]
        ascending = ranked(run.scores).index
        n_shown = min(n_cases, (len(ascending) + 1) // 2)
        worst = [_case(run, key) for key in ascending[:n_shown]]
        best = [_case(run, key) for key in ascending[n_shown:][-n_shown:][::-1]]
        undrawn = [case for case in worst + best if case.overlay is None]
        missing = _missing(undrawn, len(worst) + len(best))
        found.append(Cases(names[index], run.plan["dataset"], worst, best, missing))
    return found if n_cases else []


def loss_curves(run: StoredRun) -> dict[str, str]:
    """The figures of a trained method as data URLs, by the name of the fold."""
    paths = sorted((run.folder.path / "training").glob("*.png"))
    return {path.stem.replace("_", " "): url for path in paths if (url := _embedded(path))}


def _case(run: StoredRun, key: tuple[int, str, str]) -> Case:
    cell, dice = Cell(*key), pd.Series(run.dice.xs(key))
    overlay = _embedded(run.folder.path / f"figures/{cell.name}.png")
    by_organ = dice.reindex(run.plan["organs"]).dropna().sort_values(kind="stable").to_dict()
    return Case(cell, by_organ, float(dice.mean()), overlay)


def _missing(undrawn: list[Case], n_shown: int) -> str | None:
    if not undrawn:
        return None
    which = "No overlay was drawn" if len(undrawn) == n_shown else "Some overlays were not drawn"
    return f"{which}: the same command with figures=all draws every scan, figures=worst the worst."


def _embedded(path: Path) -> str | None:
    """A picture as a data URL, at most ``WIDTH`` wide; None where it is missing or damaged."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError:
        return None
    picture.thumbnail((WIDTH, 10 * WIDTH))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
