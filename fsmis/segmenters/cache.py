"""Features of images and memories of labels on disk, so that the runs of a sweep share them.

An entry is one file, named after everything that determines it, and read whole or not at all, so
any number of processes may share a folder, even on a network file system. `diskcache` uses pickles
and an SQLite index, which does not survive that.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fsmis.errors import UserError
from fsmis.files import write_atomic
from fsmis.source import package_version

# What computes features besides this code.
PACKAGES = ("torch", "torchvision", "pillow", "sam2", "lpips", "transformers", "timm")

CHECKSUM_BYTES = 4
SLACK = 0.05  # of the size: written by one process before it looks at the folder again


def open_cache(dir: str | None, max_gb: float) -> FeatureCache | None:
    """The cache of ``conf/config.yaml``, None without ``dir``; UserError for ``max_gb <= 0``."""
    if not max_gb > 0:
        raise UserError(f"cache.max_gb={max_gb}: must be above 0; cache.dir=null keeps nothing")
    return None if dir is None else FeatureCache(Path(dir).expanduser(), int(max_gb * 1e9))


class FeatureCache:
    """What networks make of images; the least recently used entries are deleted first.

    The folder, made on the first entry, stays below ``max_bytes`` with one process; every further
    one that writes at the same time may exceed it by a twentieth.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes
        self._unseen = max_bytes  # written since the last look at the folder; none was yet

    def reuse(
        self, network: str, images: np.ndarray, compute: Callable[[np.ndarray], list[Tensor]]
    ) -> list[Tensor]:
        """What ``compute(images)`` returns, on the CPU; it gets only the images without an entry.

        Args:
            network: :func:`fingerprint` of what computes.
            images: float32 ``[B, H, W]``, B at least 1.
            compute: from images to tensors with B rows, each row depending only on its image.
        """
        keys = [key(network, image) for image in images]
        return self.reuse_rows(keys, lambda rows: compute(images[rows]))

    def reuse_rows(
        self, keys: Iterable[str], compute: Callable[[np.ndarray], list[Tensor]]
    ) -> list[Tensor]:
        """What ``compute`` returns for all rows, on the CPU; it gets only those without an entry.

        ``keys`` holds, for at least one row, :func:`key` of everything that determines it;
        ``compute`` maps rows, int ``[B]``, to tensors with B rows.
        """
        paths = [self.folder / name[:2] / f"{name[2:]}.features" for name in keys]
        entries = {path: self._read(path) for path in paths}
        missing = [path for path, entry in entries.items() if entry is None]
        if missing:
            rows = np.array([paths.index(path) for path in missing])
            computed = [tensor.cpu() for tensor in compute(rows)]
            for row, path in enumerate(missing):
                entry = [tensor[row : row + 1] for tensor in computed]
                self._write(path, entry)
                entries[path] = entry
        in_order = [entries[path] or [] for path in paths]
        return [torch.cat(column) for column in zip(*in_order, strict=True)]

    def _read(self, path: Path) -> list[Tensor] | None:
        """An entry, now the most recently used; None where it is missing or damaged."""
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        checksum, payload = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if checksum != _checksum(payload):
            return None
        try:
            tensors = load(payload)
        except SafetensorError:
            return None
        return [tensors[str(index)] for index in range(len(tensors))]

    def _write(self, path: Path, entry: list[Tensor]) -> None:
        """Keep an entry if there is room for it; the work goes on where there is none."""
        payload = save({str(index): tensor.contiguous() for index, tensor in enumerate(entry)})
        try:
            write_atomic(path, _checksum(payload) + payload, durable=False)
        except UserError as error:
            warnings.warn(f"features are not kept: {error}", stacklevel=2)
            return
        self._unseen += len(payload)
        if self._unseen > SLACK * self.max_bytes:
            self._evict()
            self._unseen = 0

    def size(self) -> int:
        """Bytes in the folder, including files that are being written."""
        return sum(size for _, size, _ in self._files())

    def _evict(self) -> None:
        """Remove the least recently used files, including those of killed writers."""
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - (1 - SLACK) * self.max_bytes
        for _, size, path in files:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        files = []
        for path in self.folder.glob("*/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # evicted by another process
                continue
            files.append((stat.st_mtime_ns, stat.st_size, path))
        return files


def key(network: str, image: np.ndarray) -> str:
    """SHA-256 (hex) of what computes, its image, and the image's shape and dtype.

    ``network`` is the :func:`fingerprint`, followed by any input besides the image.
    """
    pixels = np.ascontiguousarray(image)
    digest = hashlib.sha256(f"{network} {pixels.dtype} {pixels.shape}".encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def fingerprint(network: nn.Module, settings: dict[str, Any], device: torch.device) -> str:
    """SHA-256 (hex) of what determines a network's features of an image, to the last bit.

    ``settings`` are plain data: architecture, preprocessing, ``source_hash`` of the code. Rounding
    depends on the device's model, and on a CPU on the number of threads.
    """
    if device.type == "cpu":
        machine = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    else:
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    packages = {name: package_version(name) for name in PACKAGES}
    text = json.dumps([packages, machine, settings], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _checksum(payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(CHECKSUM_BYTES, "big")
