"""The report reads finished and unfinished runs from disk, without models."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fsmis.errors import UserError
from fsmis.reporting.charts import draw
from fsmis.reporting.runs import read_runs, run_names, tabulate
from fsmis.runs.records import Cell, RunFolder
from fsmis.tools.report import main
from tests.runs.test_records import row

CELLS = [Cell(0, "8", "1"), Cell(1, "1", "8")]


def write_run(
    folder: Path, method: str, dice: float, cells: list[Cell], **settings: object
) -> None:
    """A run of ``method`` with the given settings, done in ``cells``."""
    choices = {key: value for key, value in settings.items() if "." not in key}
    run = RunFolder(folder)
    run.write_plan(
        {
            **{"dataset": "chaos_mri", "method": method, "protocol": "alpnet-3parts-organ_range"},
            **{"variant": folder.name, "organs": ["liver", "RK"], "choices": choices},
            "oracle": "none",
            "identity": {
                "method": {key: value for key, value in settings.items() if "." in key},
                "seed": 0,
            },
            "cells": CELLS,
        }
    )
    for cell in cells:
        run.finish(cell, [row(cell, organ, dice) for organ in ("liver", "RK")])
    run.rebuild()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for matcher in ("ssim", "random"):
        for count in (1, 8, 32):
            settings = {"matcher": matcher, "support_set.count": count, f"matcher.{matcher}": 1}
            folder = tmp_path / "amp" / f"{matcher}{count}"
            write_run(folder, "amp", count / 100, CELLS, **settings)
    write_run(tmp_path / "copy/a", "copy_mask", 0.4, CELLS[:1])
    return tmp_path


def test_report_is_one_table_and_one_figure(sweep: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fsmis.tools.report",
        str(sweep),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={"MPLBACKEND": "TkAgg"})
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out/report.csv")
    assert len(table) == 7
    for name in ("report.csv", "report.md", "report.png", "index.html"):
        assert str(tmp_path / "out" / name) in done.stdout
    assert "partial: 1/2 scans" in (tmp_path / "out/report.md").read_text()
    assert (tmp_path / "out/report.png").read_bytes().startswith(b"\x89PNG")


def test_rows_name_the_settings_that_differ(sweep: Path) -> None:
    frame, settings, organs = tabulate(read_runs(sweep))
    assert settings == ["matcher", "support_set.count"] and organs == ["liver", "RK"]
    amp = frame[frame["method"] == "amp"]
    assert amp["support_set.count"].tolist() == [1, 8, 32] * 2
    assert amp["mean"].tolist() == [1, 8, 32] * 2
    assert amp["covered"].eq("2/2 scans").all() and amp["scans"].eq(2).all()
    (copy,) = frame[frame["method"] == "copy_mask"].to_dict("records")
    assert copy["covered"] == "partial: 1/2 scans, folds 0 of 2"
    assert pd.isna(copy["sd"]) and pd.isna(copy["matcher"])


def write_twins(folder: Path, **identities: dict) -> list[str]:
    """Runs of one name with these parts of an identity; returns their names in the report."""
    for name, identity in identities.items():
        write_run(folder / name, "copy_mask", 0.4, CELLS)
        path = folder / name / "plan.json"
        plan = json.loads(path.read_text())
        plan["identity"] |= identity
        path.write_text(json.dumps(plan))
    frame, settings, _ = tabulate(read_runs(folder))
    return run_names(frame, settings)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"data": "3f2a91c0" * 8}, {"data": "77777777" * 8}, ["data=3f2a91c0", "data=77777777"]),
        ({"scoring": 1}, {"scoring": 2}, ["scoring=1", "scoring=2"]),
        (
            {"code": {"own": "0123456789ab" * 5}},
            {"code": {"own": "ba9876543210" * 5}},
            ["code.own=01234567", "code.own=ba987654"],
        ),
        ({"dataset": {"percentiles": [0, 1]}}, {"dataset": {}}, ["dataset.percentiles=[0, 1]", ""]),
        ({}, {"method": {"_target_": "own.Method"}}, ["", "method._target_=own.Method"]),
    ],
)
def test_rows_of_one_name_say_by_what_they_differ(
    tmp_path: Path, first: dict, second: dict, said: list[str]
) -> None:
    names = write_twins(tmp_path, a=first, b=second)
    assert sorted(names) == sorted(", ".join(filter(None, ["copy_mask", one])) for one in said)


def test_a_run_that_lies_there_twice_is_told_by_its_folder(tmp_path: Path) -> None:
    names = write_twins(tmp_path, a={}, b={})
    assert names == [f"copy_mask, folder={tmp_path / name}" for name in "ab"]


def test_what_differs_otherwise_is_not_said_where_settings_tell(tmp_path: Path) -> None:
    for name, dice in (("copy_mask", 0.4), ("registration", 0.5)):
        write_run(tmp_path / name, name, dice, CELLS)
        path = tmp_path / name / "plan.json"
        path.write_text(path.read_text().replace('"seed": 0', f'"seed": 0, "data": "{name}"'))
    _, settings, _ = tabulate(read_runs(tmp_path))
    assert settings == []


def test_runs_have_the_interval_of_their_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "copy_mask", 0.4, CELLS)
    path = tmp_path / "a/scores.csv"
    path.write_text(path.read_text().replace(",0.4,", ",0.6,", 2))
    frame, _, _ = tabulate(read_runs(tmp_path))
    (run,) = frame.to_dict("records")
    assert run["mean"] == pytest.approx(50) and 40 <= run["low"] < 50 < run["high"] <= 60


def test_a_curve_has_its_band(sweep: Path) -> None:
    frame, settings, organs = tabulate(read_runs(sweep))
    frame["low"], frame["high"] = frame["mean"] - 2, frame["mean"] + 3
    (axis,) = draw(frame, settings, organs).axes
    band = axis.collections[0].get_datalim(axis.transData)
    assert (band.ymin, band.ymax) == pytest.approx((1 - 2, 32 + 3))


def test_sweep_is_drawn_as_lines(sweep: Path) -> None:
    (axis,) = draw(*tabulate(read_runs(sweep))).axes
    named = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert named["amp, ssim"] == named["amp, random"] == [1, 8, 32]
    assert axis.get_xlabel() == "support copies"
    assert [text.get_text() for text in axis.texts] == ["copy_mask (partial)"]


def test_a_number_that_is_none_is_counted_and_moves_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "copy_mask", 0.4, CELLS)
    path = tmp_path / "a/scores.csv"
    path.write_text(path.read_text().replace(",0.4,", ",,", 1))
    frame, _, _ = tabulate(read_runs(tmp_path))
    assert frame["covered"].tolist() == ["2/2 scans; 1 undefined Dice left out"]
    assert frame["mean"].tolist() == [40]


def test_other_runs_are_drawn_as_bars(tmp_path: Path) -> None:
    write_run(tmp_path / "copy/a", "copy_mask", 0.4, CELLS)
    write_run(tmp_path / "registration/a", "registration", 0.5, CELLS)
    (axis,) = draw(*tabulate(read_runs(tmp_path))).axes
    assert [bars.get_label() for bars in axis.containers] == ["copy_mask", "registration"]
    assert [bar.get_height() for bar in axis.containers[1]] == [50, 50, 50]


def test_rows_lost_from_scores_make_a_run_partial(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "copy_mask", 0.4, CELLS)
    path = tmp_path / "a/scores.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    frame, _, _ = tabulate(read_runs(tmp_path))
    assert frame["covered"].tolist() == ["partial: 1/2 scans, folds 0 of 2"]


def test_planned_run_without_scores_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "copy_mask", 0.4, [])
    frame, settings, organs = tabulate(read_runs(tmp_path))
    assert frame["covered"][0].startswith("partial: 0/2 scans") and pd.isna(frame["mean"][0])
    assert draw(frame, settings, organs).axes


def test_folder_without_runs_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match=r"no run \(plan.json\)"):
        read_runs(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no run")
    assert not list(tmp_path.iterdir())
