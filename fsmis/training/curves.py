"""The figure of a training run."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd


def plot_curves(log: Path, figure: Path) -> None:
    """Draw loss and validation Dice of ``log.csv`` against the targets seen."""
    rows = pd.read_csv(log)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for size, stage in rows.groupby("image_size"):
        seen = stage["pairs"] / 1000
        left.plot(seen, stage["loss"], label=f"{size} px")
        right.plot(seen, 100 * stage["validation_dice"], label=f"{size} px")
    left.set(xlabel="training targets, thousands", ylabel="loss")
    right.set(xlabel="training targets, thousands", ylabel="Dice on held-out bodies (%)")
    right.legend()
    fig.savefig(figure, dpi=120)
    plt.close(fig)
