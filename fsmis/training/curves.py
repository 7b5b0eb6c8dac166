"""The figure of a training run."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fsmis.files.atomic import write_figure


def plot_curves(log: Path, path: Path) -> None:
    """Draw loss and validation Dice of ``log.csv`` against the targets seen."""
    rows = pd.read_csv(log)
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for size, stage in rows.groupby("image_size"):
        seen = stage["pairs"] / 1000
        left.plot(seen, stage["loss"], label=f"{size} px")
        right.plot(seen, 100 * stage["validation_dice"], label=f"{size} px")
    left.set(xlabel="training targets, thousands", ylabel="loss")
    right.set(xlabel="training targets, thousands", ylabel="Dice on held-out bodies (%)")
    right.legend()
    write_figure(path, figure, dpi=120)
