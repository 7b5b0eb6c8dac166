"""A table of a paper and its figure: CSV with all numbers, Markdown, LaTeX (booktabs), PNG, PDF."""

import re
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from fsmis.files.atomic import write_atomic, write_figure
from fsmis.reporting.tables import markdown, shown

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

    Args:
        stem: path without its suffix; its name is the label of the table in LaTeX.
        title: of the table.
        numbers: for the CSV file.
        table: for the other two.
        notes: sentences below the table.
        best: bool, like ``table``: cells to be printed bold.
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
    """A floating table in booktabs' rules, ``\\label{tab:<label>}``; the notes are in its caption.

    It needs ``\\usepackage{booktabs}`` and nothing else.
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
