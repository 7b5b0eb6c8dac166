"""The report as one HTML page: tables, charts, pictures and settings in a file that needs no other.

``write_page`` fills ``page.html.j2``, which includes ``page.css`` and ``page.js``.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from fsmis.files.atomic import write_atomic
from fsmis.reporting.overview import labels
from fsmis.reporting.page.cases import cases, loss_curves
from fsmis.reporting.page.plots import charts
from fsmis.reporting.page.tables import published, results
from fsmis.reporting.runs import StoredRun
from fsmis.reporting.tested import paired_tests
from fsmis.runs.provenance import code_version, now


@dataclass(frozen=True, eq=False)
class Shown:
    """A run with all that the page shows of it.

    Attributes:
        name: what tells it from the others of its dataset.
        anchor: id of its part of the page.
        run: the run.
    """

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
        """Text of its small files, by name; those that are there."""
        paths = [self.run.folder.path / name for name in ("config.yaml", "provenance.json")]
        return {path.name: path.read_text(errors="replace") for path in paths if path.is_file()}

    @cached_property
    def losses(self) -> dict[str, str]:
        """Loss curves of a trained method (see ``cases.loss_curves``)."""
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
        path: of the page.
        title: its heading.
        notes: how to read its numbers.
        runs: to show.
        frame: their table (see ``overview.tabulate``).
        settings: its columns of settings.
        n_cases: worst and best scans of the leading run of a method that are shown as overlays.
        n_charted: runs of a dataset in a chart, those of the highest mean; tables have all.
        main: method or variant of the runs to test the others against; None for the project's own.

    Raises:
        UserError: the page cannot be written, or several runs are of the main method.
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
        loader=PackageLoader("fsmis.reporting", "page"),
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
