"""The run folder: nothing half-written, nothing trusted that is torn, safe for two processes."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from multiprocessing import Process
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.files import sha256, write_atomic
from fsmis.runs.cell_record import LATER, sealed
from fsmis.runs.records import COLUMNS, PLAN, Cell, RunFolder, require_writable
from fsmis.runs.variant import (
    NOT_SCORED,
    NOT_SCORED_OF_OURS,
    configured,
    identity,
    news,
    variant_hash,
    weights_of,
)

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


def rewritten(path: Path, seal: bool, **changes: object) -> None:
    """Change values of a cell's first row (those that it has) or of its record."""
    record = json.loads(path.read_text())
    del record["checksum"]
    for key, value in changes.items():
        (record["rows"][0] if key in COLUMNS else record)[key] = value
    path.write_text(json.dumps(sealed(record) if seal else record))


WRONG = [
    ("dice", 7.5, "dice=7.5 is not a number from 0 to 1"),
    ("dice", "abc", "dice='abc' is not a number from 0 to 1"),
    ("dice", None, "dice=None is not a number from 0 to 1"),
    ("dice", 0.6, "dice=0.6 of liver, but its counts give 0.5"),
    ("dice", float("nan"), "dice=nan is not"),
    ("iou", 0.5, "iou=0.5 of liver, but its counts give 0.333333"),
    ("tp", -1, "tp=-1 is not a whole number from 0"),
    ("tp", 0.5, "tp=0.5 is not a whole number from 0"),
    ("fp", True, "fp=True is not a whole number from 0"),
    ("fp", 10**400, "is not a whole number from 0"),
    ("hd95_mm", -2, "hd95_mm=-2 is not a number from 0, or null"),
    ("seconds", "1", "seconds='1' is not a number from 0"),
    ("organ", 3, "organ=3 is not a text"),
    ("query_scan", "2", "a row is of another scan"),
    ("rows", {}, "rows={} is not a list"),
    ("rows", [[]], "a row is no object"),
    ("skipped", ["RK"], "skipped=['RK'] is not reasons by organ"),
    ("state", "finished", "state='finished' is none of done"),
    ("state", [], "state=[] is none of done"),
    ("wall_seconds", "abc", "wall_seconds='abc' is not a number from 0"),
]


@pytest.mark.parametrize(
    ("key", "value", "problem"), WRONG, ids=[f"{k}={v!s:.9}" for k, v, _ in WRONG]
)
def test_impossible_cell_is_named_set_aside_and_missing(
    tmp_path: Path, key: str, value: object, problem: str
) -> None:
    folder = RunFolder(tmp_path)
    folder.finish(CELL, [row(CELL)])
    path = folder.cell_file(CELL)
    rewritten(path, seal=True, **{key: value})
    content = path.read_text()
    assert folder.read(CELL) == {"state": "missing"} and folder.done([CELL]) == []
    assert folder.rebuild().empty
    assert problem in str(folder.problem(CELL))
    (line,) = folder.set_aside([CELL])
    assert line.startswith(f"{path}: ") and problem in line and line.count("\n") == 0
    assert not path.exists() and folder.problem(CELL) is None
    assert (path.parent / "fold0_scan1.json.damaged-1").read_text() == content
    assert folder.set_aside([CELL]) == []


def test_edited_cell_is_told_by_its_checksum_and_every_damaged_one_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in (1, 2):
        folder.finish(CELL, [row(CELL)])
        path = folder.cell_file(CELL)
        path.write_text(path.read_text().replace('"seconds": 1', '"seconds": 2'))
        assert folder.read(CELL) == {"state": "missing"}
        (line,) = folder.set_aside([CELL])
        assert "its checksum is that of another content; kept as fold0_scan1.json" in line
        assert len(list(tmp_path.rglob("*.damaged-*"))) == number
    folder.finish(CELL, [row(CELL)])
    assert folder.set_aside([CELL]) == []


def test_cell_copied_to_another_place_is_not_of_it(tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path), Cell(0, "8", "2")
    folder.finish(CELL, [row(CELL)])
    shutil.copy(folder.cell_file(CELL), folder.cell_file(other))
    assert folder.done([CELL, other]) == [CELL] and len(folder.rebuild()) == 1
    assert folder.read(Cell(0, "7", "1")) == {"state": "missing"}
    (line,) = folder.set_aside([CELL, other])
    assert "fold0_scan2.json: of scan 1 of fold 0" in line


def test_cell_without_a_checksum_is_readable_and_not_used_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish(CELL, [row(CELL)])
    rewritten(folder.cell_file(CELL), seal=False)
    assert folder.read(CELL)["state"] == "done" and len(folder.rebuild()) == 1
    (line,) = folder.set_aside([CELL])
    assert "no checksum" in line and folder.done([CELL]) == []


def test_rows_that_are_no_scores_are_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an organ has two rows"):
        RunFolder(tmp_path).finish(CELL, [row(CELL), row(CELL)])
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


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (",0.5,", ",7.5,", "row 1: dice=7.5 is not a number from 0 to 1"),
        (",0.5,", ",abc,", "row 1: dice='abc' is not a number from 0 to 1"),
        (",0,", ",-1,", "row 1: fold=-1 is not a whole number from 0"),
    ],
)
def test_scores_that_cannot_be_are_one_line(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    folder = RunFolder(tmp_path)
    folder.finish(CELL, [row(CELL)])
    folder.rebuild()
    path = tmp_path / "scores.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(f"{path}: {problem}; run the same command")):
        folder.scores()


def test_names_that_look_like_something_else_stay_names(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    labels = {"variant": "012345678901", "organ": "NA"}
    folder.finish(CELL, [row(CELL) | labels])
    folder.rebuild()
    scores = folder.scores()
    assert scores.loc[0, list(labels)].to_dict() == labels and np.isnan(scores["hd95_mm"][0])


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
        "method": {"segmenter": {"checkpoint": str(weights), "size": 1, "device": "cpu"}},
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

    same = {variant(copy), variant(protocol__fold="all")}
    same |= {variant(method__segmenter__device="cuda"), variant(dataset__expected={"window": 1})}
    assert same | {variant(dataset__root="b")} == {variant()}
    others = [variant(other), variant(data="b"), variant(seed=1), variant(protocol__variant="qnet")]
    others += [variant(method__segmenter__size=2), variant(dataset__organs={"RK": 2})]
    assert len({variant(), *others}) == 7


def test_a_folder_that_transformers_opens_counts_by_its_files(tmp_path: Path) -> None:
    """Its configuration and its weights, and not where it lies."""
    folders = [tmp_path / name for name in ("one", "copy", "weights", "config")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("2" if folder.name == "config" else "1")
        (folder / "model.safetensors").write_text("2" if folder.name == "weights" else "1")
        (folder / "preprocessor.json").write_text(folder.name)
    one, copy, *others = (variant_hash(identity(config(folder), Data())) for folder in folders)
    assert one == copy and len({one, *others}) == 3
    kept = weights_of(config(folders[0]).method)
    assert list(kept) == [str(folders[0])]
    (folders[0] / "config.json").unlink()  # then a name like any other
    assert weights_of(config(folders[0]).method) == {}


@pytest.mark.parametrize(
    "key",
    [
        *("root", "source", "folder", "fold", "device"),
        *("batch_size", "compile", "cache", "source.alpha"),
    ],
)
def test_a_parameter_counts_whatever_a_method_calls_it(tmp_path: Path, key: str) -> None:
    base = config(tmp_path / "none.pt")
    found = []
    for value in (1, 2):
        cfg = base.copy()
        OmegaConf.update(cfg, f"method.{key}", value)
        found.append(configured(cfg))
    assert found[0]["method"][key] == 1 and variant_hash(found[0]) != variant_hash(found[1])


def test_every_key_that_is_not_scored_exists() -> None:
    keys = set()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for choice in ("matcher=lpips", "matcher=ssim", "method=panet", "method=universeg"):
            cfg = OmegaConf.to_container(compose("config", [choice]), resolve=True)
            keys |= {key for part in cfg for key in dotted(cfg[part], part)}
    # both are parameters of a segmenter alone
    absent = {"method.matcher.encode_batch_size", "method.matcher.compile"}
    assert NOT_SCORED - keys == absent and keys >= NOT_SCORED_OF_OURS


def test_where_and_in_what_batches_a_method_of_ours_computes_does_not_count() -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        found = [
            configured(compose("config", ["method=universeg", *more]))
            for more in ([], ["device=cuda"], ["method.batch_size=3"], ["method.image_size=64"])
        ]
    assert found[0] == found[1] == found[2] != found[3]


@pytest.mark.parametrize(
    ("method", "setting"), [("predictions", "predictions"), ("panet", "training.supervoxels.files")]
)
def test_a_folder_of_maps_counts_by_its_nifti_files(
    tmp_path: Path, method: str, setting: str
) -> None:
    def identified(folder: Path) -> dict:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            key = setting if setting == "predictions" else f"method.{setting}"
            return configured(compose("config", [f"method={method}", f"{key}={folder}"]))

    (tmp_path / "1.nii.gz").write_bytes(b"1")
    (tmp_path / "2.nii").write_bytes(b"2")
    first = identified(tmp_path)
    files = {path.name: sha256(path) for path in tmp_path.iterdir()}
    expected = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    assert first["weights"] == {setting: expected} and setting not in first["method"]
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "plans.json").write_text("{}")
    assert identified(tmp_path) == first
    (tmp_path / "1.nii.gz").write_bytes(b"other")
    assert identified(tmp_path) != first


def dotted(value: object, key: str) -> Iterator[str]:
    """A key and all below it."""
    yield key
    if isinstance(value, dict):
        for name, item in value.items():
            yield from dotted(item, f"{key}.{name}")


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


def test_runs_of_versions_that_counted_less_are_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish(CELL, [row(CELL)], skipped={})
    path = tmp_path / "cells/fold0_scan1.json"
    record = json.loads(path.read_text())
    for name in LATER:
        del record["rows"][0][name]
    del record["checksum"]
    path.write_text(json.dumps(record))
    assert folder.read(CELL)["state"] == "done"
    folder.rebuild()
    pd.read_csv(tmp_path / "scores.csv").drop(columns=list(LATER)).to_csv(
        tmp_path / "scores.csv", index=False
    )
    scores = folder.scores()
    assert scores["dice"].tolist() == [0.5] and scores[list(LATER)].isna().all(axis=None)
