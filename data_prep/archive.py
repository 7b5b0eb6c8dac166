"""Raw data in a folder or in a zip, unpacked with care."""

import os
import shutil
import socket
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fsmis.errors import UserError

GB = 1e9
UNPACKED = f".unpacked-{socket.gethostname()}-"  # then the process that unpacks, and random letters


@contextmanager
def raw_folder(
    raw: Path, scratch: Path, wanted: Callable[[PurePosixPath], bool], max_unpacked_gb: float
) -> Iterator[Path]:
    """The folder of the raw data; of a zip, the ``wanted`` members unpacked until the block ends.

    They are unpacked to the existing folder ``scratch``. Raises UserError where nothing is found,
    or the zip is broken, encrypted, too large or points outside.
    """
    if raw.is_dir():
        yield raw
    elif raw.is_file():
        _remove_orphans(scratch)
        with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{UNPACKED}{os.getpid()}-") as folder:
            _unpack(raw, Path(folder), wanted, max_unpacked_gb)
            yield Path(folder)
    else:
        raise UserError(f"--raw={raw}: no such folder or zip; check the path")


def _unpack(
    path: Path, folder: Path, wanted: Callable[[PurePosixPath], bool], max_unpacked_gb: float
) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _check_member(path, member)
            members = [member for member in members if wanted(PurePosixPath(member.filename))]
            unpacked = sum(member.file_size for member in members)
            if unpacked > max_unpacked_gb * GB:
                raise UserError(
                    f"{path}: unpacks to {unpacked / GB:.1f} GB, more than max_unpacked_gb="
                    f"{max_unpacked_gb:g}; is it the right archive?"
                )
            free = shutil.disk_usage(folder).free
            if unpacked > free:
                raise UserError(
                    f"{path}: unpacks to {unpacked / GB:.1f} GB, but {folder.parent} has "
                    f"{free / GB:.1f} GB left; free space or choose another --out"
                )
            for member in members:
                # reads no more than the declared size, which was checked above
                archive.extract(member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"{path}: not a whole zip file ({error}); download it again, or give the unpacked "
            "folder"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({error}); unpack it yourself and give the folder"
        ) from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be unpacked to {folder.parent} ({error.strerror})"
        ) from error


def _remove_orphans(scratch: Path) -> None:
    for folder in scratch.glob(f"{UNPACKED}*-*"):
        process = folder.name.removeprefix(UNPACKED).split("-")[0]
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse members that would land outside the folder or are not plain files."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
        raise UserError(
            f"{path}: member {member.filename!r} points outside the archive; do not use this file"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{path}: member {member.filename!r} is a link; unpack it yourself")
