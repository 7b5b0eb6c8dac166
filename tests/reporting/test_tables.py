"""Means by the field's convention, and no silent one."""

import numpy as np
import pandas as pd
import pytest

from fsmis.reporting.tables import completeness, markdown, presence, shown, summarise
from fsmis.runs.records import Cell

ORGANS = ["liver", "RK"]
CELLS = [Cell(0, "8", "1"), Cell(0, "8", "2"), Cell(1, "1", "8")]
PLAN = {"cells": CELLS, "organs": ORGANS}


def scores(*rows: tuple[int, str, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["fold", "query_scan", "organ", "dice"])
    counts = {"tp": 500 * frame["dice"], "fp": 500 * (1 - frame["dice"]), "fn": 0}
    counts["fn"] = counts["fp"]  # of a thousand voxels in either mask together
    frame = frame.assign(protocol="alpnet-3parts-organ_range", **counts)
    return frame.assign(iou=frame["dice"] / 2, hd95_mm=4.0, assd_mm=1.0)


FULL = scores(
    *[(0, "1", "liver", 0.2), (0, "2", "liver", 0.4), (1, "8", "liver", 0.9)],
    *[(0, "1", "RK", 0.0), (0, "2", "RK", 0.2), (1, "8", "RK", 0.3)],
)


def test_mean_is_over_scans_then_folds_then_organs() -> None:
    table = summarise(FULL, ORGANS).set_index("organ")
    assert table.loc["liver", "dice"] == pytest.approx((30 + 90) / 2)
    assert table.loc["RK", "dice"] == pytest.approx((10 + 30) / 2)
    assert table.loc["mean", "dice"] == pytest.approx(40)
    assert table.loc["liver", "sd"] == pytest.approx(np.std([20, 40, 90], ddof=1))
    assert table.loc["mean", "sd"] == pytest.approx(np.std([10, 30, 60], ddof=1))
    assert table["scans"].tolist() == [3, 3, 3]
    assert list(table.index) == ["liver", "RK", "mean"]


def test_voxels_of_all_scans_together() -> None:
    """A large organ counts more: 1 of 1 voxels and 10 of 30 (40 in both masks) are 22 of 42."""
    counts = FULL.head(2).assign(tp=[1, 10], fp=[0, 15], fn=[0, 5])
    table = summarise(counts, ["liver"]).set_index("organ")["pooled Dice"]
    assert table["liver"] == table["mean"] == pytest.approx(100 * 22 / 42)
    of_both = summarise(FULL, ORGANS).set_index("organ")["pooled Dice"]
    assert of_both["mean"] == pytest.approx((of_both["liver"] + of_both["RK"]) / 2)
    assert summarise(FULL[:0], ORGANS)["pooled Dice"].isna().all()


def test_single_scan_has_no_deviation() -> None:
    table = summarise(FULL[FULL["query_scan"] == "8"], ORGANS)
    assert table["sd"].isna().all()
    assert shown(table)["sd"].tolist() == ["–", "–", "–"]


def test_undefined_dice_is_counted_and_left_out() -> None:
    holed = FULL.copy()
    holed.loc[0, "dice"] = np.nan
    table = summarise(holed, ORGANS).set_index("organ")
    assert table.loc["liver", "dice"] == pytest.approx((40 + 90) / 2)
    assert table["undefined"].tolist() == [1, 0, 1]
    assert table.loc["liver", "scans"] == 2
    states = ["done"] * 3
    assert completeness(holed, PLAN, states) == "3/3 scans; 1 undefined Dice left out"
    assert "undefined" in shown(table.reset_index()).columns


def test_empty_prediction_counts_in_dice_and_not_in_distances() -> None:
    empty = FULL.copy()
    empty.loc[0, ["dice", "hd95_mm", "assd_mm"]] = [0, None, None]
    table = summarise(empty, ORGANS).set_index("organ")
    assert table.loc["liver", "dice"] == pytest.approx((20 + 90) / 2)
    assert table.loc["liver", "hd95_mm"] == 4 and table.loc["liver", "empty"] == 1


@pytest.mark.parametrize(
    ("rows", "states", "said"),
    [
        (FULL, ["done"] * 3, "3/3 scans"),
        (FULL[FULL["query_scan"] != "2"], ["done", "missing", "done"], "partial: 2/3 scans"),
        (
            FULL[FULL["fold"] == 0],
            ["done", "done", "failed"],
            "partial: 2/3 scans (1 failed), folds 0 of 2",
        ),
        (FULL[FULL["organ"] == "liver"], ["done"] * 3, "partial: 3/3 scans, no RK"),
        (FULL[:0], ["missing"] * 3, "partial: 0/3 scans, folds none of 2, no liver, RK"),
    ],
)
def test_what_is_missing_is_said(rows: pd.DataFrame, states: list[str], said: str) -> None:
    assert completeness(rows, PLAN, states) == said


def test_table_without_scores_has_dashes() -> None:
    text = markdown("title", summarise(FULL[:0], ORGANS), ["note"])
    assert "| liver" in text and "–" in text and "nan" not in text
    assert text.startswith("# title\n") and text.endswith("note\n")


def test_equal_scores_have_no_deviation_but_a_number() -> None:
    table = summarise(FULL.assign(dice=0.5), ORGANS)
    assert shown(table)["sd"].tolist() == ["0.00"] * 3


def test_bars_in_names_do_not_break_a_markdown_table() -> None:
    frame = FULL.assign(organ=FULL["organ"].replace("RK", "R|K"))
    lines = markdown("title", summarise(frame, ["liver", "R|K"]), []).splitlines()
    rows = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1 and any(r"R\|K" in line for line in lines)


def test_presence_counts_slices_with_and_without_the_organ() -> None:
    rows = [  # fold, slices, of these with the organ, with a mask, with both
        (0, 10, 4, 5, 3, 2.0),
        (0, 10, 5, 5, 5, 0.0),
        (1, 8, 8, 4, 4, 1.0),  # of an organ in every slice nothing can be ruled out, but missed
        (1, 8, 4, 8, 4, 6.0),
    ]
    names = ["fold", "n_slices", "slices_true", "slices_found", "slices_hit", "fp_ml"]
    protocol = "alpnet-1part-full_volume"
    scores = pd.DataFrame(rows, columns=names).assign(organ="liver", protocol=protocol)
    found = presence(scores).loc["liver"]
    assert found["sensitivity"] == pytest.approx((75 + 100) / 4 + (50 + 100) / 4)
    assert found["specificity"] == pytest.approx((100 * 4 / 6 + 100) / 4 + 0 / 2)
    assert found["fp_ml"] == pytest.approx(1 / 2 + (1 + 6) / 4)
    told = presence(scores.assign(n_slices=scores["slices_true"]))
    assert told["specificity"].isna().all() and told["fp_ml"].tolist() == found[["fp_ml"]].tolist()
    earlier = ["organ", "fold", "n_slices", "protocol"]
    assert presence(scores[earlier]).isna().all(axis=None)
    # a gap within an organ is no slice beyond it
    gaps = presence(scores.assign(protocol="alpnet-3parts-organ_range"))
    assert gaps.isna().all(axis=None)
