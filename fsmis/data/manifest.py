"""``manifest.json`` of a prepared folder: what each scan was made from, and what it holds."""

import json
from pathlib import Path
from typing import Any

from fsmis.errors import UserError
from fsmis.files import counted, require_name, sha256, write_atomic

NAME = "manifest.json"


class Manifest:
    """The record of a prepared folder, written after every scan.

    Attributes:
        settings: those of the preparation.
        scans: by scan id: ``source`` and ``files``, the raw and the prepared files with their
            SHA-256; ``spacing`` in mm and ``size``, both (z, y, x); ``voxels`` of each label id.
    """

    def __init__(
        self, folder: Path, dataset: str, settings: dict[str, Any], scans: dict[str, Any]
    ) -> None:
        self._path = folder / NAME
        self.dataset = dataset
        self.settings = settings
        self.scans = scans

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The folder's manifest; None where there is none.

        Raises UserError where it is damaged or names a file outside the folder.
        """
        path = folder / NAME
        try:
            record = json.loads(path.read_bytes())
            for name in (name for scan in record["scans"].values() for name in scan["files"]):
                require_name(f"{path}: files", name)
            return cls(folder, record["dataset"], record["settings"], dict(record["scans"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged; remove it and prepare the folder again") from error

    def add(self, scan_id: str, entry: dict[str, Any]) -> None:
        self.scans[scan_id] = entry
        self.scans = dict(sorted(self.scans.items(), key=lambda item: counted(item[0])))
        record = {"dataset": self.dataset, "settings": self.settings, "scans": self.scans}
        write_atomic(self._path, (json.dumps(record, indent=1) + "\n").encode())

    def changed(self) -> list[Path]:
        """Prepared files that are missing or differ from what was written."""
        folder = self._path.parent
        files = {name: sha for scan in self.scans.values() for name, sha in scan["files"].items()}
        return [
            folder / name
            for name, sha in files.items()
            if not (folder / name).is_file() or sha256(folder / name) != sha
        ]
