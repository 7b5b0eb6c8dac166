"""Download the CHAOS training sets: ``python -m data_prep.download --out DIR``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pooch
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR, command_line, console
from fsmis.errors import UserError


def download(url: str, path: Path, expected_sha256: str, timeout_s: float) -> None:
    """Download a missing file; it appears only when its checksum is right.

    Raises UserError where the network or the disk fails, or the content differs.
    """
    fetch = pooch.HTTPDownloader(progressbar=True, timeout=timeout_s)
    try:
        pooch.retrieve(url, f"sha256:{expected_sha256}", path.name, path.parent, downloader=fetch)
    except ValueError as error:  # pooch's word for a checksum
        raise UserError(
            f"{url}: its SHA-256 is not the published {expected_sha256}; the download was cut off "
            "or changed, try again"
        ) from error
    except OSError as error:  # requests' errors are among them
        raise UserError(
            f"{url}: cannot be downloaded ({error}); download it with a browser and save it as "
            f"{path}"
        ) from error


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
