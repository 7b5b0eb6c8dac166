"""Sweeps whose jobs run side by side: killed in the middle, they end as if nothing had happened."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
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

SWEEP = ["dataset=phantom", "method=copy_mask", "protocol.fold=0,1"]
LAUNCHERS = sorted((CONF_DIR / "hydra/launcher").glob("*.yaml"))
# what a small machine without a GPU, and a job killed once, want other than as shipped
SMALL = {
    "joblib": "",
    "submitit_local": "",
    "submitit_slurm": "gpus_per_node=0 cpus_per_task=1 mem_gb=2",
    "ray": "ray.remote.num_cpus=1 ray.remote.max_retries=0",
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(data: Path, results: Path, *more: str) -> list[str]:
    where = [f"dataset.root={data}", f"results_dir={results}"]
    return [sys.executable, "-m", "fsmis.run", "-m", *SWEEP, *where, *more]


def start(command: list[str]) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes)


def records(results: Path) -> list[dict[str, Any]]:
    found = []
    for path in results.glob("phantom/*/*/cells/*.json"):
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
def undisturbed(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The rows of the sweep, its jobs one after another."""
    results = tmp_path_factory.mktemp("undisturbed")
    process = start(command(phantom_root, results))
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
    phantom_root: Path, tmp_path: Path, undisturbed: pd.DataFrame, launcher: str
) -> None:
    require_launcher(launcher)
    small = [f"hydra.launcher.{override}" for override in SMALL[launcher].split()]
    sweep = command(phantom_root, tmp_path, f"hydra/launcher={launcher}", *small)
    process = start(sweep)
    victim = None
    while victim is None and process.poll() is None:
        running = [record for record in records(tmp_path) if record["state"] == "running"]
        if running and count(tmp_path, "done"):
            victim = running[0]["pid"]
        time.sleep(0.01)
    assert victim is not None, process.communicate()[1]
    os.kill(victim, signal.SIGKILL)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "error: the launcher gave up" in errors and "the same command resumes" in errors
    assert "was killed or still runs" in errors and "Traceback" not in errors
    assert count(tmp_path, "done") < 4

    process = start(sweep)
    errors = process.communicate()[1]
    assert process.returncode == 0 and (errors == "" or launcher == "ray")  # which logs its start
    assert len(undisturbed) == 16 and list(undisturbed.columns) == [
        column for column in COLUMNS if column != "seconds"
    ]
    pd.testing.assert_frame_equal(rows(tmp_path), undisturbed)
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.glob(".sweep/jobs-*"))


def test_sweep_launched_twice_at_once_leaves_the_rows_of_one(
    phantom_root: Path, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    twice = [start(command(phantom_root, tmp_path)) for _ in range(2)]
    for process in twice:
        assert process.communicate()[1] == "" and process.returncode == 0
    pd.testing.assert_frame_equal(rows(tmp_path), undisturbed)


def test_sweep_of_no_jobs_is_refused(phantom_root: Path, tmp_path: Path) -> None:
    process = start(command(phantom_root, tmp_path, "seed=range(0)"))
    assert process.communicate()[1].startswith("error: a sweep of no jobs")
    assert process.returncode == 2


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
