"""From score rows to the numbers of a table, in percent, with what is missing said beside them.

The convention of the field: Dice of an organ is averaged over the scans of a fold, then over the
folds; the mean of a table is the mean over organs. Beside it stands the Dice of the voxels of all
scans together, as some papers have it (FS-MedSAM2, arXiv 2409.04298): large organs count more.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from fsmis.runs.records import RunFolder

MEAN = "mean"
POOLED = "pooled Dice"
POOLED_NOTE = f"{POOLED}: of the voxels of all scans together; mean over organs."
PERCENT = ["dice", "iou"]
MILLIMETRES = ["hd95_mm", "assd_mm"]
PRESENCE = ["sensitivity", "specificity"]  # of slices, in percent
FALSE_ML = "fp_ml"
WHOLE = "full_volume"  # ends the name of a protocol that asks for every slice
MEASURES = PERCENT + MILLIMETRES
PAIRED = "paired difference"
DIFFERENCES = ["to paper", "to main", PAIRED]
P_VALUES = ["p", "p Holm"]
SMALLEST_P = 0.001  # that is printed
PARTIAL = "partial"  # how ``completeness`` begins where a dataset is not covered


def in_units(scores: pd.DataFrame, measure: str) -> pd.Series:
    """A column of ``scores.csv`` as numbers, overlaps in percent, distances in mm."""
    values = pd.to_numeric(scores[measure])
    return 100 * values if measure in PERCENT else values


def is_partial(covered: str) -> bool:
    """Whether what ``completeness`` says is that a dataset is not covered."""
    return covered.startswith(PARTIAL)


def summarise(scores: pd.DataFrame, organs: list[str]) -> pd.DataFrame:
    """Per-organ table of one run.

    Args:
        scores: rows of ``scores.csv`` of one run.
        organs: the organs of the dataset, in the order to show.

    Returns:
        One row for each organ, then their ``mean``, with columns ``organ``; ``dice`` and ``iou`` in
        percent, ``hd95_mm`` and ``assd_mm`` (over scans, then folds), and where slices without the
        organ were asked for what ``presence`` says; ``sd`` of the Dice over scans (NaN for fewer
        than two); ``pooled Dice`` in percent, see ``pooled``; ``scans`` that count; ``undefined``
        rows, whose Dice is no number and which count nowhere; ``empty`` rows without distances, as
        of an empty prediction, which count in Dice alone.
    """
    frame = scores.assign(**{name: in_units(scores, name) for name in MEASURES})
    by_organ = frame.groupby(["organ", "fold"])[MEASURES].mean().groupby("organ").mean()
    table = by_organ.reindex(organs)
    dice = frame.groupby("organ")["dice"]
    table["sd"] = dice.std()
    table[POOLED] = pooled(frame)
    table["scans"] = dice.count()
    table["undefined"] = dice.apply(lambda values: values.isna().sum())
    table["empty"] = frame.groupby("organ")["hd95_mm"].apply(lambda values: values.isna().sum())
    table = table.astype(float)
    by_scan = frame.groupby(["fold", "query_scan"])["dice"].mean()
    table.loc[MEAN] = table.mean()
    table.loc[MEAN, "sd"] = by_scan.std()
    table.loc[MEAN, "scans"] = by_scan.count()
    table.loc[MEAN, ["undefined", "empty"]] = table.loc[organs, ["undefined", "empty"]].sum()
    counts = ["scans", "undefined", "empty"]
    table[counts] = table[counts].fillna(0).astype(int)
    found = presence(scores).reindex(organs)
    if found["sensitivity"].notna().all():
        found.loc[MEAN] = found.mean()
        table = table.join(found)
    shown_presence = [name for name in (*PRESENCE, FALSE_ML) if name in table]
    return table.rename_axis("organ").reset_index()[
        ["organ", "dice", "sd", POOLED, "iou", *MILLIMETRES, *shown_presence, *counts]
    ]


def presence(scores: pd.DataFrame) -> pd.DataFrame:
    """How well slices that hold an organ are told from others: ``sensitivity`` and ``specificity``
    in percent and the wrongly segmented volume ``fp_ml``, by organ, over scans, then folds.

    NaN where a protocol does not ask for whole volumes, or a run of an earlier version did not
    count them; a scan whose every slice holds the organ has no specificity.

    Args:
        scores: rows of ``scores.csv`` of one run.
    """
    names = ["n_slices", "slices_true", "slices_found", "slices_hit", FALSE_ML]
    counted = scores.reindex(columns=names).apply(pd.to_numeric)
    lacking = counted["n_slices"] - counted["slices_true"]
    wrong = counted["slices_found"] - counted["slices_hit"]
    whole = scores["protocol"].str.endswith(WHOLE)  # others leave out slices beyond the organ
    found = pd.DataFrame(
        {
            "sensitivity": 100 * counted["slices_hit"] / counted["slices_true"],
            "specificity": 100 * (1 - wrong / lacking.where(lacking > 0)),
            FALSE_ML: counted[FALSE_ML],
        }
    ).where(whole)
    found[["organ", "fold"]] = scores[["organ", "fold"]]
    return found.groupby(["organ", "fold"]).mean().groupby("organ").mean()


def pooled(scores: pd.DataFrame) -> pd.Series:
    """Dice in percent of the voxels of all scans together, by organ; NaN without any voxel.

    Args:
        scores: rows of ``scores.csv`` of one run.
    """
    voxels = scores.groupby("organ")[["tp", "fp", "fn"]].sum().astype(float)
    common = 2 * voxels["tp"]
    return 100 * common / (common + voxels["fp"] + voxels["fn"])


def completeness(scores: pd.DataFrame, plan: dict[str, Any], states: list[str]) -> str:
    """How much of a dataset a table covers: ``20/20 scans``, or what it is ``partial`` in.

    Args:
        scores: rows of one run.
        plan: ``RunFolder.plan``.
        states: ``RunFolder.states`` of the plan's cells.
    """
    done, failed = states.count("done"), states.count("failed")
    notes = [f"{done}/{len(states)} scans" + (f" ({failed} failed)" if failed else "")]
    folds = sorted({cell.fold for cell in plan["cells"]})
    present = sorted(set(scores["fold"]))
    if present != folds:
        named = ", ".join(map(str, present)) or "none"
        notes.append(f"folds {named} of {len(folds)}")
    lacking = [organ for organ in plan["organs"] if organ not in set(scores["organ"])]
    if lacking:
        notes.append(f"no {', '.join(lacking)}")
    undefined = int(pd.to_numeric(scores["dice"]).isna().sum())
    undefined_note = f"; {undefined} undefined Dice left out" if undefined else ""
    partial = done < len(states) or len(notes) > 1
    return (f"{PARTIAL}: " if partial else "") + ", ".join(notes) + undefined_note


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table as text, a dash where there is nothing; counts of trouble that are all 0 left out."""

    def text(column: str, value: Any) -> str:
        if pd.isna(value):
            return "–"
        if not pd.api.types.is_float_dtype(table[column]):
            return str(value)
        if column in P_VALUES:
            return f"{value:.3f}" if value >= SMALLEST_P else f"<{SMALLEST_P}"
        if column in DIFFERENCES:
            return f"{value:+.2f}"
        return f"{value:.1f}" if column in (*MILLIMETRES, *PRESENCE, FALSE_ML) else f"{value:.2f}"

    quiet = [name for name in ("undefined", "empty") if name in table and not table[name].any()]
    table = table.drop(columns=quiet)
    return pd.DataFrame(
        {column: [text(column, value) for value in table[column]] for column in table.columns}
    )


def markdown(title: str, table: pd.DataFrame, notes: list[str]) -> str:
    """A Markdown page of one table."""
    text = shown(table).replace(r"\|", r"\\|", regex=True)  # a bar would end the column
    body = text.to_markdown(index=False, disable_numparse=True)
    return "\n\n".join([f"# {title}", body, *notes]) + "\n"


# What text holds that LaTeX reads otherwise, or that its fonts lack.
LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$", "–": "--", "±": r"$\pm$", "†": r"$\dagger$"}
    | {"≠": r"$\neq$", "✓": r"$\surd$"}
)
NUMBER = re.compile(r"[-+–<\[\d]")  # how a number, an interval or a dash begins


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


def write_summary(folder: RunFolder) -> tuple[str, pd.DataFrame, list[str], list[Path]]:
    """Write ``summary.csv`` and ``summary.md`` of a run.

    Returns:
        Title, table and notes (as ``summarise`` and ``completeness`` have them), and the paths.
    """
    plan, scores = folder.plan(), folder.scores()
    covered = completeness(scores, plan, folder.states(plan["cells"], scores))
    table = summarise(scores, plan["organs"])
    skipped = {
        f"{organ} not scored in scan {cell.query_scan} of fold {cell.fold}: {reason}"
        for cell in plan["cells"]
        for organ, reason in folder.read(cell).get("skipped", {}).items()
    }
    title = f"{plan['dataset']}, {plan['method']}, {plan['protocol']}"
    notes = [covered, f"known of the query's true extent: {plan['oracle']}", *sorted(skipped)]
    labels = {key: plan[key] for key in ("dataset", "method", "variant", "protocol")}
    labelled = table.assign(**labels, covered=covered)
    csv = labelled[[*labels, "covered", *table.columns]].to_csv(index=False)
    paths = [folder.write("summary.csv", csv)]
    paths.append(folder.write("summary.md", markdown(title, table, notes)))
    return title, table, notes, paths
