"""Tables and figures of the paper, made from real runs on small generated scans."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from experiments import (
    ablations,
    main_results,
    qualitative,
    scale_search,
    support_set_and_matching,
)
from fsmis.cli import CONF_DIR
from fsmis.data.nifti import read_volume, write_volume
from fsmis.reporting.paper_rows import Experiment, FinishedRuns
from fsmis.reporting.paper_table import Request, find
from fsmis.reporting.paper_table import swept as named_by
from fsmis.reporting.published import MARKS
from fsmis.reporting.runs import read_runs
from fsmis.reporting.tables import latex, summarise
from fsmis.run import execute
from fsmis.runs.records import RunFolder
from fsmis.runs.sweep import compose_jobs
from fsmis.tools import bundle

REPOSITORY = CONF_DIR.parent
SCRIPTS = sorted(
    path.stem
    for path in (REPOSITORY / "experiments").glob("*.py")
    if "__main__" in path.read_text()
)
SMALL = [
    *("segmenter.checkpoint=random", "segmenter.image_size=64", "support_set.count=2"),
    "device=cpu",
]
FILES = ("csv", "md", "tex", "png", "pdf")


@pytest.fixture(scope="module")
def root(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom's scans, every fourth pixel of every third slice; read only."""
    root = tmp_path_factory.mktemp("small")
    for path in phantom_root.glob("*.nii.gz"):
        array, _, affine = read_volume(path)
        write_volume(root / path.name, array[::3, ::4, ::4], affine @ np.diag([4, 4, 3, 1]))
    return root


@pytest.fixture
def where(root: Path) -> list[str]:
    return ["dataset=phantom", f"dataset.root={root}"]


def run(results: Path, *overrides: str) -> None:
    """A run in this process, as ``python -m fsmis run`` does it."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        words = [*overrides, f"results_dir={results}"]
        cfg = compose("config", words, return_hydra_config=True)
    with open_dict(cfg):
        choices = dict(cfg.pop("hydra").runtime.choices)
    assert execute(cfg, choices) == 0


def table(stem: Path) -> pd.DataFrame:
    """The CSV file of a table, whose other files are looked at too."""
    contents = {suffix: stem.with_name(f"{stem.name}.{suffix}").read_bytes() for suffix in FILES}
    assert contents["png"].startswith(b"\x89PNG") and contents["pdf"].startswith(b"%PDF")
    check_latex(contents["tex"].decode(), stem.name)
    return pd.read_csv(stem.with_name(f"{stem.name}.csv"), dtype={"scan": str})


def check_latex(text: str, name: str) -> None:
    """Booktabs' rules in order, as many cells in each row as columns, nothing special unescaped."""
    assert text.count(rf"\label{{tab:{name}}}") == 1
    rules = [r"\begin{table}", r"\begin{tabular}", r"\toprule", r"\midrule", r"\bottomrule"]
    places = [text.index(rule) for rule in [*rules, r"\end{tabular}", r"\end{table}"]]
    assert places == sorted(places)
    body = text[places[2] : places[4]]
    columns = re.search(r"\\begin{tabular}{([lr]+)}", text)
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert columns and rows
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns[1]) - 1}
    plain = re.sub(r"\\label{.*?}|\\[&%$#_{}]|\$[^$]*\$", "", text)
    assert not re.search(r"[_#%^~–†✓≠±]", plain)
    assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_file_says_how_it_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"experiments.{name}").main(["--help"])
    assert stop.value.code == 0
    assert f"python -m experiments.{name}" in capsys.readouterr().out


def test_every_ablation_has_its_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    planned = {path.stem for path in (CONF_DIR / "experiment").glob("ablation_*.yaml")}
    assert {f"ablation_{name}" for name in ablations.ABLATIONS} == planned
    with pytest.raises(SystemExit) as stop:
        ablations.main(["machter", "results/runs"])
    assert stop.value.code == 2
    refused = capsys.readouterr().err
    assert "machter" in refused and all(name in refused for name in ablations.ABLATIONS)


def test_the_printed_command_makes_the_missing_runs(where: list[str], tmp_path: Path, ask) -> None:
    results = tmp_path / "runs"
    results.mkdir()
    settings = [*where[1:], *SMALL, "matcher=random,identity"]
    words = ["matcher", results, "--dataset", "phantom", "--out", tmp_path / "out", *settings]
    refused = ask(ablations.main, *words)
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: {results}: none of the 2")
    making = shlex.split(refused.stderr.split("make them with: ")[1])
    assert making[:6] == ["python", "-m", "fsmis", "run", "-m", "experiment=ablation_matcher"]
    options = {"capture_output": True, "text": True, "cwd": REPOSITORY}
    made = subprocess.run([sys.executable, *making[1:]], **options)
    assert made.returncode == 0, made.stderr
    done = ask(ablations.main, *words)
    assert done.returncode == 0, done.stderr
    assert "Missing" not in done.stdout and "Not run" not in done.stdout
    frame = table(tmp_path / "out/ablation_matcher_phantom")
    assert frame["matcher"].tolist() == ["random", "identity"]
    for row in frame.to_dict("records"):
        folder = RunFolder(results / "phantom/augment_match_prompt" / row["variant"])
        mean = summarise(folder.scores(), ["liver", "RK", "LK", "spleen"])["dice"].iloc[-1]
        assert row["mean"] == pytest.approx(mean) and row["low"] <= mean <= row["high"]
        assert row["patients"] == 4


def test_a_run_serves_every_table_that_needs_it(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, *where, *SMALL)  # of no experiment
    run(tmp_path, *where, *SMALL, "method.memories=1")
    size = [argument for argument in SMALL if not argument.startswith("support_set")]
    copies = ["support_set=paper", "support_set.per_query_slice=1", "method.memories=1"]
    run(tmp_path, *where, *size, *copies)
    numbers = [*size, "support_set.per_query_slice=0,1"]
    for name, settings, swept, made in (
        ("ablation_matcher", SMALL, "matcher=", "encoder_features"),
        ("ablation_augmentation_kind", SMALL, "support_set.kind=", "both"),
        ("ablation_model_size", SMALL, "segmenter=", "sam2_mini"),
        ("ablation_count_and_matcher", SMALL, "matcher=", "encoder_features"),
        ("ablation_test_time", SMALL, "test_time=", "default"),
        ("main_results", SMALL, "method=", "augment_match_prompt"),
        ("ablation_augmentation_count", numbers, "support_set.per_query_slice=", "1"),
    ):
        ablation = name.removeprefix("ablation_")
        module, words = (main_results, []) if name == "main_results" else (ablations, [ablation])
        capsys.readouterr()
        module.main([*words, str(tmp_path), "--dataset", "phantom", *settings])
        assert len(table(tmp_path / f"{name}_phantom")) == 1
        printed = capsys.readouterr().out
        commands = printed.split("these commands make them:")
        words = shlex.split(commands[1].splitlines()[1])
        assert f"experiment={name}" in words and where[1] in words
        (missing,) = [word.split("=")[1].split(",") for word in words if word.startswith(swept)]
        assert missing and made not in missing


def test_partial_run_is_shown_marked_and_not_compared(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*SMALL, "method.memories=1"]
    run(tmp_path, *where, *small)
    run(tmp_path, *where, *small, "matcher=identity")
    run(tmp_path, *where, *small, "matcher=random", "protocol.fold=1")
    settings = ["--dataset", "phantom", *SMALL, "matcher=encoder_features,identity,random,ssim"]
    ablations.main(["matcher", str(tmp_path), *settings])
    printed = capsys.readouterr().out
    frame = table(tmp_path / "ablation_matcher_phantom").set_index("matcher")
    assert frame.loc["random", "covered"] == "partial: 2/4 scans, folds 1 of 2"
    difference = frame.loc["identity", "mean"] - frame.loc["encoder_features", "mean"]
    assert frame.loc["identity", "difference"] == pytest.approx(difference)
    assert 0 < frame.loc["identity", "p"] <= 1
    assert frame.loc[["encoder_features", "random"], ["difference", "p"]].isna().all(axis=None)
    markdown = (tmp_path / "ablation_matcher_phantom.md").read_text()
    assert "partial: 2/4 scans" in markdown and "Partial runs do not cover" in markdown
    assert "Not run: ssim." in markdown
    assert "matcher=random,ssim results_dir" in printed  # what is complete is not asked for
    ablations.main(["matcher", str(tmp_path), *settings[:-1], "matcher=random", "protocol.fold=1"])
    assert "these commands make them" not in capsys.readouterr().out  # nor what nobody wants


def test_protocols_are_rows_and_methods_columns(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for protocol in ("alpnet", "qnet"):
        run(tmp_path, *where, "method=copy_mask", f"protocol={protocol}")
    run(tmp_path, *where, "method=copy_mask", "protocol.n_parts=1", "protocol.fold=0")
    ablations.main(["protocol", str(tmp_path), "--dataset", "phantom", "method=copy_mask"])
    frame = table(tmp_path / "ablation_protocol_phantom")
    assert frame["protocol"].nunique() == len(frame) == 3
    markdown = (tmp_path / "ablation_protocol_phantom.md").read_text()
    lines = [[cell.strip() for cell in row.split("|")[1:-1]] for row in markdown.splitlines()]
    cells = {tuple(line[:3]): line[3] for line in lines if len(line) == 4}
    three = frame[frame["labelled slices"] == 3].set_index("folds")["mean"]
    assert cells["alpnet", "3", "organ_range"] == f"{three['alpnet']:.2f}"
    assert cells["range", "", ""] == f"{three.max() - three.min():.2f}"
    assert cells["alpnet", "1", "organ_range"].endswith("*")
    assert "protocol=alpnet,adnet,qnet" in capsys.readouterr().out
    run(tmp_path, *where, "method=copy_mask", "seed=1")
    words = ["method=copy_mask", "protocol=alpnet", "protocol.n_parts=3", "seed=0,1"]
    ablations.main(["protocol", str(tmp_path), "--dataset", "phantom", *words])
    lines = (tmp_path / "ablation_protocol_phantom.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("| alpnet")]) == 2


def test_main_results_stand_below_published_rows(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # other scans under the name of a dataset that papers have
    named = [where[1], "dataset.name=chaos_mri", "method=copy_mask"]
    monkeypatch.setattr("fsmis.reporting.beside.benchmark", lambda dataset: "4 scans in 2 folds")
    run(tmp_path, where[0], *named)
    main_results.main([str(tmp_path), "--dataset", "phantom", *named])
    frame = table(tmp_path / "main_results_phantom")
    assert frame["method"].tolist() == ["copy_mask"]
    lines = (tmp_path / "main_results_phantom.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    assert "copy_mask" in rows[-1] and "4/4 scans" in rows[-1] and len(rows) > 10
    (paper,) = [row for row in rows if "Zu et al." in row]
    assert "83.30" in paper and "†" in paper
    to_paper = float(rows[-1].split("|")[-3])
    assert to_paper == pytest.approx(frame["mean"][0] - 83.30, abs=0.006)


def test_one_table_holds_whole_volumes_imported_predictions_and_earlier_code(
    where: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, fold = tmp_path / "runs", "protocol.fold=0"
    run(results, *where, fold, "method=copy_mask")
    whole = ["protocol.n_parts=1", "protocol.query_slices=full_volume"]
    run(results, *where, fold, *SMALL, *whole)
    maps = tmp_path / "maps"
    maps.mkdir()
    for path in root.glob("label_*.nii.gz"):
        shutil.copy(path, maps / path.name)
    theirs = ["method=predictions", f"predictions={maps}", "known_as=nnunet"]
    run(results, *where, *theirs)
    run(results, *where, *theirs, "organs=[liver]")  # of other organs: another table's
    (plan,) = results.glob("phantom/copy_mask/*/plan.json")
    edited = json.loads(plan.read_text())
    edited["identity"]["code"]["CopyMask"] = "0" * 12
    plan.write_text(json.dumps(edited))
    capsys.readouterr()
    main_results.main([str(results), "--dataset", "phantom", fold, *SMALL])
    printed = capsys.readouterr().out
    frame = table(results / "main_results_phantom").set_index("method")
    whole_volume = "augment_match_prompt, n_parts=1, query_slices=full_volume"
    assert frame.index.tolist() == ["copy_mask", whole_volume, "nnunet, imported"]
    assert frame.loc[whole_volume, "protocol"] == "alpnet-1part-full_volume"
    assert frame.loc["nnunet, imported", "mean"] == 100
    assert frame.loc["nnunet, imported", "covered"] == frame.loc[whole_volume, "covered"]
    assert frame.loc["copy_mask", "covered"].endswith(", earlier code")
    assert "Earlier code: the same settings" in (results / "main_results_phantom.md").read_text()
    (command,) = [line for line in printed.splitlines() if "experiment=main_results" in line]
    assert "method=copy_mask," in command  # made anew where it is asked for
    for plan in results.glob("phantom/nnunet/*/plan.json"):
        edited = json.loads(plan.read_text())
        edited["identity"]["code"]["Predictions"] = "0" * 12
        plan.write_text(json.dumps(edited))
    main_results.main([str(results), "--dataset", "phantom", fold, *SMALL])
    frame = table(results / "main_results_phantom").set_index("method")
    assert frame.loc["nnunet, imported", "covered"].endswith(", earlier code")


def test_a_run_that_two_experiments_plan_is_one_row(where: list[str], tmp_path: Path) -> None:
    one_part = [*where, "method=copy_mask", "protocol.n_parts=1"]
    run(tmp_path, *one_part)
    runs = FinishedRuns(tmp_path, read_runs(tmp_path))
    request = Request("main_results", runs, tmp_path / "table", one_part)
    found = find(request, main_results.names, ["main_results", "one_label"])
    assert [row.names["method"] for row in found.rows.rows] == ["copy_mask"]
    (command,) = found.commands
    assert "experiment=one_label" in command and "query_slices=full_volume" in command


def test_scans_may_lie_in_a_folder_of_any_name(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it's (1), é").symlink_to(root)
    run(tmp_path, "dataset=phantom", rf"dataset.root='{tmp_path}/it\'s (1), é'", "method=copy_mask")
    main_results.main([str(tmp_path), "--dataset", "phantom", "method=copy_mask"])
    assert len(table(tmp_path / "main_results_phantom")) == 1


def test_scans_of_ones_own_are_not_compared_with_papers(where: list[str], tmp_path: Path) -> None:
    named = [where[1], "dataset.name=chaos_mri", "method=copy_mask"]
    run(tmp_path, where[0], *named)
    main_results.main([str(tmp_path), "--dataset", "phantom", *named])
    lines = (tmp_path / "main_results_phantom.md").read_text().splitlines()
    (own,) = [line for line in lines if line.startswith("| copy_mask")]
    assert own.split("|")[-3].strip() == "–"


def test_qualitative_figure_shows_worst_median_and_best(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(tmp_path), "--dataset", "phantom", "method=copy_mask,augment_match_prompt", *SMALL]
    run(tmp_path, *where, "method=copy_mask")
    with pytest.raises(SystemExit) as stop:
        qualitative.main(call)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "save_predictions=true method=copy_mask,augment_match_prompt" in said
    run(tmp_path, *where, "method=copy_mask", "save_predictions=true")
    run(tmp_path, *where, *SMALL, "save_predictions=true")
    qualitative.main(call)
    assert "Missing" not in capsys.readouterr().out
    frame = table(tmp_path / "qualitative_phantom")
    assert frame["rank"].tolist() == ["worst", "median", "best"] and frame["scan"].is_unique
    (folder,) = tmp_path.glob("phantom/augment_match_prompt/*")
    dice = RunFolder(folder).scores().groupby("query_scan")["dice"].mean().sort_values()
    assert frame["scan"].iloc[[0, 2]].tolist() == dice.index[[0, -1]].tolist()
    assert frame["augment_match_prompt"].tolist() == pytest.approx((100 * dice).iloc[[0, 1, 3]])


def test_tables_and_figures_read_bundles_like_folders(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.symlink_to(root)
    zips = []
    for seed in ("0", "1"):
        where = ["dataset=phantom", f"dataset.root={scans}", "method=copy_mask", f"seed={seed}"]
        run(tmp_path / "runs" / seed, *where, "save_predictions=true")
        zips.append(str(tmp_path / f"{seed}.zip"))
        bundle.main([zips[-1], str(tmp_path / "runs" / seed), "--images"])
    scans.unlink()  # those who read a bundle have the scans elsewhere
    settings = ["--dataset", "phantom", f"dataset.root={root}", "method=copy_mask", "seed=0,1"]
    for module, name in ((main_results, "main_results"), (qualitative, "qualitative")):
        frames = []
        for out, sources in (("folder", [str(tmp_path / "runs")]), ("bundles", zips)):
            capsys.readouterr()
            module.main([*sources, *settings, "--out", str(tmp_path / out)])
            assert "Missing" not in capsys.readouterr().out
            frames.append(table(tmp_path / out / f"{name}_phantom"))
        pd.testing.assert_frame_equal(*frames)


def test_two_runs_of_a_method_are_two_columns_of_the_qualitative_figure(
    where: list[str], tmp_path: Path
) -> None:
    for matcher in ("random", "identity"):
        run(tmp_path, *where, *SMALL, "save_predictions=true", f"matcher={matcher}")
    swept = [*SMALL, "method=augment_match_prompt", "matcher=random,identity"]
    qualitative.main([str(tmp_path), "--dataset", "phantom", *swept])
    frame = table(tmp_path / "qualitative_phantom")
    names = [f"augment_match_prompt, {matcher}" for matcher in ("random", "identity")]
    assert list(frame)[3:] == names


@pytest.mark.parametrize("module", [support_set_and_matching, scale_search])
def test_a_method_without_the_stage_is_one_line(where: list[str], module, ask) -> None:
    refused = ask(module.main, *where, "method=copy_mask")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "CopyMask" in refused.stderr and "method=augment_match_prompt" in refused.stderr


def test_support_set_and_matching_is_drawn(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support_set_and_matching.main([*where, *SMALL, f"results_dir={tmp_path}"])
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.suffix for path in paths] == [".png", ".pdf"] and all(map(Path.is_file, paths))


def test_a_results_folder_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main_results.main([str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "no such folder" in capsys.readouterr().err


def test_what_the_user_sets_is_swept_no_longer() -> None:
    plain = Experiment("ablation_matcher")
    assert [run.values["matcher"] for run in plain.runs][:2] == ["encoder_features", "lpips"]
    assert plain.base.identity == plain.runs[0].identity
    chosen = Experiment("ablation_matcher", ["matcher=ssim", "protocol.fold=[0,1]"])
    (only,) = chosen.runs
    assert only.values == {"matcher": "ssim"} and only.identity["method"]["matcher.window"] == 7
    assert chosen.base.identity == plain.base.identity
    words = shlex.split(chosen.command(chosen.runs, Path("a b")))
    assert words[-3:] == ["protocol.fold=[0,1]", "matcher=ssim", "results_dir=a b"]
    words = shlex.split(chosen.command(chosen.runs, Path("it's (1), new")))
    assert compose_jobs(words[5:], multirun=True)[0].cfg.results_dir == "it's (1), new"


def test_a_setting_may_be_called_like_a_column() -> None:
    (run, *_) = Experiment("ablation_matcher").runs
    named = replace(run, values={"method.low": "1", "method.width": "2", "matcher": "ssim"})
    assert list(named_by({})(named)) == ["method.low", "width", "matcher"]


@pytest.mark.parametrize(
    ("segmenter", "said"),
    [
        ("sam2.1_tiny", {"version": "SAM2.1", "size": "tiny"}),
        ("sam2_mini", {"version": "ours", "size": "mini"}),
        ("medsam2", {"version": "medsam2", "size": "–"}),
        ("sam3_tracker", {"version": "sam3_tracker", "size": "–"}),
    ],
)
def test_every_segmenter_has_a_name(segmenter: str, said: dict[str, str]) -> None:
    (run, *_) = Experiment("ablation_matcher").runs
    assert ablations.version_and_size(replace(run, values={"segmenter": segmenter})) == said


def test_latex_reads_every_character_as_text() -> None:
    text = pd.DataFrame(
        {"a_b": [r"50 % of a\b & {c}~^#$", "x_1"], "n": ["<0.001", "–"], "d": ["+1.00", "-2.00"]}
    )
    bold = pd.DataFrame({"a_b": [False, True], "n": [False] * 2, "d": [False] * 2})
    check_latex(latex("A & B", "name_1", text, [MARKS], bold), "name_1")
    source = latex("A & B", "name_1", text, ["100 %."], bold)
    check_latex(source, "name_1")
    assert r"\textbf{x\_1}" in source and r"\begin{tabular}{lrr}" in source
    assert r"\caption{A \& B. 100 \%.}" in source and r"$<$0.001" in source and "--" in source
