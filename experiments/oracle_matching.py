"""How much matching could gain: every augmented copy prompts every query slice by itself.

    python -m experiments.oracle_matching [key=value ...]

Composes ``conf/config.yaml`` with the overrides and segments the query scans of the chosen folds
with each copy of the support set alone (one memory, one pass, nothing else at test time). Writes
``<results_dir>/oracle_matching.csv``, one row for each query slice and organ, and prints the mean
Dice of the slices where the copy is

- the original, as without augmentation,
- drawn at random (the mean over all copies),
- the one that each matcher chooses,
- the surest: that of the mask with the highest predicted overlap,
- all of them: the mean of their probabilities,
- the best one. This **reads the query's labels**: it is no method, but the bound of any matcher.

It also prints, over the copies of a slice, Spearman's correlation of a matcher's distance with
Dice: -1 where the nearest copy is the best and the farthest the worst.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from scipy.special import expit
from scipy.stats import spearmanr

from fsmis.cli import command_line, console
from fsmis.data.protocol import Episode, served_slices, truth
from fsmis.files import write_atomic
from fsmis.pipeline.matching import Matcher, distances_of, nearest
from fsmis.pipeline.prompting import Prompts, segment_prompted
from fsmis.pipeline.support_set import SupportSetConstruction
from fsmis.segmenters.sam2 import Sam2
from fsmis.settings import composed

MATCHERS = ("encoder_features", "ssim", "ncc", "psnr")  # those that need no download
WAYS = ("original", "random", *MATCHERS, "surest", "all", "best")


def measure(
    segmenter: Sam2,
    support_set: SupportSetConstruction,
    matchers: dict[str, Matcher],
    episode: Episode,
    truths: dict[str, np.ndarray],
) -> pd.DataFrame:
    """One row for each query slice of each organ that shows it.

    Columns: ``organ``, ``slice``, Dice in [0, 1] of each of ``WAYS``, and ``<matcher>_rho``.
    """
    rows = []
    for z, served in served_slices(episode).items():
        parts = {
            organ: part
            for organ, task in episode.organs.items()
            for part, support_z in enumerate(task.support_slices)
            if support_z == z
        }
        masks = {organ: episode.organs[organ].support_masks[part] for organ, part in parts.items()}
        key = f"{episode.dataset}/{episode.support.id}/{z}"
        copies = support_set.construct(episode.support.image[z], masks, len(served), key)
        encoded = segmenter.encode(copies.images)
        images = episode.query.image[served]
        queries = segmenter.encode(images)
        distances = {
            name: distances_of(matcher, queries, encoded)
            if matcher.on_features
            else distances_of(matcher, images, copies.images)
            for name, matcher in matchers.items()
        }
        for organ, part in parts.items():
            task = episode.organs[organ]
            for row in np.flatnonzero(task.part == part):
                true = truths[organ][row]
                if not true.any():
                    continue
                place = served.index(int(task.query_slices[row]))
                count = len(copies.images)
                prompts = Prompts(
                    memory_copy=np.arange(count),
                    memory_mask=copies.masks[organ],
                    row_query=np.full(count, place),
                    row_memory=np.arange(count)[:, None],
                    size=episode.query.image.shape[1:],
                )
                found = segment_prompted(segmenter, queries, encoded, prompts)
                dice = dice_of(found.masks, true)
                entry = {
                    "organ": organ,
                    "slice": int(task.query_slices[row]),
                    "original": dice[0],
                    "random": dice.mean(),
                    "surest": dice[np.argmax(found.iou * found.present)],
                    "all": dice_of(expit(found.gated).mean(0, keepdims=True) > 0.5, true)[0],
                    "best": dice.max(),
                }
                for name, distance in distances.items():
                    entry[name] = dice[nearest(distance[[place]])[0, 0]]
                    flat = np.ptp(dice) == 0
                    rho = np.nan if flat else spearmanr(distance[place].cpu(), dice).statistic
                    entry[f"{name}_rho"] = rho
                rows.append(entry)
    return pd.DataFrame(rows)


def dice_of(masks: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice ``[N]`` of masks bool ``[N, H, W]`` with one that is not empty, bool ``[H, W]``."""
    return 2 * (masks & true).sum((1, 2)) / (masks.sum((1, 2)) + true.sum())


def summary(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice in percent by way of choosing, its gain over the original, and the correlation."""
    ways = [way for way in WAYS if way in measured]
    by_organ = measured.groupby("organ", sort=False)[ways].mean().mean()
    table = pd.DataFrame({"copy": ways, "Dice": [100 * by_organ[way] for way in ways]})
    table["gain"] = table["Dice"] - table["Dice"][0]
    table["rho"] = [
        measured[f"{way}_rho"].mean() if f"{way}_rho" in measured else np.nan for way in ways
    ]
    return table


def run(cfg: DictConfig) -> pd.DataFrame:
    dataset, protocol = instantiate(cfg.dataset), instantiate(cfg.protocol)
    segmenter, support_set = instantiate(cfg.segmenter), instantiate(cfg.support_set)
    matchers = {name: instantiate(cfg.matchers[name]) for name in MATCHERS}
    pairs = [(split, query) for split in protocol.splits(dataset) for query in split.query_ids]
    measured = []
    for split, query_id in track(pairs, "scans", console=console):
        query = dataset.load(query_id)
        episode = protocol.episode(dataset, split, dataset.load(split.support_id), query)
        truths = {o: truth(query, dataset.organs[o], task) for o, task in episode.organs.items()}
        rows = measure(segmenter, support_set, matchers, episode, truths)
        measured.append(rows.assign(fold=split.fold, query_scan=query_id))
    return pd.concat(measured, ignore_index=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.oracle_matching",
        description="How much matching could gain; reads the labels of the queries.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of conf/config.yaml")
    options = parser.parse_args(arguments)
    with command_line():
        cfg = composed(options.overrides)
        OmegaConf.set_struct(cfg, False)
        cfg.matchers = {
            name: composed([*options.overrides, f"matcher={name}"]).matcher for name in MATCHERS
        }
        measured = run(cfg)
        path = Path(cfg.results_dir) / "oracle_matching.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, measured.to_csv(index=False).encode())
        console.print(summary(measured).to_markdown(index=False, floatfmt=".2f"))
        console.print(path)


if __name__ == "__main__":
    main()
