"""Sweeps whose jobs run side by side: killed in the middle, they end as if nothing had happened."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.runs.records import COLUMNS
from fsmis.runs.sweep import require_installed
from fsmis.settings import limit_threads
from tests.gated import ENVIRONMENT, GATE
from tests.test_run import copy_mask, small_root

__all__ = ["small_root"]  # a fixture

LAUNCHERS = sorted((CONF_DIR / "hydra/launcher").glob("*.yaml"))
# what a small machine without a GPU, and a job killed once, want other than as shipped
SMALL = {
    "joblib": "",
    "submitit_local": "",
    "submitit_slurm": "gpus_per_node=0 cpus_per_task=1 mem_gb=2",
    "ray": "ray.remote.num_cpus=1 ray.remote.max_retries=0",
}


def command(overrides: list[str], *more: str) -> list[str]:
    return [sys.executable, "-m", "fsmis.run", "-m", *overrides, "protocol.fold=0,1", *more]


def start(command: list[str]) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes)


def records(results: Path, name: str = "*.json") -> list[dict[str, Any]]:
    found = []
    for path in results.glob(f"phantom/*/*/cells/{name}"):
        try:
            found.append(json.loads(path.read_text()))
        except FileNotFoundError:  # being replaced
            continue
    return found


def count(results: Path, state: str) -> int:
    return sum(record["state"] == state for record in records(results))


def rows(results: Path) -> pd.DataFrame:
    """All scores of a sweep but the measured times."""
    scores = pd.concat(map(pd.read_csv, sorted(results.glob("phantom/*/*/scores.csv"))))
    return scores.drop(columns="seconds").reset_index(drop=True)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gate that stands open, before scan 2."""
    gate = tmp_path_factory.mktemp("gated") / GATE
    gate.touch()
    return gate


@pytest.fixture(scope="module")
def sweep(small_root: Path, gate: Path) -> Callable[[Path], list[str]]:
    """What the sweep runs, for a folder of results."""
    gated = ["method._target_=gated.GatedMethod", f"+method.folder={gate.parent}", "+method.at='2'"]
    return lambda results: copy_mask(small_root, results, *gated)


@pytest.fixture(scope="module")
def undisturbed(
    sweep: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> pd.DataFrame:
    """The rows of the sweep, its jobs one after another."""
    results = tmp_path_factory.mktemp("undisturbed")
    process = start(command(sweep(results)))
    assert process.communicate()[1] == "" and process.returncode == 0
    return rows(results)


def require_launcher(name: str) -> None:
    """Skip where the launcher's plugin, or a Slurm whose only node is this machine, is missing."""
    pytest.importorskip(f"hydra_plugins.hydra_{name.split('_')[0]}_launcher")
    if name == "submitit_slurm":
        if shutil.which("sinfo") is None:
            pytest.skip("no Slurm")
        nodes = subprocess.run(["sinfo", "-ho", "%n"], capture_output=True, text=True).stdout
        if set(nodes.split()) != {socket.gethostname()}:
            pytest.skip("no Slurm whose only node is this machine")


@pytest.mark.parametrize("launcher", SMALL)
def test_sweep_with_a_killed_job_ends_with_the_rows_of_an_undisturbed_one(
    sweep: Callable[[Path], list[str]],
    gate: Path,
    tmp_path: Path,
    undisturbed: pd.DataFrame,
    launcher: str,
) -> None:
    require_launcher(launcher)
    small = [f"hydra.launcher.{override}" for override in SMALL[launcher].split()]
    jobs = command(sweep(tmp_path), f"hydra/launcher={launcher}", *small)
    gate.unlink()
    os.mkfifo(gate)
    try:
        process = start(jobs)
        victim = None
        while victim is None and process.poll() is None:
            for record in records(tmp_path, "fold0_scan2.json"):
                victim = record["pid"] if record["state"] == "running" else None
            time.sleep(0.01)
        assert victim is not None, process.communicate()[1]
        os.kill(victim, signal.SIGKILL)
        errors = process.communicate()[1]
    finally:
        gate.unlink()
        gate.touch()
    assert process.returncode == 1
    assert "error: the launcher gave up" in errors and "the same command resumes" in errors
    assert "was killed or still runs" in errors and "Traceback" not in errors
    assert 1 <= count(tmp_path, "done") < 4

    cut_off = set(tmp_path.rglob("*.tmp"))
    assert not cut_off or launcher == "joblib"  # which kills the other jobs while they write
    process = start(jobs)
    errors = process.communicate()[1]
    assert process.returncode == 0 and (errors == "" or launcher == "ray")  # which logs its start
    assert len(undisturbed) == 16 and list(undisturbed.columns) == [
        column for column in COLUMNS if column != "seconds"
    ]
    pd.testing.assert_frame_equal(rows(tmp_path), undisturbed)
    (provenance,) = tmp_path.glob("phantom/*/*/provenance.json")
    words = shlex.split(json.loads(provenance.read_text())["command"])
    alone = ["python", "-m", "fsmis", "run", *sweep(tmp_path)]
    assert words in [[*alone, f"protocol.fold={fold}"] for fold in (0, 1)]
    assert set(tmp_path.rglob("*.tmp")) <= cut_off and not list(tmp_path.glob(".sweep/jobs-*"))


def test_sweep_launched_twice_at_once_leaves_the_rows_of_one(
    sweep: Callable[[Path], list[str]], tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    twice = [start(command(sweep(tmp_path))) for _ in range(2)]
    for process in twice:
        assert process.communicate()[1] == "" and process.returncode == 0
    pd.testing.assert_frame_equal(rows(tmp_path), undisturbed)


def test_sweep_of_no_jobs_is_refused(small_root: Path, tmp_path: Path, ask_run) -> None:
    done = ask_run(*copy_mask(small_root, tmp_path), "seed=range(0)", "-m")
    assert done.stderr.startswith("error: a sweep of no jobs") and done.returncode == 2


@pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher:UserWarning")
@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launcher_is_configured_as_its_plugin_wants(path: Path) -> None:
    plugin = path.stem.split("_")[0]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", [f"hydra/launcher={path.stem}"], return_hydra_config=True)
    configured = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    assert set(configured) == set(OmegaConf.load(path))  # the plugin knows them all, and no others
    if path.stem == "submitit_slurm":  # submitit knows fewer keys than its plugin lets through
        slurm = pytest.importorskip("submitit").SlurmExecutor
        known = {*slurm._equivalence_dict(), *slurm._valid_parameters()}
        own = {"_target_", "submitit_folder", "max_num_timeout"}
        assert set(configured) <= known | own


def test_launcher_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsmis.runs.sweep.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'which is not installed here; pip install -e ".\[ray\]"'):
        require_installed("hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher")
    require_installed("hydra._internal.core_plugins.basic_launcher.BasicLauncher")


def test_slurm_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setattr("fsmis.runs.sweep.shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs Slurm, and no srun is found here"):
        require_installed("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher")


def test_threads_of_a_process_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    limit_threads(None)
    assert os.environ["OMP_NUM_THREADS"] == "7" and torch.get_num_threads() == before
    try:
        limit_threads(3)
        assert os.environ["OMP_NUM_THREADS"] == "3" and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
