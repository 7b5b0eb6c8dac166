"""The record of a run for Weights & Biases, read back from disk; nothing leaves the machine."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.reporting import tracking
from fsmis.reporting.tracking import SweepGroup, check, track
from fsmis.run import Run
from fsmis.runs.records import RunFolder
from tests.tools.test_report import CELLS, write_run

pytest.importorskip("wandb", reason="wandb is not installed: pip install 'fsmis[wandb]'")
from wandb.proto.wandb_internal_pb2 import Record

BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, 7


def settings(**changes: Any) -> DictConfig:
    """``wandb`` of ``conf/config.yaml``, offline."""
    wandb = OmegaConf.load(CONF_DIR / "config.yaml")["wandb"]
    return OmegaConf.merge(wandb, {"mode": "offline"}, changes)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A finished run with an overlay, in a home of its own."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/abc", "copy_mask", 0.4, CELLS)
    run = RunFolder(tmp_path / "runs/abc")
    run.write("config.yaml", "seed: 0\nmethod: {width: 2}\n")
    run.write_json("provenance.json", {"device": "cpu"})
    figures = run.path / "figures"
    figures.mkdir()
    Image.new("RGB", (4, 4)).save(figures / "fold0_scan1.png")
    return run


def messages(log: Path) -> Iterator[Record]:
    """Records of a transaction log: LevelDB's format, behind a header of 7 bytes."""
    content, position, message = log.read_bytes(), FILE_HEADER, b""
    while position + CHUNK_HEADER <= len(content):
        if BLOCK - position % BLOCK < CHUNK_HEADER:  # the rest of a block is too small for a chunk
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        start = position + CHUNK_HEADER
        message += content[start : start + length]
        position = start + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(message)
            message = b""
            yield record


def logs(folder: RunFolder) -> list[Path]:
    return sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))


def read(log: Path) -> dict[str, Any]:
    """The run of a log, its settings and what it logged, by key."""
    found: dict[str, Any] = {"logged": {}}
    for record in messages(log):
        if record.HasField("run"):
            found["run"] = record.run
            found["config"] = {e.key: json.loads(e.value_json) for e in record.run.config.update}
        for entry in record.history.item:
            key = "/".join(entry.nested_key) or entry.key
            found["logged"][key] = json.loads(entry.value_json)
    return found


def test_offline_record_holds_config_dice_tables_and_overlays(folder: RunFolder) -> None:
    assert track(folder, settings(group="a sweep")) is None
    (log,) = logs(folder)
    record = read(log)
    run = record["run"]
    assert (run.run_id, run.run_group, run.project) == ("abc", "a sweep", "fsmis")
    assert list(run.tags) == ["chaos_mri", "copy_mask", "alpnet-3parts-organ_range"]
    assert record["config"]["run"] == {"seed": 0, "method": {"width": 2}}
    assert record["config"]["provenance"] == {"device": "cpu"}
    logged = record["logged"]
    assert logged["dice/liver"] == logged["dice/RK"] == logged["dice/mean"] == 40
    assert logged["scores/nrows"] == 4 and logged["table/nrows"] == 3
    overlay = log.parent / "files" / logged["overlay/fold0_scan1/path"]
    assert overlay.read_bytes().startswith(b"\x89PNG")
    # in the run folder alone
    assert {path.name for path in Path.cwd().iterdir()} <= {"runs", "home"}


def test_a_run_is_recorded_anew_only_where_it_changed(folder: RunFolder) -> None:
    track(folder, settings())
    track(folder, settings())
    assert len(logs(folder)) == 1
    path = folder.path / "cells/fold0_scan1.json"
    later = logs(folder)[0].stat().st_mtime + 5
    os.utime(path, (later, later))
    # names of records begin with the second
    logs(folder)[0].parent.rename(folder.path / "wandb/offline-run-20200101_000000-abc")
    track(folder, settings())
    assert [read(log)["run"].run_id for log in logs(folder)] == ["abc", "abc"]


def test_disabled_leaves_no_trace_and_imports_nothing(folder: RunFolder) -> None:
    before = sorted(folder.path.rglob("*"))
    program = (
        "import sys; from pathlib import Path; from omegaconf import OmegaConf; "
        "from fsmis.runs.records import RunFolder; from fsmis.reporting.tracking import track; "
        f"track(RunFolder(Path({str(folder.path)!r})), OmegaConf.create({{'mode': 'disabled'}})); "
        "sys.exit('wandb' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(CONF_DIR.parent)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert sorted(folder.path.rglob("*")) == before
    assert not Path(os.environ["HOME"]).exists()


def test_a_network_that_never_answers_costs_the_sending_alone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        said = track(folder, settings(mode="online", timeout=2))
    (log,) = logs(folder)
    assert said == (
        f"not sent to wandb (no answer in 2 seconds); to send it later: wandb sync '{log.parent}'"
    )


def test_a_method_of_a_long_name_is_tracked(folder: RunFolder) -> None:
    folder.write_plan(folder.plan() | {"method": "x" * 100})
    assert track(folder, settings()) is None
    (log,) = logs(folder)
    assert list(read(log)["run"].tags)[1] == "x" * 64


def test_online_without_a_key_is_said_in_one_line(folder: RunFolder) -> None:
    said = track(folder, settings(mode="online"))
    assert said is not None and "No API key configured" in said and "\n" not in said
    assert len(logs(folder)) == 1


def test_what_wandb_stumbles_over_stops_no_run(folder: RunFolder) -> None:
    (folder.path / "wandb").write_text("a file where its folder should be")
    said = track(folder, settings())
    assert said is not None and said.startswith("not tracked by wandb: FileExistsError")


def test_without_wandb_a_run_goes_on_and_sending_is_refused_first(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "package_version", lambda name: None)
    assert track(folder, settings()) == (
        "not tracked: wandb is not installed; pip install 'fsmis[wandb]' or set wandb.mode=disabled"
    )
    check(settings())
    with pytest.raises(UserError, match=r"wandb\.mode=online: wandb is not installed"):
        check(settings(mode="online"))
    with pytest.raises(UserError, match=r"wandb\.mode=on: choose one of disabled, offline, online"):
        check(settings(mode="on"))


@pytest.mark.parametrize(
    ("overrides", "group"),
    [
        (["experiment=ablation_matcher", "seed=1"], "experiment=ablation_matcher"),
        (["seed=1", "matcher=ssim,ncc", "protocol.fold=0,1"], "matcher=ssim,ncc protocol.fold=0,1"),
    ],
)
def test_a_sweep_is_a_group(overrides: list[str], group: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "to be gone afterwards")
    monkeypatch.delenv("WANDB_RUN_GROUP")
    config = OmegaConf.create({"hydra": {"overrides": {"task": overrides}}})
    sweep = SweepGroup()
    sweep.on_multirun_start(config)
    sweep.on_job_start(config)
    assert os.environ["WANDB_RUN_GROUP"] == group


def test_tracking_is_no_part_of_a_variant(phantom_root: Path, tmp_path: Path) -> None:
    variants = set()
    for mode in ("disabled", "offline"):
        where = [f"dataset.root={phantom_root}", f"results_dir={tmp_path}", f"wandb.mode={mode}"]
        chosen = ["dataset=phantom", "method=copy_mask"]
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", [*chosen, *where])
        choices = dict.fromkeys(cfg, "") | {"method": "copy_mask"}
        variants.add(Run(cfg, choices).labels["variant"])
    assert len(variants) == 1


def test_sweep_records_each_run_in_its_folder(phantom_root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CONF_DIR.parent), "HOME": str(tmp_path / "home")}
    where = [f"dataset.root={phantom_root}", "results_dir=runs", "wandb.mode=offline"]
    chosen = ["dataset=phantom", "method=copy_mask", "protocol.fold=0", "seed=0,1"]
    command = [sys.executable, "-m", "fsmis.run", "-m", *chosen, *where]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = [RunFolder(path) for path in tmp_path.glob("runs/phantom/copy_mask/*")]
    runs = [read(log)["run"] for folder in folders for log in logs(folder)]
    assert sorted(run.run_id for run in runs) == sorted(folder.path.name for folder in folders)
    assert [run.run_group for run in runs] == ["seed=0,1"] * 2
    assert not (tmp_path / "wandb").exists()
