"""What surrounds the jobs of a sweep, in whichever process a launcher runs them."""

import atexit
import json
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fsmis.cli import SOME_FAILED, command_line
from fsmis.errors import UserError
from fsmis.files.atomic import write_atomic
from fsmis.runs.records import read_json, require_writable

# conf/hydra/launcher has files of the same names as the plugins' own, to which they are held
warnings.filterwarnings(
    "ignore", r"\n?.*is validated against ConfigStore schema with the same name"
)

# packages whose errors say that a launcher gave up; the extras that install them are named the same
LAUNCHERS = ("joblib", "submitit", "ray")


class SweepSummary(Callback):
    """Lists the jobs that failed, when all are through, and exits with code 1 if there are any.

    Jobs may run in other processes and on other machines, so each notes its end in a file; that of
    a job that was killed still says so. Hydra hands this object, with the folder, to every job.
    """

    def __init__(self) -> None:
        self._jobs: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a results folder that cannot be written, before Hydra writes to it."""
        with command_line():
            require_writable(config.results_dir)
            require_installed(config.hydra.launcher._target_)
        sweeps = Path(config.hydra.sweep.dir).expanduser().absolute()
        self._jobs = sweeps / f"jobs-{uuid.uuid4().hex}"
        self._jobs.mkdir(parents=True)
        # Hydra leaves out on_multirun_end where a job was killed, which is when it matters
        atexit.register(self._print)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that a job has begun."""
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
    """Exit with code 1 and a line where a launcher gives up: a job was killed, or not accepted."""
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
    """Refuse a launcher whose package, or Slurm, is not there; Hydra's own need none."""
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
