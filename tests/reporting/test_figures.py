"""Case pictures say how good each organ and slice is, and what prompted it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fsmis.data.dataset import Scan
from fsmis.data.protocol import Episode, OrganTask
from fsmis.pipeline import Match
from fsmis.reporting import figures
from fsmis.reporting.figures import fill, outline, show
from fsmis.reporting.statistics import ranked
from fsmis.runs.evaluation import Segmented
from fsmis.runs.records import Cell
from tests.runs.test_records import row

SHAPE = (4, 16, 16)


def squares(size: int) -> np.ndarray:
    masks = np.zeros(SHAPE, bool)
    masks[:, :size, :8] = True
    return masks


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Draws a scan whose spleen is half found and whose liver is exact; the texts of the figure."""

    def drawn(matches: dict[str, list[Match]]) -> list[str]:
        caught: list[Figure] = []
        monkeypatch.setattr(figures, "write_figure", lambda path, figure: caught.append(figure))
        scan = Scan("7", np.zeros(SHAPE, np.float32), None, (1.0, 1.0, 1.0), np.eye(4))
        slices, part = np.arange(4), np.zeros(4, int)
        tasks = {
            organ: OrganTask(organ, slices[1:2], squares(8)[:1], slices, part)
            for organ in ("liver", "spleen")
        }
        episode = Episode("phantom", 0, scan, scan, tasks)
        masks = {"liver": squares(8), "spleen": squares(4)}
        truths = {"liver": squares(8), "spleen": squares(12)}
        segmented = Segmented(episode, scan, masks, truths, matches, 1.0)
        figures.draw(tmp_path / "a.png", segmented, n_slices=2, title="title")
        parts = caught[0].subfigs
        titles = [axis.get_title() for part in parts for axis in part.axes]
        return [part.get_suptitle() for part in parts] + titles

    return drawn


def test_the_worst_organ_comes_first_with_its_dice_and_that_of_its_slices(texts) -> None:
    said = texts({})
    assert said[:2] == ["spleen: Dice 50.0", "liver: Dice 100.0"]
    assert said[2:4] == ["slice 1: Dice 50.0", "slice 2: Dice 50.0"]
    assert said.count("support slice") == 4 and "prompted by" not in said


@pytest.mark.parametrize(
    ("of", "words"), [(1, "prompted by"), (3, "prompted by 3 copies, one shown")]
)
def test_it_says_how_many_copies_prompted_a_slice(texts, of: int, words: str) -> None:
    match = Match(np.zeros(SHAPE[1:], np.float32), squares(8)[0], of)
    assert texts({"liver": [match] * 4, "spleen": [match] * 4}).count(words) == 4


def test_patients_lie_on_their_backs_in_every_layer() -> None:
    axis = Figure().subplots()
    mask = squares(4)[0]
    show(axis, np.zeros(SHAPE[1:]))
    fill(axis, mask, "#ff0000")
    outline(axis, mask, "#00ff00")
    outline(axis, np.zeros_like(mask), "#00ff00")  # nothing to draw is no error
    assert [image.origin for image in axis.images] == ["lower", "lower"]
    assert axis.get_ylim()[0] < axis.get_ylim()[1]
    assert axis.images[1].get_array()[0, 0].tolist() == [1, 0, 0, pytest.approx(0.45)]


def test_one_ranking_is_drawn_and_told() -> None:
    cells = [Cell(0, "8", "1"), Cell(0, "8", "2"), Cell(1, "1", "8")]
    dice = [0.5, 0.2, 0.0]
    scores = pd.DataFrame([row(*pair) for pair in zip(cells, ["liver"] * 3, dice, strict=True)])
    scores.loc[2, "dice"] = float("nan")
    assert list(ranked(scores).items()) == [((0, "8", "2"), 20), ((0, "8", "1"), 50)]
    assert figures.select(scores, cells, "worst", 1) == [cells[1]]
    assert figures.select(scores, cells, "worst", 9) == [cells[1], cells[0]]
    assert figures.select(scores, cells, "all", 0) == cells
    assert figures.select(scores, cells, "none", 9) == []
