"""One command: ``python -m fsmis SUBCOMMAND ...`` is ``python -m`` of the module that does it."""

import os
import sys

from fsmis.cli import did_you_mean

# subcommand: module, what it does
COMMANDS = {
    "run": ("fsmis.run", "segment and score the scans of a dataset; -m for a sweep"),
    "segment": ("fsmis.segment", "label a whole new volume from one labelled slice"),
    "report": ("fsmis.tools.report", "tables, figures and a page of finished runs"),
    "compare": (
        "fsmis.tools.compare",
        "finished runs beside each other and published rows, with tests",
    ),
    "bundle": ("fsmis.tools.bundle", "finished runs in one zip file, which report reads"),
    "plan": ("fsmis.tools.plan", "what a run or a sweep will do and cost; runs nothing"),
    "status": ("fsmis.tools.status", "which scans are done, running, failed or missing"),
    "doctor": ("fsmis.tools.doctor", "versions, weights and devices of this machine"),
    "export": ("fsmis.tools.export", "SAM2's weights as a folder that transformers opens"),
    "phantom": ("fsmis.tools.phantom", "write generated scans, prepared or raw"),
    "bench": ("fsmis.tools.bench", "measure speed against the public packages"),
    "gpu-check": ("fsmis.tools.gpu_check", "numbers, speed and memory of a GPU against the CPU's"),
    "prepare": ("data_prep", "raw downloads to prepared scans: prepare chaos|synapse|cmr|folder"),
    "verify": ("data_prep.verify", "check a folder of prepared scans"),
}

PREPARED = ("chaos", "synapse", "cmr", "folder")  # modules of data_prep


def main() -> None:
    """Replace this process by the subcommand's; exit code 2 and one line where there is none."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print("usage: python -m fsmis SUBCOMMAND ...\n")
        print("\n".join(f"  {command:9} {text}" for command, (_, text) in COMMANDS.items()))
        print("\nSUBCOMMAND --help tells more.")
        return
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        print(f"error: there is no subcommand {name}{near}; --help lists them", file=sys.stderr)
        raise SystemExit(2)
    module = COMMANDS[name][0]
    if name == "prepare":
        if not rest or rest[0].startswith("-"):
            print("usage: python -m fsmis prepare DATASET --raw RAW --out DIR\n")
            print("DATASET is chaos, synapse, cmr, or folder for pairs of NIfTI files")
            return
        if rest[0] not in PREPARED:
            near = did_you_mean(rest[0], PREPARED)
            named = f"prepare {rest[0]}{near}"
            print(f"error: {named}; choose one of {', '.join(PREPARED)}", file=sys.stderr)
            raise SystemExit(2)
        module, rest = f"data_prep.{rest[0]}", rest[1:]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *rest])


if __name__ == "__main__":
    main()
