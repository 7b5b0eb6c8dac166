"""The command lines themselves: help, subcommands, mistyped words."""

import subprocess
import sys
from pathlib import Path

import pytest

from fsmis import __main__ as fsmis
from fsmis.cli import did_you_mean, explained
from fsmis.run import command as run
from fsmis.tools import doctor, plan

REPOSITORY = Path(__file__).parents[1]


def ask_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fsmis", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def test_every_subcommand_is_listed_and_dispatched(ask):
    listed = ask(fsmis.main, "--help")
    assert listed.returncode == 0
    assert all(f"  {name} " in listed.stdout for name in fsmis.COMMANDS)
    assert ask(fsmis.main) == listed
    status = ask_process("status", "--help")
    assert status.returncode == 0 and "results_dir of the runs" in status.stdout
    wrong = ask(fsmis.main, "stauts")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: there is no subcommand stauts")
    assert "did you mean status?" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_preparing_is_a_subcommand(ask):
    assert "prepare DATASET" in ask(fsmis.main, "prepare").stdout
    assert "--raw" in ask_process("prepare", "chaos", "--help").stdout
    wrong = ask(fsmis.main, "prepare", "synapse_ct")
    assert wrong.returncode == 2 and "did you mean synapse?" in wrong.stderr


def test_help_of_a_run_is_short_and_says_what_each_setting_does(ask):
    done = ask(run, "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) < 70
    for line in (
        "seed: 0  # of everything random",
        "matcher=                  encoder_features, identity, lpips, ncc, psnr, random, ssim",
        "zoom@method.zoom=         default, none",
        "--config-dir DIR",
    ):
        assert line in done.stdout
    group = ask(run, "--help", "support_set").stdout
    assert "rotation_deg: 15  # largest rotation either way, degrees" in group
    assert "support_set=paper" in group
    zoom = ask(run, "--help", "zoom").stdout
    assert "zoom@method.zoom=none" in zoom and "passes: 0  # how often" in zoom
    wrong = ask(run, "--help", "suport_set")
    assert wrong.returncode == 2 and "did you mean support_set?" in wrong.stderr


def test_the_doctor_explains_himself_before_he_looks(ask):
    done = ask(doctor.main, "--help")
    assert done.returncode == 0 and "usage" in done.stdout and "torch" not in done.stdout


@pytest.mark.parametrize(
    "argument, meant",
    [
        ("support_set.cuont=3", "support_set.count"),
        ("method.volume_pass.reech=1", "method.volume_pass.reach"),
        ("+support_set.cuont=3", "support_set.count"),
        ("metod=copy_mask", "method"),
        ("matcher=lpip", "lpips"),
        ("organs=[livr]", "liver"),
    ],
)
def test_mistyped_words_are_met_with_the_right_one(argument, meant, phantom_root, ask_run):
    done = ask_run("dataset=phantom", f"dataset.root={phantom_root}", argument)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and f"did you mean {meant}?" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_a_group_that_is_added_says_how(phantom_root, ask_run):
    done = ask_run("dataset=phantom", f"dataset.root={phantom_root}", "test_time=none")
    assert done.returncode == 2
    assert "+test_time=X, X one of borders, default, " in done.stderr and "none" in done.stderr


def test_a_plan_knows_options_of_ones_own(tmp_path, phantom_root, ask):
    folder = tmp_path / "method"
    folder.mkdir()
    (folder / "mine.yaml").write_text("_target_: fsmis.methods.registration.CopyMask\n")
    data = ["dataset=phantom", f"dataset.root={phantom_root}", f"results_dir={tmp_path}/runs"]
    done = ask(plan.main, *data, "method=mine", "--config-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "scans" in done.stdout


def test_no_suggestion_for_what_is_near_to_nothing():
    assert did_you_mean("xyzzy", ["method", "matcher"]) == ""


def test_a_setting_of_another_command_is_not_offered_for_itself():
    message = explained("Could not override 'threads'.\nKey 'threads' is not in struct")
    assert message == "there is no setting threads; --help lists them"
