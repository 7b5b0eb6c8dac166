"""The loss of a method's training in a fold, beside the scores it led to."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fsmis.files.atomic import write_atomic, write_figure


def write_training(folder: Path, fold: int, log: pd.DataFrame) -> None:
    """Write ``fold_<k>.csv`` and ``fold_<k>.png`` to a folder.

    Args:
        folder: is made where it is missing.
        fold: number of the fold.
        log: columns ``step``, ``loss``, and the terms that it is the sum of.
    """
    write_atomic(folder / f"fold_{fold}.csv", log.to_csv(index=False).encode())
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for name in log.columns.drop("step"):
        axis.plot(log["step"], log[name], label=name, linewidth=2 if name == "loss" else 1)
    axis.set(xlabel="step", ylabel="training loss", title=f"fold {fold}")
    axis.legend()
    write_figure(folder / f"fold_{fold}.png", figure)
