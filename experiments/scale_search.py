"""What searching the support's scale gains where support and query differ, and costs where not.

    python -m experiments.scale_search [key=value ...]

Composes ``conf/config.yaml`` with the overrides, takes the support of every episode several times
as large as it is, as though its header lied, and segments a few slices of each organ by it alone
(one memory, one pass), with the support as it came and at the scale that ``method.scale`` finds.
Writes ``<results_dir>/scale_search.csv``, one row for each query, factor and organ, and prints the
mean Dice by factor.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import track

from fsmis.cli import command_line, console
from fsmis.data.dataset import Scan
from fsmis.data.protocol import Episode, truth
from fsmis.errors import UserError
from fsmis.files import write_atomic
from fsmis.pipeline.alignment import ScaleSearch, scaled, some_slices
from fsmis.pipeline.prompting import EncodedEpisode, single_support
from fsmis.segmenters import Segmenter
from fsmis.settings import composed

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)  # size of the support against what it is


def dice(
    segmenter: Segmenter, episode: Episode, query: Scan, labels: dict[str, int]
) -> dict[str, float]:
    """Dice in [0, 1] of each organ, the mean over the episode's slices that show it."""
    answers = single_support(segmenter, episode, EncodedEpisode.encode(segmenter, episode))
    found = {}
    for organ, task in episode.organs.items():
        true, masks = truth(query, labels[organ], task), answers[organ].masks
        shown = true.any(axis=(1, 2))
        both, sizes = (masks & true).sum((1, 2)), masks.sum((1, 2)) + true.sum((1, 2))
        if shown.any():
            found[organ] = float((2 * both[shown] / sizes[shown]).mean())
    return found


def measure(
    segmenter: Segmenter,
    search: ScaleSearch,
    episode: Episode,
    query: Scan,
    labels: dict[str, int],
) -> pd.DataFrame:
    """Columns ``factor``, ``found`` (the scale that was taken), ``organ``, ``as_it_is`` and
    ``searched`` (Dice)."""
    rows = []
    for factor in FACTORS:
        other = scaled(episode, factor)
        searched = search.search(segmenter, other)
        as_it_is, better = (
            dice(segmenter, some_slices(which, search.slices), query, labels)
            for which in (other, searched)
        )
        rows += [(factor, search.found, organ, as_it_is[organ], better[organ]) for organ in better]
    return pd.DataFrame(rows, columns=["factor", "found", "organ", "as_it_is", "searched"])


def run(cfg: DictConfig) -> pd.DataFrame:
    """``measure`` of every scan that is queried; UserError where the method searches no scale."""
    if "scale" not in cfg.method:
        raise UserError(
            f"{cfg.method._target_} searches no scale; choose a method that has method.scale, as "
            "method=augment_match_prompt"
        )
    dataset, protocol = instantiate(cfg.dataset), instantiate(cfg.protocol)
    segmenter, search = instantiate(cfg.segmenter), instantiate(cfg.method.scale)
    pairs = [(split, query) for split in protocol.splits(dataset) for query in split.query_ids]
    measured = []
    for split, query_id in track(pairs, "scans", console=console):
        query = dataset.load(query_id)
        episode = protocol.episode(dataset, split, dataset.load(split.support_id), query)
        rows = measure(segmenter, search, episode, query, dataset.organs)
        measured.append(rows.assign(query_scan=query_id))
    return pd.concat(measured, ignore_index=True)


def summary(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice in percent by factor, and in how many of the scans another scale was taken."""
    by_factor = measured.groupby("factor")
    scans = measured.drop_duplicates(["factor", "query_scan"]).groupby("factor")
    return pd.DataFrame(
        {
            "as it is": 100 * by_factor["as_it_is"].mean(),
            "searched": 100 * by_factor["searched"].mean(),
            "changed": scans["found"].apply(lambda found: (found != 1).sum()),
            "scans": scans.size(),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.scale_search",
        description="Supports of other sizes, with and without the search for their scale.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of conf/config.yaml")
    options = parser.parse_args(arguments)
    with command_line():
        cfg = composed(options.overrides)
        measured = run(cfg)
        path = Path(cfg.results_dir) / "scale_search.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, measured.to_csv(index=False).encode())
        console.print(summary(measured).to_markdown(floatfmt=".2f"))
        console.print(path)


if __name__ == "__main__":
    main()
