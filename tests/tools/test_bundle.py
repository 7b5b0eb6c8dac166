"""Runs travel in a zip file: what comes out is what went in, and nothing else comes out."""

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsmis.errors import UserError
from fsmis.reporting import bundles
from fsmis.reporting.bundles import INDEX, opened
from fsmis.reporting.runs import read_runs
from fsmis.runs.records import Cell, RunFolder
from fsmis.tools.bundle import main as bundle
from fsmis.tools.compare import main as compare
from fsmis.tools.report import main as report
from tests.runs.test_records import row as record_row
from tests.tools import test_compare
from tests.tools.test_compare import CELLS, scattered

Files = dict[str, bytes]


def write_run(folder: Path, method: str, dice: np.ndarray, **settings: Any) -> None:
    """``test_compare.write_run``, its rows with the labels of the run, as real ones."""
    test_compare.write_run(folder, method, dice, **settings)
    run = RunFolder(folder)
    plan = run.plan()
    labels = {key: plan[key] for key in ("dataset", "method", "variant", "protocol")}
    for cell in run.done(plan["cells"]):
        run.finish(cell, [row | labels for row in run.read(cell)["rows"]])
    run.rebuild()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them partial, with files that travel and others that do not; read only."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "chaos_mri/augment_match_prompt/m1", "augment_match_prompt", scattered(0.8))
    folder = root / "chaos_mri/copy_mask/c1"
    write_run(folder, "copy_mask", scattered(0.4), done=CELLS[:-1])
    (folder / "config.yaml").write_text("seed: 0\nmethod: {width: 2}\n")
    (folder / "provenance.json").write_text("{}")
    (folder / "secret.txt").write_text("stays")
    (folder / "cells/fold0_scan0.json.damaged-1").write_text("stays")
    (folder / "figures").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "figures/fold0_scan0.png")
    return root


@pytest.fixture(scope="module")
def bundled(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundled") / "a.zip"
    bundle([str(path), str(runs)])
    return path


@pytest.fixture
def packed(bundled: Path, tmp_path: Path) -> Path:
    """The runs in a bundle, to be spoiled."""
    return Path(shutil.copy(bundled, tmp_path))


def files_in(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, files: Files, index: dict | None = None, sealed: bool = True) -> None:
    """Write a bundle anew, its index brought to the files that it has unless not ``sealed``."""
    known = json.loads(files[INDEX])
    if sealed:
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        known["files"] = {name: digest for name, digest in digests.items() if name != INDEX}
    known |= index or {}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {INDEX: json.dumps(known).encode()}).items():
            archive.writestr(name, content)


def test_a_bundle_reports_as_its_folder(runs: Path, packed: Path, tmp_path: Path) -> None:
    for source, out in ((runs, "one"), (packed, "two")):
        report([str(source), "--out", str(tmp_path / out)])
        compare([str(source), "--out", str(tmp_path / out)])
    for name in ("report.csv", "compare.csv", "compare.md"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text(), name
    assert "partial: 19/20 scans" in (tmp_path / "two/report.md").read_text()
    # a bundle of bundles is one too
    bundle([str(tmp_path / "b.zip"), str(packed)])
    assert files_in(tmp_path / "b.zip").keys() == files_in(packed).keys()


def test_a_run_that_goes_on_is_bundled_as_far_as_it_is(runs: Path, tmp_path: Path, capsys) -> None:
    root = Path(shutil.copytree(runs, tmp_path / "runs"))
    going = RunFolder(root / "chaos_mri/copy_mask/c1")
    begun = Path(shutil.copytree(going.path, root / "chaos_mri/copy_mask/c2"))
    plan = json.loads((begun / "plan.json").read_text()) | {"variant": "c2"}
    (begun / "plan.json").write_text(json.dumps(plan))
    shutil.rmtree(begun / "cells")
    (begun / "scores.csv").unlink()
    table = (going.path / "scores.csv").read_text().splitlines(keepends=True)
    (going.path / "scores.csv").write_text("".join(table[:-1]))  # behind; the cells are the truth
    bundle([str(tmp_path / "a.zip"), str(root)])
    assert "copy_mask/c2: no scan is done yet, left out" in capsys.readouterr().err
    with opened([tmp_path / "a.zip"]) as found:
        assert [len(run.scores) for run in found] == [len(run.scores) for run in read_runs(runs)]


def test_scans_of_the_longest_names_travel(tmp_path: Path) -> None:
    cells = [Cell(0, "a" * 99, "b" * 100), Cell(1, "b" * 100, "a" * 99)]
    folder = tmp_path / "runs/chaos_mri/copy_mask/c1"
    test_compare.write_run(folder, "copy_mask", scattered(0.5), done=[])
    run = RunFolder(folder)
    run.write_plan(run.plan() | {"cells": cells})
    labels = {key: run.plan()[key] for key in ("dataset", "method", "variant", "protocol")}
    for cell in cells:
        rows = [record_row(cell, organ, 0.5) | labels for organ in run.plan()["organs"]]
        run.finish(cell, rows)
    run.rebuild()
    bundle([str(tmp_path / "a.zip"), str(tmp_path / "runs")])
    with opened([tmp_path / "a.zip"]) as found:
        assert len(found[0].scores) == len(run.scores()) > 0


def test_a_bundle_of_too_many_files_is_not_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("fsmis.tools.bundle.MOST_FILES", 7)
    with pytest.raises(SystemExit):
        bundle([str(tmp_path / "a.zip"), str(runs)])
    assert "a bundle has 7 at most" in capsys.readouterr().err
    assert not (tmp_path / "a.zip").exists()


def test_images_travel_on_demand_alone(runs: Path, packed: Path, tmp_path: Path) -> None:
    names = {name for name in files_in(packed) if name.startswith("chaos_mri/copy_mask/c1/")}
    ends = {name.removeprefix("chaos_mri/copy_mask/c1/").split("/")[0] for name in names}
    assert ends == {"plan.json", "scores.csv", "config.yaml", "provenance.json", "cells"}
    assert not [name for name in names if "damaged" in name]
    bundle([str(tmp_path / "a.zip"), str(runs), "--images"])
    more = files_in(packed).keys() - names
    assert "chaos_mri/copy_mask/c1/figures/fold0_scan0.png" in more
    with opened([packed]) as found:
        assert (found[1].folder.path / "figures/fold0_scan0.png").is_file()
        kept = found[1].folder.path
    assert not kept.exists()


def test_command_says_what_is_in_it(runs: Path, tmp_path: Path, ask) -> None:
    words = [sys.executable, "-m", "fsmis", "bundle"]
    done = subprocess.run([*words, tmp_path / "a.zip", runs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "chaos_mri/copy_mask/c1: partial: 19/20 scans" in " ".join(done.stdout.split())
    done = ask(bundle, tmp_path / "a.tar", runs)
    assert done.returncode == 2 and "must end in .zip" in done.stderr


RUN = "chaos_mri/copy_mask/c1"


def with_file(name: str, content: bytes = b"x") -> Callable[[Files], Files]:
    return lambda files: files | {name: content}


def changed(name: str, old: str, new: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        text = files[f"{RUN}/{name}"].decode()
        assert old in text
        return files | {f"{RUN}/{name}": text.replace(old, new).encode()}

    return change


HOSTILE = [
    (with_file("../out.txt"), "'../out.txt' is no plain file"),
    (with_file(f"{RUN}/../../../../out.txt"), "is no plain file"),
    (with_file("/tmp/out.txt"), "is no plain file"),
    (with_file(f"{RUN}/cells\\..\\out.txt"), "names files and folders"),
    (with_file(f"{RUN}/cells/.."), "is no plain file"),
    (with_file(f"{RUN}/run.py"), "'chaos_mri/copy_mask/c1/run.py' is no file of a run"),
    (with_file("elsewhere/plan.json"), "is no file of a run"),
    (with_file(f"{RUN}/cells/fold9_scan9.json"), "fold9_scan9.json is not planned"),
    (with_file(f"{RUN}/figures/fold0_scan0.png"), "cannot identify image"),
    (with_file(f"{RUN}/config.yaml", b"a: ${oc.env:HOME}\n"), "config.yaml: not resolved"),
    (with_file(f"{RUN}/config.yaml", b"a: &a [1]\nb: [*a, *a]\n"), "config.yaml: not resolved"),
    (with_file(f"{RUN}/config.yaml", b"a: [\n"), "while parsing"),
    (with_file(f"{RUN}/plan.json", b"[" * 9**6), "plan.json: damaged"),
    (changed("plan.json", '"copy_mask"', '"../../copy_mask"'), "names files and folders"),
    (changed("plan.json", '"copy_mask"', '"other"'), "is of chaos_mri/other/c1"),
    (changed("plan.json", '"organs": [', '"organs": [7, '), "organ=7"),
    (changed("plan.json", '"oracle": "none"', '"oracle": 3'), "oracle is of another type"),
    (changed("plan.json", '"seed": 0', '"seed": "x"'), "identity lacks method, seed or data"),
    (changed("scores.csv", "copy_mask", "another"), "a row is of another method"),
    (changed("scores.csv", "liver,1,", "liver,2,"), "scores.csv has other rows than the cells"),
    (changed("cells/fold0_scan1.json", '"tp": ', '"tp": 1'), "its checksum is that of another"),
    (lambda files: {n: c for n, c in files.items() if n != f"{RUN}/plan.json"}, "no plan.json"),
]


@pytest.mark.parametrize(("change", "said"), HOSTILE)
def test_what_is_not_to_be_believed_is_refused(
    change: Callable[[Files], Files], said: str, packed: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    rewrite(packed, change(files_in(packed)))
    with pytest.raises(UserError) as error, opened([packed]):
        pass
    message = str(error.value)
    assert message.startswith(f"{packed}: ") and said in message and "\n" not in message
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"schema": 2}, "its schema is 2, this version reads 1"),
        ({"runs": []}, "names no runs"),
        ({"runs": ["../x"]}, "is no file of a run"),
        ({"files": {}}, "no plan.json"),
        ({"files": {f"{RUN}/plan.json": "0"}, "runs": [RUN]}, "has no scores.csv"),
    ],
)
def test_an_index_of_another_kind_is_refused(index: dict, said: str, packed: Path) -> None:
    rewrite(packed, files_in(packed), index)
    with pytest.raises(UserError, match=said), opened([packed]):
        pass


def test_files_changed_on_the_way_are_named(packed: Path) -> None:
    files = files_in(packed)
    files[f"{RUN}/config.yaml"] += b"# more\n"
    rewrite(packed, files, sealed=False)
    with pytest.raises(UserError, match=r"c1/config.yaml has another checksum"), opened([packed]):
        pass
    packed.write_bytes(packed.read_bytes()[:-200])
    said = "not a bundle to be read: File is not a zip"
    with pytest.raises(UserError, match=said), opened([packed]):
        pass


def test_links_and_doubles_are_refused(packed: Path) -> None:
    files = files_in(packed)
    link = zipfile.ZipInfo(f"{RUN}/summary.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is no plain file"), opened([packed]):
        pass
    rewrite(packed, files)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(f"{RUN}/plan.json", "{}")
    with pytest.raises(UserError, match="is in it twice"), opened([packed]):
        pass


def test_sizes_are_bounded(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit, said in (
        ("MOST_BYTES_OF_A_FILE", 1000, "has more than 1000 bytes"),
        ("MOST_BYTES", 10_000, "more than 10000 bytes unpacked"),
        ("MOST_FILES", 7, "files, more than 7"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(bundles, name, limit)
            with pytest.raises(UserError, match=said), opened([packed]):
                pass


def test_sources_of_another_protocol_or_other_data_are_not_merged(
    packed: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "qnet/q1", "copy_mask", scattered(0.5), protocol="qnet2-3parts")
    write_run(tmp_path / "data/d1", "copy_mask", scattered(0.5), data="0" * 64)
    write_run(tmp_path / "few/f1", "copy_mask", scattered(0.5, 8), planned=CELLS[:8], done=[])
    write_run(tmp_path / "phantom/p1", "copy_mask", scattered(0.5), dataset="phantom")
    for folder, said in (
        ("qnet", r"qnet: runs on chaos_mri of qnet2-3parts.*a\.zip are of alpnet.*\(protocol\)"),
        ("data", r"data: .*00000000, but .*3f2a91c0 \(other data\); not to be merged"),
        ("few", r"9 scans in 2 folds.* but .*20 scans in 5 folds.*\(other data\)"),
    ):
        with pytest.raises(UserError, match=said), opened([packed, tmp_path / folder]):
            pass
    with opened([packed, tmp_path / "phantom"]) as found:  # another dataset, another table
        assert len(found) == 3


def test_a_run_that_two_sources_hold_counts_once(runs: Path, packed: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "more/chaos_mri/twin/t1", "twin", scattered(0.7))
    with opened([packed, runs, tmp_path / "more"]) as found:
        assert [run.method for run in found] == ["augment_match_prompt", "copy_mask", "twin"]
    write_run(tmp_path / "other/c1", "copy_mask", scattered(0.41), done=CELLS[:-1])
    said = "copy_mask c1 has other scores than the same run"
    with pytest.raises(UserError, match=said), opened([packed, tmp_path / "other"]):
        pass
