"""What a run shows on the terminal: tables, progress, and how many images there are to encode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fsmis.cli import console, errors
from fsmis.data.protocol import Episode, served_slices
from fsmis.methods import Method
from fsmis.reporting.tables import POOLED, shown, summarise
from fsmis.runs.records import Cell, RunFolder

if TYPE_CHECKING:  # it loads torch, which tables do without
    from fsmis.pipeline.matching import Matcher

COLUMNS = {"dice": "Dice %", "sd": "sd", "iou": "IoU %", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}
COLUMNS |= {
    POOLED: "pooled\nDice %",
    "sensitivity": "slices\nsens. %",
    "specificity": "slices\nspec. %",
    "fp_ml": "false\nml",
    "to paper": "to\npaper",
    "to main": "to\nmain",
    "paired difference": "paired\ndifference",
    "p Holm": "p\nHolm",
    "95 % interval": "95 %\ninterval",
}
WATCHED_S = 0.2  # how often a bar asks how far the model is


@contextmanager
def progress(
    folder: RunFolder, requested: list[Cell], pending: list[Cell], organs: list[str]
) -> Iterator[Callable[[Cell, pd.DataFrame], None]]:
    """A bar of scans with the current mean Dice; where nobody watches, a line for each scan.

    Yields:
        To be called after each cell, with all scores so far.
    """
    total, done = len(requested), len(requested) - len(pending)
    if done:
        console.print(f"{done}/{total} scans were done before, {folder.path}")
    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, TextColumn("{task.description}"), console=console)
    task = bar.add_task("", total=total, completed=done)

    def advance(cell: Cell, scores: pd.DataFrame) -> None:
        nonlocal done
        done += 1
        record = folder.read(cell)
        mean = summarise(scores, organs)["dice"].iloc[-1]
        so_far = f"mean Dice {mean:.2f}" if pd.notna(mean) else "no score yet"
        bar.update(task, advance=1, description=so_far)
        if record["state"] == "failed":
            errors.print(f"scan {cell.query_scan} of fold {cell.fold} failed: {record['reason']}")
        if not console.is_terminal:
            seen = f"scan {cell.query_scan} of fold {cell.fold}: {record['state']}"
            console.print(f"{done}/{total} {seen}, {so_far}")

    if console.is_terminal and pending:
        with bar:
            yield advance
    else:
        yield advance


def table(title: str, frame: pd.DataFrame, notes: list[str], bold: Sequence[int] = ()) -> None:
    """Print a table with its notes below; rows at the positions ``bold`` stand out."""
    text = shown(frame)
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in text.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        justify: JustifyMethod = "right" if numeric else "left"
        # of a terminal too narrow, text is broken and never a number
        width = text[column].str.len().max() if numeric and len(text) else None
        name = COLUMNS.get(column, column)
        grid.add_column(name, justify=justify, overflow="fold", min_width=width)
    for position, (_, row) in enumerate(text.iterrows()):
        emphasised = position in bold or row.iloc[0] == "mean"
        grid.add_row(*row, style="bold" if emphasised else None)
    console.print(grid)
    for note in notes:
        console.print(note)


def time_left() -> Progress:
    """A bar that tells the time that is left; nothing where nobody watches."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    left = TextColumn("left"), TimeRemainingColumn()
    hidden = not console.is_terminal
    return Progress(*columns, *left, console=console, transient=True, disable=hidden)


@contextmanager
def segmenting(
    bar: Progress, text: str, method: Method, settings: DictConfig, episode: Episode
) -> Iterator[None]:
    """Show in the bar, meanwhile, how many images the model has encoded of those it will at most.

    Args:
        bar: of ``time_left``.
        text: what is being done.
        method: that does it.
        settings: that it was built from.
        episode: that it segments.
    """
    from fsmis.segmenters.network import NetworkSegmenter

    network = getattr(method, "segmenter", None)
    model = network if isinstance(network, NetworkSegmenter) else None
    total = encoder_images(settings, *looked_at(episode, untold=True)) or None
    before = model.images_encoded if model else 0
    task, done = bar.add_task(text, total=total), threading.Event()

    def watch() -> None:
        while model and not done.wait(WATCHED_S):
            bar.update(task, completed=model.images_encoded - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        bar.remove_task(task)


Served = Mapping[int, list[int]]  # the query slices that each support slice serves


def looked_at(episode: Episode, untold: bool) -> tuple[Mapping[str, Served], int, int]:
    """``served``, ``beyond`` and ``placing`` of :func:`encoder_images` for an episode.

    If ``untold``, which of several support slices serves has to be found: any may serve any slice.
    """
    whole = len(episode.support.image)
    beyond = whole if episode.whole_volume else 0
    tasks = episode.organs
    if untold and any(len(task.support_slices) > 1 for task in tasks.values()):
        any_ = {
            organ: dict.fromkeys(task.support_slices.tolist(), task.query_slices.tolist())
            for organ, task in tasks.items()
        }
        return any_, beyond, whole + len(episode.query_slices)
    told = {o: served_slices(replace(episode, organs={o: task})) for o, task in tasks.items()}
    return told, beyond, 0


def encoder_images(
    method: DictConfig, served: Mapping[str, Served], beyond: int = 0, placing: int = 0
) -> int:
    """Most images of one episode: distinct query slices, and support slices or their copies.

    Zoom adds the same again for each organ and pass, and once for organs in doubt. Without zoom,
    the count is exact for a matcher that reads the encoder's features, and so all copies. Other
    matchers skip copies that no query slice matches, and zoom skips organs that were not found, are
    not in doubt or share their crops, which only a run can tell. What a feature cache already holds
    is not subtracted.

    ``served`` is by organ (``served_slices`` of its task); ``beyond`` counts the slices of the
    whole support, where an episode covers every slice of the query, ``placing`` those that are
    looked at to find which support slice serves. 0 without a segmenter.
    """
    if "segmenter" not in method:
        return 0
    together: dict[int, set[int]] = {}
    for of_organ in served.values():
        for z, slices in of_organ.items():
            together.setdefault(z, set()).update(slices)
    whole = {z: sorted(slices) for z, slices in together.items()}
    images = _images(method, whole) + placing
    said = partial(OmegaConf.select, method)  # None in a method of one's own that has other parts
    if said("extent.when") == "whole_volume" and said("extent.place"):
        images += beyond
    if passes := said("zoom.passes"):
        looks = passes + bool(said("zoom.doubt"))
        images += looks * sum(_images(method, of) for of in served.values())
    if (scales := said("scale.scales")) and (most := said("scale.slices")):
        few = sum(min(most, sum(len(slices) for slices in of.values())) for of in served.values())
        images += few + (1 + len(scales)) * len(whole)
    return images


COPYING = {"support_set", "memories", "matcher", "flip"}  # settings of a method that has copies


def _images(method: DictConfig, served: Served) -> int:
    queries = len({query for slices in served.values() for query in slices})
    if COPYING - set(method):
        return queries + len(served)
    support_set = instantiate(method.support_set)
    sizes = {z: support_set.size(len(slices)) for z, slices in served.items()}
    used = sum(min(sizes[z], method.memories * len(slices)) for z, slices in served.items())
    matcher: type[Matcher] = get_class(method.matcher._target_)
    mirrored = queries + used if method.flip else 0
    return queries + (sum(sizes.values()) if matcher.on_features else used) + mirrored
