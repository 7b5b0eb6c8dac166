"""Hydra callback of a sweep: check the results folder first, list the failed jobs last."""

import atexit
import sys
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fsmis.cli import command_line
from fsmis.records import require_writable


class SweepSummary(Callback):
    """Lists what failed; the other jobs of a sweep go on, and Hydra's exit code is 1."""

    def __init__(self) -> None:
        self._failed: list[str] = []
        self._n_jobs = 0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a results folder that cannot be written, before Hydra writes to it."""
        with command_line():
            require_writable(config.results_dir)
        # Hydra leaves out on_multirun_end after a failed job, which is when it matters
        atexit.register(self._print)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remember a failed job by its overrides and its error."""
        self._n_jobs += 1
        if job_return.status is not JobStatus.COMPLETED:
            error = job_return._return_value  # the public property would raise it here
            reason = " ".join(str(error).split()) or type(error).__name__
            self._failed.append(f"{' '.join(job_return.overrides or [])} ({reason})")

    def _print(self) -> None:
        if self._failed:
            print(f"{len(self._failed)} of {self._n_jobs} jobs failed:", file=sys.stderr)
            print("\n".join(f"  {job}" for job in self._failed), file=sys.stderr)
