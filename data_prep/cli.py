"""The command line that the datasets share."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra.utils
from omegaconf import OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.prepare import Outcome, prepare
from data_prep.source import Source
from fsmis.cli import CONF_DIR, SOME_FAILED, command_line, console, errors


def load_source(name: str) -> Source:
    """The source that ``conf/data_prep/<name>.yaml`` describes.

    There, ``prepared`` stands for ``conf/dataset``, which says what prepared scans have in common.
    """
    raw = OmegaConf.load(CONF_DIR / "data_prep" / f"{name}.yaml")
    prepared = OmegaConf.load(CONF_DIR / "dataset" / f"{raw.dataset}.yaml")
    config = OmegaConf.create({"raw": raw, "prepared": prepared})
    source: Source = hydra.utils.instantiate(config.raw, _convert_="all")
    return source


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Prepare a dataset; exit code 2 on bad input, 1 where scans failed, with a line for each."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{name}",
        description=f"Prepare the raw download; numbers are in conf/data_prep/{name}.yaml.",
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder or zip as downloaded")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared scans")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    with command_line():
        source = load_source(name)
        with _progress() as advance:
            outcome = prepare(source, options.raw, options.out, options.workers, advance)
    console.print(
        f"{options.out}: {len(outcome.prepared)} scans prepared, {len(outcome.kept)} were there, "
        f"{len(outcome.failed)} failed; look at {options.out / 'contact_sheet.png'}"
    )
    if outcome.absent:
        console.print(f"not in the raw data: scans {', '.join(outcome.absent)} of {source.dataset}")
    for scan_id, losses in outcome.losses.items():
        for loss in losses:
            errors.print(f"scan {scan_id}: {loss} in conf/data_prep/{name}.yaml")
    for scan_id, reason in outcome.failed.items():
        errors.print(f"scan {scan_id} failed: {reason}")
    if outcome.failed:
        raise SystemExit(SOME_FAILED)


@contextmanager
def _progress() -> Iterator[Callable[[str, Outcome], None]]:
    """A bar of scans; without a terminal, a line for each."""
    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def advance(scan_id: str, outcome: Outcome) -> None:
            done = len(outcome.prepared) + len(outcome.kept) + len(outcome.failed)
            bar.update(task, completed=done, total=outcome.total)
            if not console.is_terminal:
                state = "failed" if scan_id in outcome.failed else "done"
                console.print(f"{done}/{outcome.total} scan {scan_id}: {state}")

        yield advance
