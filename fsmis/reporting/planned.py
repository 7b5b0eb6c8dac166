"""Runs that a table needs, and those that exist.

``conf/experiment/<name>.yaml`` says which runs a table needs. Each is looked up by what identifies
it (see ``variant.configured``), so a run counts as finished where ``python -m fsmis run`` would
find it done, whichever command made it and for whichever table.
"""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from fsmis.files import write_atomic, write_figure
from fsmis.reporting.runs import Fold, StoredRun
from fsmis.reporting.tables import markdown, shown
from fsmis.runs.sweep import Job, compose_jobs
from fsmis.runs.variant import configured
from fsmis.settings import named


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run that an experiment plans.

    Attributes:
        values: value of each key that the experiment or the user sweeps, such as
            ``{"matcher": "ssim"}``.
        method: its choice in ``conf/method``.
        fold: ``protocol.fold``: a number, several, or ``all``.
        identity: see ``variant.configured``.
    """

    values: dict[str, str]
    method: str
    fold: Fold
    identity: dict[str, Any]


class Experiment:
    """The runs that ``conf/experiment/<name>.yaml`` plans.

    ``overrides`` are settings of all its runs, as ``fsmis.run -m`` takes them: they go before those
    of the experiment, and several values of a key are a sweep.

    Attributes:
        runs: in the order of the sweep.
        base: the run without any sweep; if it is one of ``runs``, the others are compared with it.
    """

    def __init__(self, name: str, overrides: Sequence[str] = ()) -> None:
        jobs = compose_jobs([f"experiment={name}", *overrides], multirun=True)
        self.runs = [_planned(job) for job in jobs]
        self._shared = jobs[0].shared
        (base,) = compose_jobs(self._shared, multirun=False)
        self.base = _planned(base)

    def command(self, runs: Sequence[PlannedRun], results: Path, *more: str) -> str:
        """The command that makes some of the runs, without repeating what is done."""
        values: dict[str, dict[str, None]] = {}  # of each key, each once, in order
        for run in runs:
            for key, value in run.values.items():
                values.setdefault(key, {})[value] = None
        swept = [f"{key}={','.join(found)}" for key, found in values.items()]
        words = [*self._shared, *more, *swept]
        return shlex.join(["python", "-m", "fsmis.run", "-m", *words, f"results_dir={results}"])


def _planned(job: Job) -> PlannedRun:
    identity = json.loads(json.dumps(configured(job.cfg)))
    return PlannedRun(job.values, named(job.cfg, job.choices), job.cfg.protocol.fold, identity)


@dataclass(frozen=True, eq=False)
class FinishedRuns:
    """Runs that are there.

    Attributes:
        results: a folder of them, where missing ones are to be made.
        runs: in the order in which they were read.
    """

    results: Path
    runs: Sequence[StoredRun]

    def find(self, planned: PlannedRun, any_code: bool = False) -> StoredRun | None:
        """The planned run, if it has scores, and with ``any_code`` even of code that has changed
        since; of several, as on other data, ``best``."""
        ignored = {"data", "code"} if any_code else {"data"}
        wanted = _without(planned.identity, ignored)
        return best(
            run.of(planned.fold)
            for run in self.runs
            if run.method == planned.method and _without(run.plan["identity"], ignored) == wanted
        )

    def data_root(self, dataset: str) -> list[str]:
        """``["dataset.root=..."]`` as runs of a dataset have it; empty where there are none."""
        of_dataset = [run for run in self.runs if run.plan["dataset"] == dataset]
        return [f"dataset.root={of_dataset[0].config.dataset.root}"] if of_dataset else []


def best(runs: Iterable[StoredRun]) -> StoredRun | None:
    """The fullest run with scores, and of those the latest."""
    return max((run for run in runs if len(run.scores)), key=_fullest_and_latest, default=None)


def _without(identity: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in keys}


def _fullest_and_latest(run: StoredRun) -> tuple[int, float]:
    return len(run.scores), (run.folder.path / "scores.csv").stat().st_mtime


# What text holds that LaTeX reads otherwise, or that its fonts lack.
LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$", "–": "--", "±": r"$\pm$", "†": r"$\dagger$"}
)
NUMBER = re.compile(r"[-+–<\[\d]")  # how a number, an interval or a dash begins
DPI = 200


def write_table(
    stem: Path,
    title: str,
    numbers: pd.DataFrame,
    table: pd.DataFrame,
    notes: list[str],
    best: pd.DataFrame | None = None,
) -> list[Path]:
    """Write ``<stem>.csv``, ``.md`` and ``.tex``; returns their paths.

    ``numbers`` go into the CSV file, ``table`` into the other two, with the cells of ``best``
    (bool) in bold. In LaTeX the stem's name is the label; ``notes`` are sentences below the table.
    """
    text = shown(table)
    bold = pd.DataFrame(False, text.index, text.columns) if best is None else best
    files = {
        "csv": numbers.to_csv(index=False),
        "md": markdown(title, text.mask(bold, "**" + text + "**"), notes),
        "tex": latex(title, stem.name, text, notes, bold),
    }
    paths = []
    for suffix, content in files.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_atomic(paths[-1], content.encode())
    return paths


def write_figures(stem: Path, figure: Figure) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.pdf``; returns their paths."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    with rc_context({"pdf.fonttype": 42}):  # text that stays text, as journals ask for
        for path in paths:
            write_figure(path, figure, DPI)
    return paths


def latex(title: str, label: str, text: pd.DataFrame, notes: list[str], bold: pd.DataFrame) -> str:
    """A floating table with booktabs' rules, ``\\label{tab:<label>}`` and the notes in its caption.

    It needs only ``\\usepackage{booktabs}``.
    """
    escaped = text.map(_escaped)
    escaped = escaped.mask(bold, r"\textbf{" + escaped + "}")
    escaped.columns = [_escaped(column) for column in text.columns]
    numeric = [all(NUMBER.match(cell) for cell in text[column]) for column in text.columns]
    return escaped.style.hide(axis="index").to_latex(
        column_format="".join("r" if right else "l" for right in numeric),
        position="t",
        position_float="centering",
        hrules=True,
        caption=_escaped(" ".join([f"{title}.", *notes])),
        label=f"tab:{label}",
    )


def _escaped(text: object) -> str:
    return str(text).translate(LATEX)
