"""The command line of a run, in processes of its own: resume, interruption, bad input, sweeps."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import open_dict

from fsmis.cli import CONF_DIR, user_errors
from fsmis.data.nifti import read_volume, write_volume
from fsmis.errors import UserError
from fsmis.methods.registration import CopyMask
from fsmis.run import execute
from fsmis.runs.records import COLUMNS
from fsmis.runs.sweep import at_home, compose_jobs, own_options, quoted
from tests.gated import stopped_at_gate

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FILES = ["figures=worst", "worst_figures=1", "save_predictions=true"]


@pytest.fixture(scope="module")
def small_root(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom's scans, every fourth pixel of every second slice; read only."""
    root = tmp_path_factory.mktemp("small")
    for path in phantom_root.glob("*.nii.gz"):
        array, _, affine = read_volume(path)
        write_volume(root / path.name, array[::2, ::4, ::4], affine @ np.diag([4, 4, 2, 1]))
    return root


@pytest.fixture
def data(small_root: Path, tmp_path: Path) -> Path:
    """A copy of the small scans, to be spoiled."""
    return Path(shutil.copytree(small_root, tmp_path / "data"))


def spoil(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    array, _, affine = read_volume(path)
    write_volume(path, change(array), affine)


def command(*overrides: str | Path) -> list[str]:
    return [sys.executable, "-m", "fsmis.run", *map(str, overrides)]


def run(*overrides: str | Path, **process: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "env": ENVIRONMENT} | process
    return subprocess.run(command(*overrides), **options)


def copy_mask(data: Path, results: Path, *more: str) -> list[str]:
    where = [f"dataset.root={data}", f"results_dir={results}"]
    return ["dataset=phantom", "method=copy_mask", *where, *more]


def run_here(overrides: list[str]) -> int:
    """A run in this process, with a configuration composed as the command line does it."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides, return_hydra_config=True)
    with open_dict(cfg):
        choices = dict(cfg.pop("hydra").runtime.choices)
    return execute(cfg, choices)


def cells(results: Path) -> dict[str, float]:
    """Time of change of every cell file, by name, in the order of the run."""
    paths = sorted(results.rglob("cells/*.json"))
    return {path.name: path.stat().st_mtime_ns for path in paths}


def states(results: Path) -> list[str]:
    """State of every cell that has a file, in the order of the run."""
    paths = sorted(results.rglob("cells/*.json"))
    return [json.loads(path.read_text())["state"] for path in paths]


def test_run_writes_what_design_promises(small_root: Path, tmp_path: Path) -> None:
    done = run(*copy_mask(small_root, tmp_path, *FILES))
    assert done.returncode == 0, done.stderr
    assert "4/4 scans" in done.stdout and "alpnet-3parts-organ_range" in done.stdout
    (folder,) = tmp_path.glob("phantom/copy_mask/*")
    scores = pd.read_csv(folder / "scores.csv", dtype={"variant": str})  # it may be all digits
    assert list(scores.columns) == COLUMNS
    assert len(scores) == 16
    assert set(scores["variant"]) == {folder.name}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["end"] >= provenance["start"]
    words = ["python", "-m", "fsmis", "run", *copy_mask(small_root, tmp_path, *FILES)]
    assert shlex.split(provenance["command"]) == words and provenance["packages"]["numpy"]
    assert (folder / "config.yaml").is_file() and (folder / "summary.md").is_file()
    assert len(list(folder.glob("figures/*.png"))) == 1
    prediction = nib.load(folder / "predictions/fold0_scan1.nii.gz")
    image = nib.load(small_root / "image_1.nii.gz")
    assert prediction.shape == image.shape
    np.testing.assert_array_equal(prediction.affine, image.affine)
    assert set(np.unique(prediction.dataobj)) == {0, 1, 2, 3, 4}
    # no litter: temporary files, Hydra's outputs/
    assert not list(tmp_path.rglob(".*"))


def test_a_run_without_network_and_figures_loads_neither_torch_nor_matplotlib(
    small_root: Path, tmp_path: Path
) -> None:
    overrides = copy_mask(small_root, tmp_path, "save_predictions=true")
    program = (
        f"import sys; sys.argv[1:] = {overrides!r}; from fsmis.run import command; command(); "
        "sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT)
    assert done.returncode == 0 and states(tmp_path) == ["done"] * 4


def test_same_command_computes_nothing_anew(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert run_here(copy_mask(small_root, tmp_path, "protocol.fold=0")) == 0
    assert "partial: 2/4 scans, folds 0 of 2" in capsys.readouterr().out
    first = cells(tmp_path)
    assert run_here(copy_mask(small_root, tmp_path)) == 0
    both = cells(tmp_path)
    assert len(both) == 4 and first.items() <= both.items()
    monkeypatch.setattr(CopyMask, "segment", None)  # would fail if it were called
    next(tmp_path.rglob("scores.csv")).unlink()
    assert run_here(copy_mask(small_root, tmp_path)) == 0
    assert cells(tmp_path) == both
    assert "partial" not in capsys.readouterr().out.split("4/4 scans were done before")[1]
    assert len(pd.read_csv(next(tmp_path.rglob("scores.csv")))) == 16


def test_resume_gives_the_same_scores_as_one_go(small_root: Path, tmp_path: Path) -> None:
    run_here(copy_mask(small_root, tmp_path / "one"))
    run_here(copy_mask(small_root, tmp_path / "two", "protocol.fold=1"))
    run_here(copy_mask(small_root, tmp_path / "two"))
    one, two = (pd.read_csv(next((tmp_path / name).rglob("scores.csv"))) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        (signal.SIGKILL, -9, "running"),
        (signal.SIGTERM, 143, "interrupted"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_stopped_run_is_finished_by_the_same_command(
    small_root: Path, tmp_path: Path, number: signal.Signals, code: int, state: str
) -> None:
    results = tmp_path / "runs"
    gated = ["method._target_=gated.GatedMethod", f"+method.folder={tmp_path}", "+method.at='2'"]
    overrides = copy_mask(small_root, results, *gated)
    with stopped_at_gate(command(*overrides), tmp_path) as process:
        process.send_signal(number)
        printed, _ = process.communicate()
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert "1/4 scans are done and kept, the same command resumes" in printed
        assert "Traceback" not in printed
    assert states(results) == ["done", state]
    (first, time_of_first), _ = cells(results).items()
    assert run_here(overrides) == 0
    assert states(results) == ["done"] * 4 and cells(results)[first] == time_of_first
    assert len(pd.read_csv(next(results.rglob("scores.csv")))) == 16


def test_failing_scan_is_recorded_and_the_others_go_on(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    segment = CopyMask.segment

    def fail_once(self, episode):
        if episode.query.id == "2":
            raise RuntimeError("CUDA out of memory")
        return segment(self, episode)

    monkeypatch.setattr(CopyMask, "segment", fail_once)
    assert run_here(copy_mask(small_root, tmp_path)) == 1
    shown = capsys.readouterr()
    assert "partial: 3/4 scans (1 failed)" in shown.out
    assert "scan 2 of fold 0 failed: RuntimeError: CUDA out of memory" in shown.err
    record = json.loads(next(tmp_path.rglob("fold0_scan2.json")).read_text())
    assert record["state"] == "failed" and "out of memory" in record["reason"]
    monkeypatch.setattr(CopyMask, "segment", segment)
    assert run_here(copy_mask(small_root, tmp_path)) == 0
    monkeypatch.setattr(CopyMask, "segment", fail_once)
    assert run_here(copy_mask(small_root, tmp_path)) == 0  # all is done
    before = next(tmp_path.rglob("fold0_scan2.json")).read_text()
    for again in ("force=true", "save_predictions=true"):
        assert run_here(copy_mask(small_root, tmp_path, again)) == 1
        assert "CUDA out of memory; its earlier scores are kept" in capsys.readouterr().err
        assert next(tmp_path.rglob("fold0_scan2.json")).read_text() == before
        assert len(pd.read_csv(next(tmp_path.rglob("scores.csv")))) == 16


def test_changed_data_is_computed_anew_and_the_reason_said(
    data: Path, tmp_path: Path, capsys
) -> None:
    run_here(copy_mask(data, tmp_path / "runs"))
    spoil(data / "image_2.nii.gz", lambda image: image // 2)
    run_here(copy_mask(data, tmp_path / "runs"))
    assert "the data files have changed since variant" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").rglob("scores.csv"))) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.root={tmp}/nowhere"], "dataset.root={tmp}/nowhere: no such folder"),
        (["results_dir={tmp}/file/runs"], "results_dir={tmp}/file/runs: {tmp}/file is not a fold"),
        (["seed=0,1", "results_dir={tmp}/file", "-m"], "results_dir={tmp}/file: {tmp}/file is no"),
        (["protocol.parts=3"], "setting protocol.parts; did you mean protocol.n_parts?"),
        (["+protocl.fold=0"], "there is no setting protocl; did you mean protocol?"),
        (["+zoom=none"], "zoom is chosen by zoom@method.zoom=X, X one of default, none"),
        (["zoom=none"], "zoom is chosen by zoom@method.zoom=X, X one of default, none"),
        (["+dataset.scans=3"], "there is no setting dataset.scans"),
        (["method=nothing"], "there is no method=nothing; choose one of adnet, alpnet,"),
        (["method=copy_mask,nothing", "-m"], "there is no method=nothing; choose one of adnet,"),
        (["dataset.root=a b=c"], "quote a value with spaces, commas or ="),
        (["protocol.fold=[0"], "'[0'"),
        (["dataset.organs={liver:1}"], "RK, LK, spleen would stay; to score some of them: organs="),
        (["organs=[livr]"], "organs=[livr]: give some of liver, RK, LK, spleen, each once"),
        (["organs=[]"], "organs=[]: give some of liver, RK, LK, spleen"),
        (["organs=liver"], "organs=liver: "),
        (["dataset.name=../../evil"], "dataset.name='../../evil': it names files and folders"),
        (["+dataset.organs={a/b: 5}"], "organ='a/b': it names files and folders"),
        (["force=flase"], "force=flase: Value 'flase' is not a valid bool"),
        (["seed=one"], "seed=one: "),
        (["seed=${nothing}"], "Interpolation key 'nothing' not found"),
        (["worst_figures=-1"], "worst_figures=-1: choose 0 or more"),
        (["figure_slices=0"], "figure_slices=0: choose 1 or more"),
        (["shard=0/4"], "shard=0/4: give i/n, the share i of n"),
        (["threads=0"], "threads=0: choose 1 or more"),
        (["figures=some"], "figures=some: choose one of none, worst, all"),
        (["dataset.percentiles=[99,1]"], "percentiles=[99, 1]: give two from 0 to 100"),
        (["method=augment_match_prompt", "segmenter.checkpoint=no.pt"], "segmenter.checkpoint=no."),
        (["method=augment_match_prompt", "device=cuda:9"], "device=cuda:9 is not available here"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(
    small_root: Path, tmp_path: Path, ask_run, overrides, message
) -> None:
    (tmp_path / "file").write_text("not a folder")
    random = ["segmenter.checkpoint=random", "segmenter.image_size=64"]
    more = [override.replace("{tmp}", str(tmp_path)) for override in overrides]
    results = tmp_path / "runs"
    code, _, errors = ask_run(*copy_mask(small_root, results, *random), *more)
    assert code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message.format(tmp=tmp_path) in errors
    assert not [path for path in results.rglob("*") if path.is_file() and ".sweep" not in str(path)]


def test_command_line_ends_on_bad_input_without_traceback(tmp_path: Path) -> None:
    done = run(*copy_mask(tmp_path / "nowhere", tmp_path / "runs"))
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert done.stderr.startswith(f"error: dataset.root={tmp_path}/nowhere: no such folder")
    assert done.stderr.count("\n") == 1


def test_damaged_scan_fails_and_the_others_go_on(data: Path, tmp_path: Path, capsys) -> None:
    (data / "image_2.nii.gz").write_bytes((data / "image_2.nii.gz").read_bytes()[:3000])
    assert run_here(copy_mask(data, tmp_path / "runs")) == 1
    shown = capsys.readouterr()
    reason = f"{data}/image_2.nii.gz: cannot be read, probably truncated"
    assert f"scan 2 of fold 0 failed: {reason}" in shown.err
    assert "partial: 3/4 scans (1 failed)" in shown.out
    assert states(tmp_path) == ["done", "failed", "done", "done"]


def test_damaged_support_fails_the_scans_of_its_fold(data: Path, tmp_path: Path) -> None:
    (data / "label_3.nii.gz").write_bytes(b"")
    assert run_here(copy_mask(data, tmp_path / "runs")) == 1
    assert states(tmp_path) == ["failed", "failed", "failed", "done"]


@pytest.mark.parametrize(("largest", "file"), [(1000, "plan.json"), (2500, "scores.csv")])
def test_full_disk_is_one_line_and_the_same_command_resumes(
    small_root, tmp_path: Path, largest: int, file: str
) -> None:
    overrides = copy_mask(small_root, tmp_path)

    def small_files_only() -> None:  # the kernel refuses the rest, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    done = run(*overrides, preexec_fn=small_files_only)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{file}: cannot be written (File too large); free space" in done.stderr
    assert not list(tmp_path.rglob(".*"))
    assert run_here(overrides) == 0


def test_other_folder_strange_paths_read_only_data_and_no_git(data: Path, tmp_path: Path) -> None:
    strange = tmp_path / "Ordner für Läufe, a=b"
    strange.mkdir()
    data.rename(strange / "Daten 1")
    (strange / "Daten 1").chmod(0o555)
    where = ["dataset.root='Daten 1'", "results_dir='Läufe (1)'"]
    environment = ENVIRONMENT | {"PATH": "", "PYTHONPATH": str(CONF_DIR.parent)}
    done = run("dataset=phantom", "method=copy_mask", *where, cwd=strange, env=environment)
    (strange / "Daten 1").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in strange.iterdir()} == {"Daten 1", "Läufe (1)"}
    provenance = json.loads(next(strange.rglob("provenance.json")).read_text())
    assert provenance["git"] is None


def test_organ_that_a_scan_lacks_is_left_out_and_said(data: Path, tmp_path: Path, capsys) -> None:
    spoil(data / "label_2.nii.gz", lambda label: np.where(label == 2, 0, label))
    assert run_here(copy_mask(data, tmp_path / "runs")) == 0
    assert "RK not scored in scan 2 of fold 0: absent from query scan 2" in capsys.readouterr().out
    scores = pd.read_csv(next(tmp_path.rglob("scores.csv")))
    assert len(scores) == 15
    assert "LK" in set(scores[scores["query_scan"] == 2]["organ"])


@pytest.mark.parametrize("query_slices", ["full_volume", "untold_full_volume"])
def test_an_untold_volume_is_answered_without_its_label(
    data: Path, tmp_path: Path, query_slices: str
) -> None:
    answers = []
    for turn in range(2):
        results = tmp_path / str(turn)
        some = ["protocol.fold=0", f"protocol.query_slices={query_slices}", "save_predictions=true"]
        assert run_here(copy_mask(data, results, *some)) == 0
        (answer,) = results.rglob("predictions/*_scan1.nii.gz")
        answers.append(read_volume(answer)[0])
        spoil(data / "label_1.nii.gz", lambda label: np.roll(label, 5, axis=0))  # of a query
    assert np.array_equal(*answers) == (query_slices == "untold_full_volume")


def test_a_scan_without_any_organ_has_no_figure_to_wait_for(data: Path, tmp_path: Path) -> None:
    spoil(data / "label_2.nii.gz", np.zeros_like)
    command = copy_mask(
        data, tmp_path / "runs", "figures=all", "figure_slices=1", "protocol.fold=0"
    )
    assert run_here(command) == 0
    before = cells(tmp_path)
    assert run_here(command) == 0
    assert cells(tmp_path) == before and len(before) == 2


@pytest.mark.parametrize("method", ["copy_mask", "registration", "augment_match_prompt"])
def test_single_odd_and_constant_slices(data: Path, tmp_path: Path, method: str) -> None:
    for path in data.iterdir():
        depth = 1 if path.name.endswith("_1.nii.gz") else 2
        spoil(path, lambda array, end=7 + depth: array[7:end, 20:51, 20:61])
    spoil(data / "image_2.nii.gz", lambda image: np.stack([np.full_like(image[0], 7), image[1]]))
    small = ["segmenter.checkpoint=random", "segmenter.image_size=64", "support_set.count=2"]
    overrides = copy_mask(data, tmp_path / "runs", f"method={method}", "device=cpu", *small)
    assert run_here(overrides) == 0
    scores = pd.read_csv(next(tmp_path.rglob("scores.csv")))
    assert set(scores["query_scan"]) == {1, 2, 3, 4}
    assert scores["dice"].between(0, 1).all()


def test_sweep_goes_on_after_a_bad_job(small_root: Path, tmp_path: Path) -> None:
    done = run(*copy_mask(small_root, tmp_path, "protocol.fold=7,0,1"), "-m")
    assert done.returncode == 1
    assert "error: protocol.fold=7" in done.stderr and "Traceback" not in done.stderr
    summary = done.stderr.split("1 of 3 jobs failed:")[1]
    assert "protocol.fold=7: phantom has 2 folds" in summary
    assert len(cells(tmp_path)) == 4


@pytest.mark.parametrize("place", ["~/runs", "'~/runs'"])
def test_results_of_a_sweep_may_lie_at_home(small_root: Path, tmp_path: Path, place: str) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    environment = ENVIRONMENT | {"HOME": str(home), "PYTHONPATH": str(CONF_DIR.parent)}
    home.mkdir()
    words = copy_mask(small_root, Path(place), "protocol.fold=0,1")
    done = run(*words, "-m", cwd=here, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(here.iterdir()) and len(cells(home / "runs")) == 4


def test_floor_on_the_real_scans(chaos_root: Path, tmp_path: Path) -> None:
    where = ["dataset=chaos_mri", f"dataset.root={chaos_root}", f"results_dir={tmp_path}"]
    assert run_here([*where, "method=copy_mask", "protocol=alpnet"]) == 0
    assert len(pd.read_csv(next(tmp_path.rglob("scores.csv")))) == 80
    summary = pd.read_csv(next(tmp_path.rglob("summary.csv"))).set_index("organ")
    assert summary.loc["mean", "dice"] == pytest.approx(43.93, abs=0.005)


def test_empty_slices_are_said(data, tmp_path, capsys):
    def blank(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[:2] = array.min()
        return array

    for number in (1, 2, 3, 4):
        spoil(data / f"image_{number}.nii.gz", blank)
    assert run_here(copy_mask(data, tmp_path / "runs")) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "note: scan 1: 2 of " in said and "slices are empty" in said


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("dataset.root=~/x", "dataset.root=HOME/x"),
        ("results_dir='~/x y'", "results_dir='HOME/x y'"),
        ("predictions=~", "predictions=HOME"),
        ("~dataset.organs", "~dataset.organs"),
        ("key=~no-such-user/x", "key=~no-such-user/x"),
        ("key=a~b", "key=a~b"),
    ],
)
def test_home_may_be_short(word: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home(word) == path.replace("HOME", "/home/me")


@pytest.mark.parametrize("path", ["/a b/c.d", "/josé", "/it's (1), b", "C:\\x", "/a=b&c"])
def test_any_path_is_read_as_it_is(path: str) -> None:
    (job,) = compose_jobs([f"results_dir={quoted(path)}"], multirun=False)
    assert job.cfg.results_dir == path


def test_options_of_ones_own_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "mine (é), it's"
    (folder / "matcher").mkdir(parents=True)
    (folder / "matcher" / "own.yaml").write_text("_target_: mine.Own\n")
    (job,) = compose_jobs([*own_options(folder), "matcher=own"], multirun=False)
    assert job.cfg.method.matcher._target_ == "mine.Own"


def test_a_class_that_cannot_be_imported_says_why() -> None:
    with pytest.raises(UserError, match="No module named 'nowhere'"), user_errors():
        instantiate({"_target_": "nowhere.Thr"})
