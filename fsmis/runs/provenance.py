"""Where numbers come from: code, packages, device, weights, data, command, time."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsmis.source import package_version

PACKAGES = [
    *("fsmis", "torch", "torchvision", "sam2", "transformers", "timm", "lpips", "numpy", "scipy"),
    *("scikit-image", "medpy", "nibabel", "SimpleITK", "hydra-core", "pandas"),
]


def provenance(seed: int, weights: dict[str, str], data: str) -> dict[str, Any]:
    """Everything known at the start: ``weights`` are SHA-256 by path, ``data`` is
    ``Dataset.fingerprint``."""
    return {
        "command": shlex.join(sys.orig_argv),
        "start": now(),
        "end": None,
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": device_name(),
        "seed": seed,
        "weights": weights,
        "data": data,
    }


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """``commit`` and whether the checkout is ``dirty``; None without git or outside a checkout.

    Dirty means changed tracked files, or untracked files in the package. A checkout that merely
    surrounds the installed package (a virtual environment inside another project) does not count.
    """
    own = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=own.parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", own.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        new = git("ls-files", "--others", "--exclude-standard", str(own.parents[1]))
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed or new)}
    except (OSError, subprocess.CalledProcessError):
        return None


def code_version() -> str:
    """The commit, marked where files differ from it; without one, the package's version."""
    git = git_state()
    if git is None:
        return package_version("fsmis") or "unknown"
    return git["commit"][:12] + ("+changes" if git["dirty"] else "")


def device_name() -> str:
    """The GPU's name where torch is loaded and has one, otherwise the processor's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
