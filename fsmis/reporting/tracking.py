"""Weights & Biases: one record of a run, written into its folder when it ends, sent if asked for.

A record holds the whole run as it stands, so the newest one of a run replaces those before it. It
is always written offline: a network that fails or hangs costs nothing but the sending.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fsmis.errors import UserError
from fsmis.reporting.tables import completeness, summarise
from fsmis.runs.records import RunFolder, read_json
from fsmis.runs.sweep import sweeps
from fsmis.source import package_version

MODES = ("disabled", "offline", "online")
INSTALL = "wandb is not installed; pip install 'fsmis[wandb]' or set wandb.mode=disabled"
LONGEST_GROUP, LONGEST_TAG = 128, 64  # characters that wandb takes
MEASURES = ["dice", "sd", "iou", "hd95_mm", "assd_mm", "scans"]


class SweepGroup(Callback):
    """Hydra callback: the records of a sweep form a group, named after what it varies.

    A sweep that is resumed by the same command has the same name. Hydra hands this object to every
    job, in whichever process, where wandb takes the name from its environment variable.
    """

    def __init__(self) -> None:
        self._group: str | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the group: the experiment, and overrides of several values."""
        given = list(config.hydra.overrides.task)
        several = sweeps(given)
        named = [text for text in given if text in several or text.startswith("experiment=")]
        self._group = " ".join(named)[:LONGEST_GROUP] or None

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hand the name to wandb, where the user has not named a group."""
        if self._group is not None:
            os.environ.setdefault("WANDB_RUN_GROUP", self._group)


def check(settings: DictConfig) -> None:
    """Refuse settings (``wandb`` in ``conf/config.yaml``) that could not be followed at the end.

    Raises:
        UserError: the mode is unknown, or sending is asked for and wandb is not installed.
    """
    if settings.mode not in MODES:
        raise UserError(f"wandb.mode={settings.mode}: choose one of {', '.join(MODES)}")
    if settings.mode == "online" and package_version("wandb") is None:
        raise UserError(f"wandb.mode=online: {INSTALL}")


def track(folder: RunFolder, settings: DictConfig) -> str | None:
    """Record a run in ``<run>/wandb/`` where it has changed since the last record, and send it.

    The id of the wandb run is the variant's hash, so a resumed run is the same one there.

    Args:
        folder: a run with its plan, configuration and scores.
        settings: ``wandb`` in ``conf/config.yaml``.

    Returns:
        A line to show where there is something to say. Nothing is raised: a run whose scores are
        safe does not fail for its record.
    """
    if settings.mode == "disabled":
        return None
    if package_version("wandb") is None:
        return f"not tracked: {INSTALL}"
    try:
        record = _newest(folder)
        if record is None or _is_older(record, folder):
            _write(folder, settings)
            record = _newest(folder)
        if settings.mode == "online" and record is not None:
            return _send(record, settings.timeout)
    except Exception as error:  # whatever wandb stumbles over
        return f"not tracked by wandb: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _newest(folder: RunFolder) -> Path | None:
    """The transaction log of the newest record; their names begin with the time."""
    return max(folder.path.glob("wandb/offline-run-*/run-*.wandb"), default=None)


def _is_older(record: Path, folder: RunFolder) -> bool:
    content = [path for name in ("cells", "figures") for path in (folder.path / name).glob("*.*")]
    return any(path.stat().st_mtime > record.stat().st_mtime for path in content)


def _write(folder: RunFolder, settings: DictConfig) -> None:
    # wandb stages tables in the home folder and takes a folder that is not there for unwritable
    (folder.path / "wandb").mkdir(exist_ok=True)
    os.environ["WANDB_DATA_DIR"] = str(folder.path / "wandb")
    import wandb

    plan, scores = folder.plan(), folder.scores()
    table = summarise(scores, plan["organs"])
    config = OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"))
    provenance = read_json(folder.path / "provenance.json")
    covered = completeness(scores, plan, folder.states(plan["cells"], scores))
    with wandb.init(
        id=plan["variant"],
        project=settings.project,
        group=settings.group,
        name=f"{plan['method']} {plan['variant']}",
        tags=[plan[label][:LONGEST_TAG] for label in ("dataset", "method", "protocol")],
        config={"run": config, "provenance": provenance},
        dir=folder.path,
        settings=wandb.Settings(mode="offline", silent=True, console="off", x_disable_stats=True),
    ) as run:
        by_organ = table.set_index("organ")[MEASURES]
        values = {
            f"{measure}/{organ}": value
            for measure, column in by_organ.items()
            for organ, value in column.items()
        }
        tables = {"scores": wandb.Table(dataframe=scores), "table": wandb.Table(dataframe=table)}
        overlays = {
            f"overlay/{path.stem}": wandb.Image(str(path))
            for path in sorted(folder.path.glob("figures/*.png"))
        }
        run.log(values | tables | overlays)
        run.summary["covered"] = covered
    wandb.teardown()  # the record is complete only when wandb's service has ended


def _send(record: Path, seconds: float) -> str | None:
    """Send a record that has not been sent; wandb itself would try for ever."""
    if record.with_name(f"{record.name}.synced").is_file():
        return None
    command = [sys.executable, "-m", "wandb", "sync", str(record.parent)]
    try:
        sent = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        reason = f"no answer in {seconds:g} seconds"
    else:
        if sent.returncode == 0:
            return None
        reason = (sent.stderr.split("Error: ")[-1].strip() or "see its log").replace("\n", " ")
    return f"not sent to wandb ({reason}); to send it later: wandb sync '{record.parent}'"
