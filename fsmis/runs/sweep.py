"""What surrounds the jobs of a sweep, whichever process a launcher runs them in."""

import atexit
import json
import os
import re
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from fsmis.cli import CONF_DIR, SOME_FAILED, command_line
from fsmis.errors import UserError
from fsmis.files import write_atomic
from fsmis.runs.records import Cell, read_json, require_writable
from fsmis.settings import require_replacing

# conf/hydra/launcher has files of the same names as the plugins' own, to which they are held
warnings.filterwarnings(
    "ignore", r"\n?.*is validated against ConfigStore schema with the same name"
)

# packages whose errors say that a launcher gave up; the extras that install them are named the same
LAUNCHERS = ("joblib", "submitit", "ray")


class SweepSummary(Callback):
    """List the jobs that failed once all are through, and exit with code 1 if there are any.

    Jobs may run in other processes and on other machines, so each notes its end in a file; the note
    of a killed job says so too. Hydra hands this object, with the folder, to every job.
    """

    def __init__(self) -> None:
        self._jobs: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse an unwritable results folder before Hydra writes to it."""
        with command_line():
            require_writable(config.results_dir)
            require_installed(config.hydra.launcher._target_)
        sweeps = Path(config.hydra.sweep.dir).expanduser().absolute()
        self._jobs = sweeps / f"jobs-{uuid.uuid4().hex}"
        self._jobs.mkdir(parents=True)
        # Hydra leaves out on_multirun_end where a job was killed, which is when it matters
        atexit.register(self._print)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._note(config, "was killed or still runs")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how a job ended: ``main`` returns why it failed."""
        reason = job_return._return_value  # the public property would raise an error here
        if job_return.status is not JobStatus.COMPLETED:
            reason = f"{type(reason).__name__}: {reason}"
        self._note(config, reason)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 1 where a job failed, and refuse a sweep without any."""
        with command_line():
            if not self._notes():
                raise UserError("a sweep of no jobs: one of its lists of values is empty")
        if self._failed():
            raise SystemExit(SOME_FAILED)

    def _note(self, config: DictConfig, reason: str | None) -> None:
        # a job that outlives its sweep, as Slurm's do when another was killed, has nobody to tell
        if self._jobs is not None and self._jobs.is_dir():
            overrides = " ".join(config.hydra.overrides.task)
            note = {"overrides": overrides, "reason": reason and " ".join(reason.split())}
            write_atomic(self._jobs / f"{config.hydra.job.num}.json", json.dumps(note).encode())

    def _notes(self) -> list[dict[str, Any]]:
        assert self._jobs is not None
        paths = sorted(self._jobs.glob("*.json"), key=lambda path: int(path.stem))
        return [note for note in map(read_json, paths) if note is not None]

    def _failed(self) -> list[str]:
        return [
            f"{note['overrides']} ({note['reason']})" for note in self._notes() if note["reason"]
        ]

    def _print(self) -> None:
        failed = self._failed()
        if failed:
            print(f"{len(failed)} of {len(self._notes())} jobs failed:", file=sys.stderr)
            print("\n".join(f"  {job}" for job in failed), file=sys.stderr)
        assert self._jobs is not None
        shutil.rmtree(self._jobs, ignore_errors=True)


@contextmanager
def killed_jobs() -> Iterator[None]:
    """Exit with code 1 and a line where a launcher gives up: a job was killed, or refused."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in LAUNCHERS:
            raise
        reason = str(error).strip().splitlines() or [""]
        print(
            f"error: the launcher gave up ({type(error).__name__}: {reason[0]}); "
            "other jobs may go on, the same command resumes",
            file=sys.stderr,
        )
        raise SystemExit(SOME_FAILED) from None


def require_installed(target: str) -> None:
    """Refuse a launcher whose package, or Slurm, is missing; Hydra's own launchers need none."""
    package, _, module = target.partition(".")
    if package == "hydra_plugins":
        plugin = module.split(".")[0]
        if find_spec(package) is None or find_spec(f"{package}.{plugin}") is None:
            extra = next(name for name in LAUNCHERS if name in plugin)
            raise UserError(
                f"hydra/launcher needs {plugin}, which is not installed here; "
                f'pip install -e ".[{extra}]"'
            )
    if target.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm needs Slurm, and no srun is found here; run it where "
            "sbatch works, or choose submitit_local"
        )


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep, or the only one.

    Attributes:
        shared: overrides of all runs of the sweep, as on the command line.
        values: value of each key that the command line or its experiment sweeps.
        choices: name of the choice in each config group.
    """

    shared: list[str]
    values: dict[str, str]
    cfg: DictConfig
    choices: dict[str, str]

    @property
    def name(self) -> str:
        """Its values, as on the command line; empty for a single run."""
        return " ".join(f"{key}={value}" for key, value in self.values.items())


def compose_jobs(overrides: list[str], multirun: bool) -> list[Job]:
    """The jobs of a command line, in the order in which Hydra starts them.

    HydraException where Hydra refuses an override; UserError without jobs, or for a mapping that
    would not replace the existing one.
    """
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        if not multirun:
            return [_job(overrides, [])]
        last = {_key(override): override for override in overrides}  # the last one counts
        several = sweeps(last.values())
        single = [override for override in last.values() if override not in several]
        base = compose("config", single, return_hydra_config=True)  # an experiment may sweep more
        planned = [f"{key}={values}" for key, values in (base.hydra.sweeper.params or {}).items()]
        varied = {_key(override) for override in planned + several}
        shared = [override for key, override in last.items() if key not in varied]
        swept = planned + [override for key, override in last.items() if key in varied]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        (combinations,) = BasicSweeper.split_arguments(parser.parse_overrides(swept), None)
        if not combinations:
            raise UserError("a sweep of no jobs: one of its lists of values is empty")
        return [_job(shared, combination) for combination in combinations]


def at_home(word: str) -> str:
    """``results_dir=~/runs``, quoted or not, with the path of the home folder: Hydra refuses it, or
    takes it for a folder named ``~``. Any other word of a command line stays as it is."""
    value = r"^([\w.@/+]+=['\"]?)(~[^/'\"]*)(?=/|['\"]?$)"
    return re.sub(value, lambda m: m[1] + os.path.expanduser(m[2]), word)


PLAIN = re.compile(r"[\w./ -]+", re.ASCII)  # of which Hydra reads nothing else than text


def quoted(value: str) -> str:
    """A path as the value of an override, such as ``'scans (1), new'``."""
    return value if PLAIN.fullmatch(value) else "'" + value.replace("'", r"\'") + "'"


def own_options(config_dir: Path | None) -> list[str]:
    """The override that adds a user's folder of options, as ``--config-dir`` of fsmis run does."""
    if config_dir is None:
        return []
    path = str(config_dir.absolute())
    return [f"hydra.searchpath=[{quoted(f'file://{path}')}]"]


def sweeps(overrides: Iterable[str]) -> list[str]:
    """The overrides that give a key several values; HydraException where Hydra refuses one."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [str(override.input_line) for override in parsed if override.is_sweep_override()]


def _job(shared: list[str], varied: list[str]) -> Job:
    cfg = compose("config", shared + varied, return_hydra_config=True)
    with open_dict(cfg):
        choices = dict(cfg.pop("hydra").runtime.choices)
    require_replacing(shared + varied, cfg)
    values = {_key(override): override.split("=", 1)[1] for override in varied}
    return Job(shared, values, cfg, choices)


def _key(override: str) -> str:
    return override.split("=", 1)[0]


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Number of a share, from 1, and how many there are (1 of 1 for None); UserError if invalid."""
    if shard is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"shard={shard}: give i/n, the share i of n, such as 1/4 to 4/4")
    return int(match[1]), int(match[2])


def share(cells: list[Cell], every: list[Cell], shard: str | None, variant: str) -> list[Cell]:
    """The requested cells that are in a share.

    A cell's share depends only on its place among all cells of the run (``every``, of all folds)
    and on the variant, not on the folds selected or what is done. So the shares of one n are
    disjoint, cover everything, and differ by at most one cell of a run. The variant (hexadecimal)
    shifts the start, so that many small runs of a sweep spread as well.

    Raises UserError where ``shard`` is invalid (see ``parse_shard``).
    """
    number, n_shares = parse_shard(shard)
    place = {cell: position + int(variant, 16) for position, cell in enumerate(every)}
    return [cell for cell in cells if place[cell] % n_shares == number - 1]
