"""Write generated scans.

    python -m fsmis.phantom --out data/phantom [--kind abdomen|cardiac] [--scans 4] [--seed 0]
    python -m fsmis.phantom --dataset chaos|synapse|cmr --out DIR [--size 128]

The first writes prepared scans, the second the files of a raw download, for ``data_prep``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.phantom.prepared import ANATOMIES, write_phantom
from fsmis.phantom.raw import LAYOUTS, write_raw


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m fsmis.phantom",
        description="Write generated scans, prepared or as the raw download of a dataset.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--kind", choices=ANATOMIES, help="prepared scans (default: abdomen)")
    form.add_argument("--dataset", choices=LAYOUTS, help="raw scans, as this one is downloaded")
    parser.add_argument("--scans", type=int, default=4, help="number of patients")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other patients")
    parser.add_argument("--size", type=int, help="rows and columns of raw scans (default: as real)")
    options = parser.parse_args(arguments)
    with command_line():
        if options.dataset:
            what = f"raw {options.dataset}"
            write_raw(options.dataset, options.out, options.scans, options.seed, options.size)
        elif options.size is not None:
            raise UserError(f"--size={options.size}: only for raw scans; add --dataset")
        else:
            what = options.kind or "abdomen"
            write_phantom(options.out, what, options.scans, options.seed)
    print(f"{options.out}: {options.scans} {what} scans")


if __name__ == "__main__":
    main()
