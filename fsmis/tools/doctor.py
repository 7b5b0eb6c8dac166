"""Check an installation: ``python -m fsmis doctor``. Exit code 1 if something is broken."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from fsmis.cli import console
from fsmis.files import sha256
from fsmis.segmenters.checkpoints import HUB_FILES, SHIPPED, repository
from fsmis.source import git_state, package_version

OK, WARN, FAIL = "ok", "warn", "fail"
COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
CPU_INFO = Path("/proc/cpuinfo")  # of Linux
BFLOAT16 = ("avx512_bf16", "amx_bf16")  # flags of CPUs
FREE_GB = 5  # room for the weights of SAM2 large, LPIPS and a few runs


@dataclass(frozen=True)
class Finding:
    """One checked thing: ``ok``, ``warn`` (something optional) or ``fail``; and how to mend it."""

    name: str
    status: str
    detail: str
    fix: str = ""


def torch_fit() -> list[Finding]:
    """torch and torchvision load together; a wrong pair fails at its first compiled operator."""
    pair = f"torch {package_version('torch')}, torchvision {package_version('torchvision')}"
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        fix = "install a torch and torchvision of one release from one index (constraints.txt)"
        return [Finding("torch and torchvision", FAIL, f"{pair}: {_line(error)}", fix)]
    return [Finding("torch and torchvision", OK, pair)]


def sam2_imports() -> list[Finding]:
    """The sam2 package imports; checked in its own process, since importing it starts Hydra."""
    code = "import sam2.modeling.sam2_base"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 0:
        return [Finding("sam2", OK, str(package_version("sam2")))]
    return [Finding("sam2", FAIL, _line(done.stderr), "pip install sam2")]


def embedded_checkpoint() -> list[Finding]:
    """The default segmenter's weights are shipped whole, not as a Git LFS pointer."""
    path = SHIPPED / "sam2_mini.safetensors"
    fix = "get it from the repository again, or train it: python -m fsmis.segmenters.mini.train"
    try:
        from safetensors import SafetensorError, safe_open

        with safe_open(path, framework="numpy") as tensors:
            n_tensors = len(tensors.keys())
    except (ImportError, OSError, SafetensorError) as error:
        return [Finding("embedded checkpoint", FAIL, f"{path}: {_line(error)}", fix)]
    detail = f"{path.name}, {n_tensors} tensors, SHA-256 {sha256(path)[:12]}"
    return [Finding("embedded checkpoint", OK, detail)]


def sam2_weights() -> list[Finding]:
    """Published SAM2 weights in the Hugging Face cache; optional."""
    from huggingface_hub import try_to_load_from_cache

    cached = {
        checkpoint: Path(path)
        for checkpoint, name in HUB_FILES.items()
        if isinstance(path := try_to_load_from_cache(repository(checkpoint), name), str)
    }
    if not cached:
        fix = "segmenter=sam2.1_tiny downloads its own on first use; sam2_mini needs none"
        return [Finding("SAM2 weights", WARN, "none in the Hugging Face cache", fix)]
    detail = [f"{path.name} SHA-256 {sha256(path)[:12]}" for path in cached.values()]
    return [Finding("SAM2 weights", OK, ", ".join(detail))]


def lpips_backbones() -> list[Finding]:
    """ImageNet weights of LPIPS in torchvision's cache, whose names carry their hash; optional."""
    try:
        from fsmis.pipeline.distances import BACKBONES
    except ImportError as error:
        return [Finding("LPIPS", FAIL, _line(error), "pip install lpips torchvision")]
    findings = []
    for net, backbone in BACKBONES.items():
        path, name = backbone.file, f"LPIPS {net} backbone"
        if not path.is_file():
            fix = f"matcher=lpips downloads it; offline, put {backbone.url} there"
            findings.append(Finding(name, WARN, f"not at {path}", fix))
        elif not sha256(path).startswith(path.stem.split("-")[-1]):
            fix = "delete it and download it again"
            findings.append(Finding(name, FAIL, f"{path}: SHA-256 {sha256(path)[:12]}", fix))
        else:
            findings.append(Finding(name, OK, f"{path.name}, SHA-256 {sha256(path)[:12]}"))
    return findings


def device() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        return [Finding("device", OK, f"cuda, {torch.cuda.get_device_name()}")]
    fix = "sam2_mini is made for it; for the published sizes use a machine with CUDA"
    detail = f"cpu, {torch.get_num_threads()} threads"
    if computes_in_bfloat16():
        detail += ", computes in bfloat16"
        fix += "; segmenter.precision=bfloat16 about halves the time"
    return [Finding("device", WARN, detail, fix)]


def computes_in_bfloat16() -> bool:
    """Whether this CPU does so by itself; without, bfloat16 is slower than float32."""
    try:
        flags = CPU_INFO.read_text()
    except OSError:
        return False
    return any(flag in flags for flag in BFLOAT16)


def disk_space() -> list[Finding]:
    """Room in the working folder, where results go by default."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    enough = free >= FREE_GB
    fix = "" if enough else f"free {FREE_GB} GB, or choose results_dir= and HF_HOME elsewhere"
    return [Finding("disk", OK if enough else WARN, f"{free:.0f} GB free", fix)]


def feature_cache() -> list[Finding]:
    """Room for the features that runs of the default ``results_dir`` share; they do without too."""
    from hydra import compose, initialize_config_dir

    from fsmis.cli import CONF_DIR
    from fsmis.segmenters.cache import open_cache

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        settings = compose("config").cache
    cache = open_cache(settings.dir, settings.max_gb)
    if cache is None:
        return [Finding("feature cache", OK, "off (cache.dir=null)")]
    folder = cache.folder.absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    size, free = cache.size(), shutil.disk_usage(place).free
    missing = cache.max_bytes - size - free
    used = f"{size / 1e9:.1f} of {settings.max_gb:g} GB, {free / 1e9:.0f} GB free"
    detail, fix = f"{settings.dir}, {used}", ""
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        detail = f"{detail}, {place} is not writable"
        fix = "choose cache.dir= or results_dir= elsewhere, or every run computes its features anew"
    elif missing > 0:
        fix = f"full, it takes {missing / 1e9:.1f} GB more: free them or lower cache.max_gb"
    return [Finding("feature cache", WARN if fix else OK, detail, fix)]


def git() -> list[Finding]:
    """Whether results can name the commit that made them."""
    state = git_state()
    if state is None:
        fix = "results will name the package version alone; run from a git checkout"
        return [Finding("git", WARN, "not a checkout, or no git", fix)]
    fix = "commit before a run that is to be reproduced" if state["dirty"] else ""
    detail = state["commit"][:12] + (", files changed since" if state["dirty"] else "")
    return [Finding("git", WARN if state["dirty"] else OK, detail, fix)]


CHECKS: list[Callable[[], list[Finding]]] = [
    *(torch_fit, sam2_imports, embedded_checkpoint, sam2_weights, lpips_backbones),
    *(device, disk_space, feature_cache, git),
]


def examine() -> list[Finding]:
    """What all checks find; one that breaks is a finding too."""
    found = []
    for check in CHECKS:
        try:
            found += check()
        except Exception as error:  # a broken installation may raise anything
            fix = "install the requirements again"
            found.append(Finding(check.__name__, FAIL, _line(error), fix))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m fsmis doctor",
        description="Check versions, weights and devices of this machine, and say what to do about "
        "what is missing. Exit code 1 where something that every run needs is.",
    ).parse_args(arguments)
    table = Table(title="fsmis doctor", title_justify="left")
    for column in ("", "status", "found", "fix"):
        table.add_column(column, overflow="fold")
    findings = examine()
    for finding in findings:
        style = COLOURS[finding.status]
        table.add_row(finding.name, finding.status, finding.detail, finding.fix, style=style)
    console.print(table)
    if any(finding.status == FAIL for finding in findings):
        raise SystemExit(1)


def _line(error: BaseException | str) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    main()
