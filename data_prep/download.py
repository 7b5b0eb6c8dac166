"""Download the CHAOS training sets: ``python -m data_prep.download --out DIR``."""

import argparse
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from omegaconf import OmegaConf
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from fsmis.cli import CONF_DIR, command_line, console
from fsmis.errors import UserError
from fsmis.files import sha256

CHUNK = 1 << 20  # bytes


def download(url: str, path: Path, expected_sha256: str, timeout_s: float) -> None:
    """Download a file, unless it is there; it appears only when its checksum is right.

    Raises:
        UserError: the network or the disk fails, or the content is not what was published.
    """
    if path.is_file() and sha256(path) == expected_sha256:
        return
    temporary = None
    total = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=timeout_s) as answer,
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file,
            Progress(
                *Progress.get_default_columns(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=console,
            ) as bar,
        ):
            temporary = Path(file.name)
            task = bar.add_task(path.name, total=int(answer.headers.get("Content-Length", 0)))
            while chunk := answer.read(CHUNK):
                total.update(chunk)
                file.write(chunk)
                bar.advance(task, len(chunk))
        if total.hexdigest() != expected_sha256:
            raise UserError(
                f"{url}: SHA-256 {total.hexdigest()} is not the published {expected_sha256}; the "
                "download was cut off or changed, try again"
            )
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url}: cannot be downloaded ({reason}); download it with a browser and save it as "
            f"{path}"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one line where it fails."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.download", description="Download CHAOS_Train_Sets.zip."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to save it in")
    options = parser.parse_args(arguments)
    source = OmegaConf.load(CONF_DIR / "data_prep" / "chaos_download.yaml")
    path = options.out / source.file
    with command_line():
        download(source.url, path, source.sha256, source.timeout_s)
    console.print(f"{path}: complete")


if __name__ == "__main__":
    main()
