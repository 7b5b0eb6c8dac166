"""Comparisons of stored runs: the command itself, on run folders on disk."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fsmis.reporting.comparison import paired_tests
from fsmis.reporting.paper_rows import Row, Rows
from fsmis.reporting.runs import read_runs
from fsmis.runs.records import Cell, RunFolder
from fsmis.tools.compare import main
from tests.runs.test_records import row

ORGANS = ["liver", "RK", "LK", "spleen"]
SCANS = [str(scan) for scan in range(20)]
# five folds of four, supported by the first scan of the next fold, as in variant alpnet
CELLS = [Cell(i // 4, SCANS[(i // 4 + 1) * 4 % 20], scan) for i, scan in enumerate(SCANS)]
PROTOCOL = "alpnet-3parts-organ_range"


def write_run(
    folder: Path,
    method: str,
    dice: np.ndarray,
    *,
    dataset: str = "chaos_mri",
    protocol: str = PROTOCOL,
    data: str = "3f2a91c0",
    planned: list[Cell] = CELLS,
    done: list[Cell] = CELLS,
    organs: list[str] = ORGANS,
    **settings: object,
) -> None:
    """A run with ``dice`` ``[scans, organs]`` in [0, 1] at the planned cells, done in some."""
    run = RunFolder(folder)
    run.write_plan(
        {
            **{"dataset": dataset, "method": method, "variant": folder.name, "protocol": protocol},
            **{"organs": organs, "choices": {}, "oracle": "none", "cells": planned},
            "identity": {"method": settings, "seed": 0, "data": data},
        }
    )
    for cell, values in zip(planned, dice, strict=True):
        if cell in done:
            pairs = zip(organs, values, strict=True)  # an organ without a score has no row
            rows = [row(cell, *pair) for pair in pairs if not np.isnan(pair[1])]
            run.finish(cell, rows)
    run.rebuild()


def scattered(mean: float, scans: int = 20) -> np.ndarray:
    return mean + np.random.default_rng(0).uniform(-0.1, 0.1, (scans, 4))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A main method, one 4 to 6 points worse in every scan, and one that is equal."""
    folder = tmp_path / "runs"
    worse = np.linspace(0.04, 0.06, len(SCANS))[:, None]
    write_run(folder / "main/m1", "augment_match_prompt", scattered(0.8))
    write_run(folder / "copy/c1", "copy_mask", scattered(0.8) - worse)
    write_run(folder / "twin/t1", "twin", scattered(0.8))
    return folder


def command(*arguments: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "fsmis.tools.compare", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


def on_terminal(module: str, *arguments: str) -> str:
    """What a command prints on a terminal of 80 columns."""
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=side,
        env=os.environ | {"COLUMNS": "80", "TERM": "dumb"},
    )
    os.close(side)
    output = b""
    try:
        while chunk := os.read(terminal, 65536):
            output += chunk
    except OSError:  # how a terminal says that the other side is closed
        pass
    assert process.wait() == 0
    return output.decode().replace("\r", "")


def refusal(capsys, *arguments: object) -> str:
    """What the command says on stderr, in one line, when it refuses."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def rows_of(out: Path, **wanted: str) -> pd.DataFrame:
    rows = pd.read_csv(out / "compare.csv")
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


def test_command_prints_and_writes_measured_against_published(
    results: Path, tmp_path: Path
) -> None:
    done = command(results, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "copy_mask" in done.stdout and "RPT 2023✓ [" in done.stdout
    assert re.search(r"\[\d\] readme: table 1 in the README of primebo1/FoB_SAM", done.stdout)
    text = (tmp_path / "out/compare.md").read_text()
    assert text.startswith(f"# chaos_mri, {PROTOCOL}, 20 scans in 5 folds, 3f2a91c0\n")
    assert "# chaos_mri beside published rows, setting 1" in text and "nan" not in text
    for name in ("compare.csv", "compare.md"):
        assert str(tmp_path / "out" / name) in done.stdout
    assert not (results / "compare.csv").exists()


def test_difference_and_p_of_runs_and_difference_alone_of_published(results: Path) -> None:
    main([str(results)])
    (copy,) = rows_of(results, method="copy_mask", organ="mean").to_dict("records")
    assert copy["difference"] == pytest.approx(-5) and copy["pairs"] == 20
    assert copy["p"] == pytest.approx(2**-19)  # all twenty of one sign
    assert copy["p_holm"] == pytest.approx(2 * copy["p"])  # two runs are tested
    (twin,) = rows_of(results, method="twin", organ="mean").to_dict("records")
    assert twin["difference"] == 0 and twin["p_holm"] == 1
    (own,) = rows_of(results, method="augment_match_prompt", organ="mean").to_dict("records")
    assert pd.isna(own["p"]) and pd.isna(own["difference"]) and own["n"] == 20
    assert own["low"] < own["dice"] < own["high"]
    rpt = rows_of(results, method="RPT", organ="mean", setting="1", status="readme")
    assert rpt["difference"].tolist() == pytest.approx([82.44 - own["dice"]])
    assert rpt["p"].isna().all() and rpt["source"].str.contains("FoB_SAM").all()


def test_tests_of_organs_are_corrected_for_all_of_them(results: Path) -> None:
    main([str(results)])
    copy = rows_of(results, method="copy_mask")
    organs = copy[copy["organ"] != "mean"]
    assert organs["p"].tolist() == pytest.approx([2**-19] * 4)
    assert organs["p_holm"].tolist() == pytest.approx([8 * 2**-19] * 4)  # two runs, four organs


def test_other_protocols_and_data_are_compared_apart(results: Path, capsys) -> None:
    write_run(results / "q/q1", "copy_mask", scattered(0.9), protocol="qnet2-3parts-organ_range")
    write_run(results / "d/d1", "copy_mask", scattered(0.6), data="77777777")
    main([str(results)])
    said = capsys.readouterr().out
    assert "3 comparisons: other scans or protocols are not mixed" in said
    assert said.count("No test: no run of augment_match_prompt here") == 2
    copies = rows_of(results, method="copy_mask", organ="mean")
    assert copies["comparison"].nunique() == 3
    assert copies["p"].notna().sum() == 1  # beside the main run alone


def test_missing_pairs_are_told(results: Path, capsys) -> None:
    write_run(results / "part/p1", "part", scattered(0.7), done=CELLS[:12])
    main([str(results)])
    said = capsys.readouterr().out
    assert "part p1: 12 pairs; 8 scans that one of both lacks are left out" in said
    (part,) = rows_of(results, method="part", organ="mean").to_dict("records")
    assert part["difference"] == pytest.approx(-10) and part["unpaired"] == 8
    assert part["covered"].startswith("partial")
    text = (results / "compare.md").read_text()
    beside = text.split("beside published rows")[1]
    assert "to paper is empty for runs on other scans than 20 scans in 5 folds" in beside
    (line,) = (line for line in beside.splitlines() if line.startswith("| part (partial)"))
    assert [cell.strip() for cell in line.split("|")][9:11] == ["-10.00", "–"]


def test_a_difference_is_the_same_in_every_table(results: Path) -> None:
    dice = scattered(0.7)
    dice[3, 1] = np.nan  # a mean over all scans would not be of the pairs
    dice[4] = np.nan
    write_run(results / "holes/h1", "holes", dice)
    main([str(results)])
    (holes,) = rows_of(results, method="holes", organ="mean").to_dict("records")
    runs = {run.variant: run for run in read_runs(results)}
    rows = [Row({"method": variant}, runs[variant]) for variant in ("m1", "h1")]
    paper = Rows(rows, reference=rows[0]).frame.set_index("variant").loc["h1"]
    page = paired_tests([rows[0].run, rows[1].run], pd.Series(["main", "holes"]), None)
    tested = page.by_measure["dice"].loc[1]
    assert paper["difference"] == pytest.approx(holes["difference"])
    assert tested["difference"] == pytest.approx(holes["difference"])
    assert paper["p"] == tested["p"] == pytest.approx(holes["p"])
    means = paper["mean"] - rows[0].dice["mean"]
    assert abs(means - paper["difference"]) > 0.01


def test_few_pairs_are_told(tmp_path: Path, capsys) -> None:
    for method, mean in (("augment_match_prompt", 0.8), ("copy_mask", 0.5)):
        write_run(tmp_path / method, method, scattered(mean, 4), planned=CELLS[:4], done=CELLS[:4])
    main([str(tmp_path)])
    assert "Few pairs: with 4 of them and 1 tests no p is below 0.12" in capsys.readouterr().out
    rpt = rows_of(tmp_path, method="RPT", organ="mean")
    assert rpt["difference"].isna().all()  # four scans are not the benchmark


def test_a_partial_run_does_not_make_all_pairs_few(results: Path, capsys) -> None:
    write_run(results / "part/p1", "part", scattered(0.7), done=CELLS[:2])
    main([str(results)])
    assert "Few pairs" not in capsys.readouterr().out  # twenty of them reach a small p


def test_several_main_runs_are_no_test_until_one_is_named(results: Path, capsys) -> None:
    write_run(results / "main/m2", "augment_match_prompt", scattered(0.82), memories=3)
    main([str(results)])
    said = capsys.readouterr().out
    assert "No test: 2 runs of augment_match_prompt here; choose one of them" in said
    assert rows_of(results)["p"].isna().all()
    refused = refusal(capsys, results, "--main", "augment_match_prompt")
    assert "2 runs of it in chaos_mri" in refused and "m1, m2" in refused
    main([str(results), "--main", "m2"])
    (first,) = rows_of(results, variant="m1", organ="mean").to_dict("records")
    assert first["difference"] == pytest.approx(-2)


def test_rows_of_other_settings_and_all_sources_on_demand(results: Path) -> None:
    main([str(results), "--setting", "all", "--all-rows"])
    text = (results / "compare.md").read_text()
    assert "setting 2 (inferred)" in text and text.count("| RPT 2023") == 4
    assert "published rows: one for each method" not in text


def test_own_table_of_published_numbers(results: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(
        "method,year,dataset,setting,organ,dice,source,status,note,"
        "check,check_dice,check_source\n"
        "Mine,2026,chaos_mri,1,mean,90,my paper,paper,,,,\n"
    )
    main([str(results), "--published", str(table)])
    text = (results / "compare.md").read_text()
    assert "| Mine 2026 " in text and "RPT" not in text  # confirmed: no dagger


def test_dataset_without_published_rows(tmp_path: Path) -> None:
    for method, mean in (("augment_match_prompt", 0.8), ("copy_mask", 0.5)):
        write_run(tmp_path / method, method, scattered(mean), dataset="phantom")
    main([str(tmp_path)])
    assert "beside published" not in (tmp_path / "compare.md").read_text()


@pytest.mark.parametrize("dataset", ["mine", "chaos_mri"])  # of one's own, and of conf/dataset
@pytest.mark.parametrize("organs", [ORGANS[:1], [*ORGANS, "pancreas"]])
def test_runs_of_other_organs_are_not_mixed(
    tmp_path: Path, dataset: str, organs: list[str], capsys
) -> None:
    dice = np.full((len(SCANS), len(organs)), 0.5)
    write_run(tmp_path / "m1", "augment_match_prompt", scattered(0.8), dataset=dataset)
    write_run(tmp_path / "c1", "copy_mask", dice, dataset=dataset, organs=organs)
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "2 comparisons" in said and f"organs {' '.join(organs)}" in said
    assert rows_of(tmp_path, method="copy_mask")["p"].isna().all()


def test_run_without_scores_is_shown(results: Path) -> None:
    write_run(results / "none/n1", "none", scattered(0.5), done=[])
    main([str(results)])
    (none,) = rows_of(results, method="none", organ="mean").to_dict("records")
    assert none["n"] == 0 and none["pairs"] == 0 and pd.isna(none["p"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--main", "nobody"], "--main nobody: no run of such a method or variant in "),
        (["--dataset", "synapse_ct"], "--dataset synapse_ct: no run of it in "),
        (["--published", "absent.csv"], "absent.csv: not a readable CSV file (No such file"),
    ],
)
def test_mistakes_end_in_one_line(results: Path, arguments: list[str], said: str, capsys) -> None:
    assert refusal(capsys, results, *arguments).startswith(f"error: {said}")
    assert not (results / "compare.csv").exists()


def test_empty_folder_is_refused(tmp_path: Path, capsys) -> None:
    assert refusal(capsys, tmp_path).startswith(f"error: {tmp_path}: no run")


def test_the_same_run_twice_is_refused(results: Path, capsys) -> None:
    write_run(results / "copies/c1", "copy_mask", scattered(0.75))
    assert "the same run as" in refusal(capsys, results)


def test_mistakes_of_the_command_have_no_traceback(tmp_path: Path, capsys) -> None:
    assert refusal(capsys, tmp_path / "absent").startswith("error: ")


def test_help_shows_an_example(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "example: python -m fsmis compare results/runs" in capsys.readouterr().out


def test_a_terminal_of_80_columns_is_enough(results: Path) -> None:
    write_run(results / "main/m2", "augment_match_prompt", scattered(0.82), **{"volume.reach": 3})
    text = on_terminal("fsmis.tools.compare", str(results), "--main", "m1")
    tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert tables and max(map(len, tables)) <= 80
    (copy,) = (line for line in tables if "copy_mask" in line and "<0.001" in line)
    assert re.search(r"20 +7\d\.\d\d +\d\.\d\d +\d\d\.\d\d–\d\d\.\d\d +-5\.00 +<0\.001", copy)
