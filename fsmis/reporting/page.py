"""The report as one self-contained HTML page: tables, charts, pictures and settings.

``write_page`` fills ``page.html.j2``, which includes ``page.css`` and ``page.js``.
"""

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from fsmis.files import now, write_atomic
from fsmis.reporting.comparison import paired_tests
from fsmis.reporting.page_plots import charts
from fsmis.reporting.page_tables import published, results
from fsmis.reporting.runs import StoredRun, best_first, labels
from fsmis.reporting.statistics import ranked
from fsmis.runs.records import Cell
from fsmis.source import code_version


@dataclass(frozen=True, eq=False)
class Shown:
    """A run as the page shows it: ``name`` distinguishes it within its dataset, ``anchor`` is the
    HTML id of its section."""

    name: str
    anchor: str
    run: StoredRun

    @cached_property
    def notes(self) -> list[str]:
        """What is missing and why: organs that are not scored, scans that failed."""
        notes = []
        for cell in self.run.plan["cells"]:
            record = self.run.folder.read(cell)
            scan = f"scan {cell.query_scan} of fold {cell.fold}"
            notes += [f"{scan}: {o} {why}" for o, why in record.get("skipped", {}).items()]
            if "reason" in record:
                notes.append(f"{scan} {record['state']}: {record['reason']}")
        return notes

    @cached_property
    def files(self) -> dict[str, str]:
        paths = [self.run.folder.path / name for name in ("config.yaml", "provenance.json")]
        return {path.name: path.read_text(errors="replace") for path in paths if path.is_file()}

    @cached_property
    def losses(self) -> dict[str, str]:
        return loss_curves(self.run)


def write_page(
    path: Path,
    title: str,
    notes: list[str],
    runs: list[StoredRun],
    frame: pd.DataFrame,
    settings: list[str],
    n_cases: int,
    n_charted: int,
    main: str | None,
) -> None:
    """Write the page.

    Args:
        notes: how to read its numbers.
        frame: table of the runs (see ``runs.tabulate``).
        settings: its columns of settings.
        n_cases: worst and best scans of the leading run of a method to show as overlays.
        n_charted: most runs of a dataset in a chart, those with the highest mean.
        main: method or variant of the runs to test the others against; None for the project's own.

    Raises UserError where the page cannot be written or several runs match ``main``.
    """
    by_dataset = [rows for _, rows in frame.groupby("dataset", sort=False)]
    names = pd.concat([pd.Series(labels(rows, settings), rows.index) for rows in by_dataset])
    shown = {
        index: Shown(names[index], f"run-{row}", runs[index])
        for row, index in enumerate(frame.index)
    }
    tested = paired_tests(runs, names, main)
    anchors = {index: run.anchor for index, run in shown.items()}
    environment = Environment(
        loader=PackageLoader("fsmis.reporting", "page_files"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        title=title,
        notes=notes,
        made=now(),
        code=code_version(),
        results=results(frame, settings, runs, anchors, tested),
        charts=charts(frame, settings, runs, n_charted),
        cases=cases(frame, names, runs, n_cases),
        published=published(frame, runs),
        runs=list(shown.values()),
    )
    write_atomic(path, html.encode())


WIDTH = 1000  # pixels of a picture at most
QUALITY = 80  # of WebP


@dataclass(frozen=True)
class Case:
    """A query scan with its Dice in percent by organ, the worst first, their mean, and its overlay
    as a data URL where one was drawn."""

    cell: Cell
    dice: dict[Any, float]
    mean: float
    overlay: str | None


@dataclass(frozen=True)
class Cases:
    """The worst and best scans of the leading run of a method, and how to draw missing overlays."""

    name: str
    dataset: str
    worst: list[Case]
    best: list[Case]
    missing: str | None


def cases(
    frame: pd.DataFrame, names: pd.Series, runs: list[StoredRun], n_cases: int
) -> list[Cases]:
    """For each dataset, protocol and method the best run (see ``best_first``), its extreme scans.

    ``n_cases`` worst and as many best ones are taken, fewer where there are not twice as many.
    """
    leading = frame.loc[best_first(frame, runs)].drop_duplicates(["dataset", "protocol", "method"])
    found = []
    for index in frame.index[frame.index.isin(leading.index)]:
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
