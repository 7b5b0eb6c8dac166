"""The run folder: nothing half-written, nothing trusted that is torn, safe for two processes."""

from multiprocessing import Process
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fsmis.errors import UserError
from fsmis.files.atomic import write_atomic
from fsmis.runs.records import COLUMNS, PLAN, Cell, RunFolder, require_writable
from fsmis.runs.variant import identity, news, variant_hash

CELL = Cell(0, "8", "1")


def row(cell: Cell, organ: str = "liver", dice: float = 0.5) -> dict:
    """Scores of 10^9 voxels in the label and as many in the prediction."""
    common = round(dice * 10**9)
    counts = {"tp": common, "fp": 10**9 - common, "fn": 10**9 - common}
    overlap = {"dice": dice, "iou": common / (2 * 10**9 - common)}
    values = dict.fromkeys(COLUMNS, 1) | {"organ": organ, "hd95_mm": float("nan")}
    labels = {"dataset": "chaos_mri", "method": "m", "variant": "v", "protocol": "p"}
    return values | labels | vars(cell) | counts | overlap


def test_cell_comes_back_with_its_rows(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read(CELL)["state"] == "missing"
    folder.finish(CELL, [row(CELL, dice=np.float64(0.25))], skipped={})
    assert folder.read(CELL)["rows"][0]["dice"] == 0.25
    text = (tmp_path / "cells/fold0_scan1.json").read_text()
    assert "NaN" not in text and '"hd95_mm": null' in text
    scores = folder.rebuild()
    assert list(scores.columns) == COLUMNS and folder.scores()["query_scan"].tolist() == ["1"]
    assert np.isnan(folder.scores()["hd95_mm"][0])


def test_torn_cell_is_missing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish(CELL, [row(CELL)])
    path = tmp_path / "cells/fold0_scan1.json"
    whole = path.read_bytes()
    for size in range(len(whole)):
        for torn in (whole[:size], whole[:size].ljust(len(whole), b"\0")):
            path.write_bytes(torn)
            assert folder.read(CELL) == {"state": "missing"}
    assert folder.rebuild().empty


def test_file_left_by_a_kill_before_its_renaming_counts_for_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish(CELL, [row(CELL)])
    whole = (tmp_path / "cells/fold0_scan1.json").read_text()
    (tmp_path / "cells/.x1.tmp").write_text(whole.replace('"1"', '"2"'))
    assert folder.done([CELL, Cell(0, "8", "2")]) == [CELL]
    assert folder.rebuild()["query_scan"].tolist() == ["1"]


@pytest.mark.parametrize("content", ["[]", '{"state": "done"}', '{"state": "done", "rows": [{}]}'])
def test_cell_of_another_schema_is_missing(tmp_path: Path, content: str) -> None:
    write_atomic(tmp_path / "cells/fold0_scan1.json", content.encode())
    assert RunFolder(tmp_path).read(CELL) == {"state": "missing"}


def test_failure_does_not_replace_what_is_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.fail(CELL, "failed", "out of memory")
    assert folder.read(CELL)["reason"] == "out of memory"
    folder.finish(CELL, [row(CELL)])
    folder.fail(CELL, "interrupted", "SIGTERM")
    assert folder.read(CELL)["state"] == "done"


def compute(path: Path, fold: int) -> None:
    folder = RunFolder(path)
    for scan in range(20):
        cell = Cell(fold, "0", str(scan + 1))
        folder.finish(cell, [row(cell)])
        folder.rebuild()


@pytest.mark.parametrize("folds", [(0, 1), (0, 0)], ids=["other cells", "same cells"])
def test_two_processes_leave_all_rows(tmp_path: Path, folds: tuple[int, int]) -> None:
    processes = [Process(target=compute, args=(tmp_path, fold)) for fold in folds]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    scores = RunFolder(tmp_path).scores()
    assert (
        len(scores) == 20 * len(set(folds)) and not scores.duplicated(["fold", "query_scan"]).any()
    )


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "scores.csv"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_scores_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("fold,organ\n0,liver\n")
    with pytest.raises(UserError, match="no column dataset"):
        RunFolder(tmp_path).scores()
    (tmp_path / "scores.csv").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="not a table"):
        RunFolder(tmp_path).scores()


def test_writable_folder_need_not_exist(tmp_path: Path) -> None:
    require_writable(tmp_path / "a/b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        require_writable(tmp_path / "file/b")


class Data:
    """Stands for a dataset whose files have the given content."""

    def __init__(self, content: str = "a") -> None:
        self.content = content

    def fingerprint(self) -> str:
        return self.content


def config(weights: Path, **changes: object) -> dict:
    cfg = {
        "method": {"device": "cpu", "segmenter": {"checkpoint": str(weights), "size": 1}},
        "protocol": {"variant": "alpnet", "fold": 0},
        "dataset": {"root": "a", "organs": {"liver": 1}},
        "seed": 0,
    }
    settings = OmegaConf.create(cfg)
    for key, value in changes.items():
        OmegaConf.update(settings, key.replace("__", "."), value)
    return settings


def test_variant_covers_what_can_change_a_score(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / name for name in ("one.pt", "copy.pt", "other.pt"))
    for path, content in ((one, b"1"), (copy, b"1"), (other, b"2")):
        path.write_bytes(content)

    def variant(weights: Path = one, data: str = "a", **changes: object) -> str:
        return variant_hash(identity(config(weights, **changes), Data(data)))

    same = {variant(copy), variant(protocol__fold="all"), variant(method__device="cuda")}
    assert same | {variant(dataset__root="b")} == {variant()}
    others = [variant(other), variant(data="b"), variant(seed=1), variant(protocol__variant="qnet")]
    others += [variant(method__segmenter__size=2), variant(dataset__organs={"RK": 2})]
    assert len({variant(), *others}) == 7


def test_news_names_changed_data_alone(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    before = identity(config(weights), Data("a"))
    RunFolder(tmp_path / "runs/before").write_plan({"identity": before, "cells": []})
    (line,) = news(tmp_path / "runs", "now", identity(config(weights), Data("b")))
    assert "data files have changed since variant before" in line
    assert news(tmp_path / "runs", "now", identity(config(weights, seed=1), Data("b"))) == []
    trained_on = tmp_path / "trained_on.pt"
    trained_on.write_bytes(b"2")
    (line,) = news(tmp_path / "runs", "now", identity(config(trained_on), Data("a")))
    assert "weight files have changed" in line


def test_plan_comes_back_and_a_damaged_or_older_one_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    plan = dict.fromkeys(PLAN, "x") | {"organs": ["liver"], "cells": [CELL]}
    folder.write_plan(plan)
    assert folder.plan() == plan
    text = (tmp_path / "plan.json").read_text()
    older = [text.replace('"choices"', '"chosen"'), text.replace('"query_scan"', '"query"')]
    for damaged in ("", text[:-5], "[]", '{"cells": 3}', *older):
        (tmp_path / "plan.json").write_text(damaged)
        with pytest.raises(UserError, match=r"plan\.json: damaged or written by another version"):
            folder.plan()
