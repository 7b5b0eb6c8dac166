"""Published numbers: the checks, the file of the repository, its rows beside own runs."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fsmis.errors import UserError
from fsmis.reporting.beside import benchmark, beside
from fsmis.reporting.published import (
    COLUMNS,
    PAPER,
    PUBLISHED,
    STATUSES,
    known_organs,
    lay_out,
    read_published,
    select,
)
from fsmis.reporting.tables import MEAN
from fsmis.tools.report import main as report
from tests.tools.test_compare import on_terminal, scattered, write_run

ABDOMEN = ["liver", "RK", "LK", "spleen"]
ROW = {
    **{"method": "RPT", "year": "2023", "dataset": "chaos_mri", "setting": "1", "organ": "liver"},
    **{"dice": "82.86", "source": "their README, table 1", "status": "readme", "note": ""},
    **{"check": "", "check_dice": "", "check_source": ""},
}


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return read_published()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table of ``ROW`` with changes, a row for each change."""

    def write(*changes: dict[str, str], columns: list[str] = COLUMNS) -> Path:
        path = tmp_path / "published.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(ROW | change for change in changes)
        return path

    return write


def shown(published: pd.DataFrame, dataset: str, setting: str | None = "1") -> pd.DataFrame:
    organs = ABDOMEN if dataset != "cmr" else ["LV-BP", "LV-MYO", "RV"]
    table = lay_out(published[published["dataset"] == dataset], organs)
    return select(table, setting, everything=False).set_index("method")


def test_the_file_of_the_repository_passes(published: pd.DataFrame) -> None:
    assert len(published) == 1051 and published["method"].nunique() == 50
    assert set(published["status"]) == set(STATUSES) - {"paper"}  # none was read in its own paper
    checks = published["check"].value_counts().drop("").to_dict()
    assert checks == {"confirmed": 316, "differs": 40, "contradicted": 32}


def test_the_file_of_the_repository_is_what_was_collected_and_checked(shared_root: Path) -> None:
    collected = shared_root / "docs" / "published.csv"
    checked = shared_root / "data" / "published_check.csv"
    if not collected.is_file() or not checked.is_file():
        pytest.skip(f"nothing to compare with: {collected} or {checked} is not there")
    own = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)
    first = pd.read_csv(collected, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(own[: len(first)][list(first)], first)
    verdicts = pd.read_csv(checked, dtype=str).set_index("line")["verdict"]
    found = own[: len(first)].set_index(pd.Index([str(line + 2) for line in first.index]))
    assert set(found.index[found["check"] != ""]) == set(verdicts.index)
    for line, verdict in verdicts.items():
        row = found.loc[str(line)]
        assert verdict.startswith(row["check"]) and f"({row['check_dice'] or 'peer table'}" in (
            verdict if "(" in verdict else verdict + " (peer table)"
        )


@pytest.mark.parametrize(
    ("dataset", "setting", "means"),
    [
        (
            "chaos_mri",
            "1",
            {
                **{"SSL-PANet": 63.17, "SSL-ALPNet": 78.84, "ADNet++": 80.99, "Q-Net": 81.02},
                **{"RPT": 82.44, "GMRD": 82.90, "FoB+SAM": 84.46},
            },
        ),
        (
            "synapse_ct",
            "1",
            {
                **{"SSL-ALPNet": 73.35, "RPT": 77.83, "GMRD": 78.52, "SD-FSMIS": 83.66},
                **{"FoB+SAM": 86.21},
            },
        ),
        ("cmr", "1", {"SSL-ALPNet": 76.90, "Q-Net": 78.15, "RPT": 78.85, "CAT-Net": 79.03}),
        ("synapse_ct", "2", {"nnU-Net 2D (supervised)": 87.50}),
        ("chaos_mri", "2", {"nnU-Net 2D (supervised)": 90.31}),
    ],
)
def test_rows_shown_are_those_the_documents_name(
    published: pd.DataFrame, dataset: str, setting: str, means: dict[str, float]
) -> None:
    table = shown(published, dataset, setting)
    assert table.loc[list(means), MEAN].to_dict() == means


@pytest.mark.parametrize(
    ("dataset", "mean"), [("synapse_ct", 80.02), ("chaos_mri", 83.30), ("cmr", 84.50)]
)
def test_the_paper_stands_with_its_mean_alone(
    published: pd.DataFrame, dataset: str, mean: float
) -> None:
    table = shown(published, dataset)
    assert table.index[-1] == PAPER
    numbers = table.loc[PAPER].drop(
        ["year", "setting", "status", "source", "note", "mark", "others", "reruns"]
    )
    assert numbers.dropna().to_dict() == {MEAN: mean}


def test_one_row_for_each_method_and_setting_and_none_flagged(published: pd.DataFrame) -> None:
    for dataset in ("chaos_mri", "synapse_ct", "cmr"):
        table = shown(published, dataset, setting=None).reset_index()
        stated = table["setting"].str.removesuffix(" (inferred)")
        assert not pd.MultiIndex.from_arrays([table["method"], stated]).duplicated().any()
        assert not table["note"].str.contains("mismatch|WARNING").any()


def test_everything_can_be_shown(published: pd.DataFrame) -> None:
    rows = published[published["dataset"] == "chaos_mri"]
    table = select(lay_out(rows, ABDOMEN), None, everything=True)
    assert table[[*ABDOMEN, MEAN]].notna().sum().sum() == len(rows)
    assert table["note"].str.contains("WARNING").any()


def test_sources_that_conflict_stand_side_by_side(published: pd.DataFrame) -> None:
    table = shown(published, "chaos_mri")
    assert [numbers for numbers, _ in table.loc["RPT", "others"]] == ["mean 82.38"]
    # a claim beside what others got who ran the method again
    ((numbers, source),) = table.loc["Q-Net", "reruns"]
    assert numbers == "mean 75.75" and "DSPNet" in source
    assert [numbers for numbers, _ in table.loc["SSL-ALPNet", "reruns"]] == ["mean 74.02"]
    assert [numbers for numbers, _ in table.loc["GMRD", "reruns"]] == ["mean 79.63"]
    assert table.loc["CoW", [MEAN, "status"]].tolist() == [84.1, "issue"]
    marks = table.loc[["RPT", "SSL-ALPNet", "SR&CL"], "mark"]
    assert marks.tolist() == ["✓", "✓", "†"]


def test_where_means_agree_the_organs_that_differ_are_named(write: Callable[..., Path]) -> None:
    mean = {"organ": "mean", "dice": "82.44"}
    other = {"source": "a digest", "status": "digest"}
    path = write({}, mean, other | {"dice": "80.00"}, other | mean)
    table = select(lay_out(read_published(path), ABDOMEN), "1", everything=False)
    assert table["source"].tolist() == [ROW["source"]]
    assert table["others"].tolist() == [[("liver 80.00", "a digest")]]


def test_a_contradicted_row_says_what_the_other_source_prints(write: Callable[..., Path]) -> None:
    mean = {"organ": "mean", "dice": "82.38"}
    check = {"check": "contradicted", "check_dice": "82.44", "check_source": "a peer"}
    path = write({"check": "confirmed", "check_source": "a peer"}, mean | check)
    table = select(lay_out(read_published(path), ABDOMEN), "1", everything=False)
    assert table["mark"].tolist() == ["≠"] and table["reruns"].tolist() == [[]]
    assert table["others"].tolist() == [[("mean 82.44", "a peer")]]
    # where there is another row, it is shown, however it was read
    other = {"source": "a scan", "status": "ocr", "dice": "80.00"}
    path = write(check, other)
    table = select(lay_out(read_published(path), ABDOMEN), "1", everything=False)
    assert table[["source", "mark"]].values.tolist() == [["a scan", "†"]]
    assert table["others"].tolist() == [[("liver 82.86", ROW["source"])]]


def test_a_row_is_confirmed_where_all_its_numbers_are(write: Callable[..., Path]) -> None:
    check = {"check": "confirmed", "check_source": "a peer"}
    for of_mean, mark in ((check, "✓"), ({}, "†")):
        path = write(check, {"organ": "mean", "dice": "82.44"} | of_mean)
        assert lay_out(read_published(path), ABDOMEN)["mark"].tolist() == [mark]


def test_a_confirmed_row_goes_before_all_others(write: Callable[..., Path]) -> None:
    path = write({}, {"status": "paper", "source": "their table 2", "dice": "83.00"})
    table = select(lay_out(read_published(path), ABDOMEN), "1", everything=False)
    assert table[["status", "liver"]].values.tolist() == [["paper", 83.0]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dice": "101"}, "dice=101: write a number of percent, 0 to 100"),
        ({"dice": "-1"}, "dice=-1: write a number of percent"),
        ({"dice": "nan"}, "dice=nan: write a number of percent"),
        ({"dice": "82,86"}, "dice=82,86: write a number of percent"),
        ({"dice": ""}, "dice is empty; fill it in or take the row out"),
        ({"organ": "lungs"}, "organ=lungs: write one of liver, RK, LK, spleen, mean"),
        ({"organ": "RV"}, "organ=RV: write one of liver"),
        ({"dataset": "CHAOS"}, "dataset=CHAOS: write one of chaos_mri"),
        ({"status": "hearsay"}, "status=hearsay: write one of paper, readme"),
        ({"setting": "3"}, "setting=3: write one of 1, 2"),
        ({"year": "2023a"}, "year=2023a: write a whole number"),
        ({"source": " "}, "source is empty"),
        ({"check": "seen", "check_source": "x"}, "check=seen: write one of confirmed, differs"),
        ({"check": "confirmed"}, "check and check_source go together"),
        ({"check": "differs", "check_source": "x"}, "check_dice is what a source prints"),
        ({"check": "confirmed", "check_source": "x", "check_dice": "1"}, "check_dice is what"),
        (
            {"check": "contradicted", "check_source": "x", "check_dice": "101"},
            "check_dice=101: write a number",
        ),
        ({}, "repeats line 2 (RPT, chaos_mri, 1, liver, their README, table 1); keep one"),
        ({"dice": "70.00", "note": "again"}, "repeats line 2"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_fix(
    write: Callable[..., Path], change: dict[str, str], said: str
) -> None:
    path = write({}, change)
    with pytest.raises(UserError) as error:
        read_published(path)
    assert str(error.value).startswith(f"{path}, line 3: {said}")
    assert "\n" not in str(error.value)


def test_a_line_is_counted_as_an_editor_counts(write: Callable[..., Path]) -> None:
    path = write({"note": "two\nlines"}, {"organ": "lungs"})
    with pytest.raises(UserError, match="line 4: organ=lungs"):
        read_published(path)


def test_a_comma_too_many_is_named(write: Callable[..., Path]) -> None:
    path = write({})
    path.write_text(path.read_text().replace('"their README, table 1"', "their README, table 1"))
    with pytest.raises(UserError, match="line 2: has not 12 values; quote"):
        read_published(path)


def test_other_columns_are_named(write: Callable[..., Path]) -> None:
    path = write({}, columns=COLUMNS[:-1])
    with pytest.raises(UserError, match=r"line 1: the columns are method, .*; make them method"):
        read_published(path)


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n\xff", b"\x00"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "published.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"published.csv(: not a readable|, line 1: the columns)"):
        read_published(path)


def test_a_spreadsheet_may_have_saved_it(write: Callable[..., Path]) -> None:
    path = write({})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_published(path)["dice"].tolist() == [82.86]


def own(**changes: object) -> pd.DataFrame:
    """One own run as ``collection.tabulate`` has it."""
    run = {"dataset": "chaos_mri", "method": "copy_mask", "protocol": "alpnet-3parts-organ_range"}
    run |= {**dict.fromkeys(ABDOMEN, 40.0), MEAN: 40.0, "covered": "20/20 scans"}
    run |= {"pooled Dice": 41.0, "variant": "a1", "data": "20 scans in 5 folds, 3f2a91c0"}
    return pd.DataFrame([run | changes])


def test_own_runs_stand_below_with_data_protocol_and_difference(published: pd.DataFrame) -> None:
    found = beside(own(), [], published)
    last, paper = found.table.iloc[-1], found.table.iloc[-2]
    assert paper["method"] == f"{PAPER}†" and found.own == [len(found.table) - 1]
    assert last["method"] == "copy_mask" and last["source"] == "here"
    assert last["protocol and data"] == "alpnet-3parts-organ_range, 20 scans in 5 folds, 3f2a91c0"
    assert last["to paper"] == pytest.approx(40 - 83.30) and pd.isna(paper["to paper"])
    rpt = found.table[found.table["method"] == "RPT 2023✓"].iloc[0]
    assert rpt["to paper"] == pytest.approx(82.44 - 83.30)


def test_every_source_is_told_with_its_status(published: pd.DataFrame) -> None:
    found = beside(own(), [], published)
    told = {note.split("]")[0] + "]" for note in found.notes if note.startswith("[")}
    assert set(found.table["source"]) - {"here"} <= told
    assert any("] ocr: tables 2-3" in note for note in found.notes)
    assert any("† not read in its own paper" in note for note in found.notes)
    assert any("No test against a published row is possible" in note for note in found.notes)
    assert any(
        note.startswith("GMRD 2024✓: run again by others mean 79.63 [") for note in found.notes
    )
    assert not [name for name in found.table if str(name).startswith("p ")]
    assert "31 of 110 published rows" in found.notes[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"data": "20 scans in 2 folds, 3f2a"},
        {"data": "8 scans in 5 folds"},
        {"covered": "partial"},
        {"data": "20 scans in 5 folds, 3f2a91c0, organs liver RK", "LK": None, "spleen": None},
    ],
)
def test_other_scans_than_the_benchmarks_have_no_difference(
    published: pd.DataFrame, change: dict[str, object]
) -> None:
    found = beside(own(**change), [], published)
    assert pd.isna(found.table["to paper"].iloc[-1])
    assert any("other scans than 20 scans in 5 folds" in note for note in found.notes)


def test_dataset_without_published_rows_has_no_such_table(published: pd.DataFrame) -> None:
    assert beside(own(dataset="phantom"), [], published) is None
    assert beside(own(dataset="mine"), [], published) is None


def test_settings_are_named_where_they_are_not_those_asked_for(published: pd.DataFrame) -> None:
    names = beside(own(), [], published, setting="2").narrow["method"].tolist()
    assert any(name.startswith("GMRD 2024✓ [") for name in names)
    assert any(name.startswith("Q-Net 2022†, setting 2 (inferred) [") for name in names)
    assert names[-1] == "copy_mask"


@pytest.mark.parametrize(("dataset", "scans"), [("chaos_mri", 20), ("synapse_ct", 30), ("cmr", 35)])
def test_benchmarks_have_the_published_folds(dataset: str, scans: int) -> None:
    assert benchmark(dataset) == f"{scans} scans in 5 folds"
    assert benchmark("mine") is None


def test_report_puts_published_rows_beside_own_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/c1", "copy_mask", scattered(0.4))
    write_run(tmp_path / "runs/p1", "copy_mask", scattered(0.5), dataset="phantom")
    report([str(tmp_path / "runs"), "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    _, beside = text.split("# chaos_mri beside published rows, setting 1\n")
    assert "| RPT 2023✓ " in beside and "phantom" not in beside
    assert "| alpnet-3parts-organ_range, 20 scans in 5 folds, 3f2a91c0 |" in beside
    assert "[3] readme: table 1 in the README of primebo1/FoB_SAM" in beside


def test_report_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    for dataset in ("chaos_mri", "phantom"):
        for reach in (0, 1):
            folder = tmp_path / dataset / f"v{reach}"
            settings = {"volume_pass.reach": reach, "memories": reach}
            write_run(folder, "augment_match_prompt", scattered(0.4), dataset=dataset, **settings)
    text = on_terminal("fsmis.tools.report", str(tmp_path))
    tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert tables and max(map(len, tables)) <= 80
    own = [line for line in tables if line.strip().startswith("augment_match_prompt,")]
    assert len(own) == 4 and all(len(re.findall(r"\d\d\.\d\d", line)) >= 5 for line in own)


def test_a_dataset_that_inherits_its_organs_is_no_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/mine.yaml").write_text("defaults: [chaos_mri]\nname: mine\n")
    (tmp_path / "dataset/own.yaml").write_text("name: ???\norgans: {a: 1}\n")
    (tmp_path / "dataset/whole.yaml").write_text("name: whole\norgans: {a: 1}\n")
    monkeypatch.setattr("fsmis.reporting.published.CONF_DIR", tmp_path)
    assert known_organs.__wrapped__() == {"whole": ["a"]}
