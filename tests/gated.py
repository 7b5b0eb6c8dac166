"""A method and a training that stop at a gate, so that tests can meet a process half-way.

A gate is a named pipe ``gate`` in a folder. The classes are named in settings of
``python -m fsmis run``.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select

import numpy as np

from fsmis.data.protocol import Episode
from fsmis.methods.registration import CopyMask
from fsmis.methods.trained.fold import Schedule

HERE = Path(__file__).resolve().parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])
GATE = "gate"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


def stand_at(gate: Path) -> None:
    """Wait until nobody holds the gate; looking up at times, since Python does not act on a signal
    that arrives just before a read until the read ends."""
    with gate.open() as pipe:
        while not select([pipe], [], [], 0.1)[0]:
            pass


class GatedMethod(CopyMask):
    """Stops before the scan ``at``, at the gate in ``folder``."""

    def __init__(self, folder: str, at: str) -> None:
        self._folder, self._at = folder, at

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        if episode.query.id == self._at:
            stand_at(Path(self._folder) / GATE)
        return super().segment(episode)


@dataclass(frozen=True)
class GatedSchedule(Schedule):
    """Stops before the step ``at``, counted from 0, at the gate in ``folder``."""

    folder: str
    at: int

    def rate(self, step: int) -> float:
        if step == self.at:
            stand_at(Path(self.folder) / GATE)
        return super().rate(step)


def start(command: list[str]) -> subprocess.Popen[str]:
    """A process that finds the classes, ``stdout`` and ``stderr`` one pipe."""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, stdout=pipe, stderr=both, text=True, env=ENVIRONMENT)


@contextmanager
def stopped_at_gate(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Inside the block a process stands at the gate; those that come later find it open.

    Args:
        command: of the process, whose ``stdout`` and ``stderr`` are one pipe.
        folder: in which the gate is made.
    """
    gate = folder / GATE
    os.mkfifo(gate)
    process = start(command)
    while True:
        try:
            descriptor = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # it is not there yet
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    gate.unlink()
    gate.touch()
    try:
        yield process
    finally:
        os.close(descriptor)
