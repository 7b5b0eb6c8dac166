"""What fsmis.tools.plan counts is what fsmis.run does, and it leaves no trace."""

import shutil
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from omegaconf import OmegaConf

from fsmis.data.nifti import read_volume, write_volume
from fsmis.methods.registration import CopyMask
from fsmis.reporting.display import encoder_images
from fsmis.run import Run, execute
from fsmis.runs.sweep import compose_jobs
from fsmis.segmenters.sam2 import Sam2
from fsmis.tools.plan import DEFAULT_STEP_S, Plan, PlannedFold, Planner, duration, main, show

SMALL = ["device=cpu", "method.training.image_size=32", "method.training.supervoxels.min_size=10"]
TINY = {"copy_mask": [], "panet": [*SMALL, "method.training.schedule={steps:3,pairs:1,classes:1}"]}
RANDOM = ["segmenter.checkpoint=random", "segmenter.image_size=64", "device=cpu"]


@pytest.fixture
def data(phantom_root: Path, tmp_path: Path) -> Path:
    """Few pixels of the phantom's scans."""
    root = tmp_path / "data"
    root.mkdir()
    for path in phantom_root.glob("*.nii.gz"):
        array, _, affine = read_volume(path)
        write_volume(root / path.name, array[::2, ::8, ::8], affine @ np.diag([8, 8, 2, 1]))
    return root


def where(data: Path, tmp_path: Path, *more: str) -> list[str]:
    return ["dataset=phantom", f"dataset.root={data}", f"results_dir={tmp_path}/runs", *more]


def planned(overrides: list[str], multirun: bool = False, measure: bool = False) -> list[Plan]:
    planner = Planner(measure)
    return [planner.plan(job) for job in compose_jobs(overrides, multirun)]


def test_counts_and_time_of_a_run_before_half_way_and_after(data: Path, tmp_path: Path) -> None:
    copy_mask = where(data, tmp_path, "method=copy_mask")
    (before,) = planned(copy_mask)
    assert (before.requested, before.pending, before.images) == (4, 4, 0)
    assert before.expected is None
    assert not (tmp_path / "runs").exists()
    (job,) = compose_jobs([*copy_mask, "protocol.fold=0"], False)
    assert execute(job.cfg, job.choices) == 0
    (half,) = planned(copy_mask)
    assert (half.requested, half.pending, len(half.seconds), len(half.hosts)) == (4, 2, 2, 1)
    assert half.expected is not None and half.expected > 0
    (after,) = planned([*copy_mask, "protocol.fold=0"])
    assert after.pending == 0 and after.expected == 0


@pytest.mark.parametrize(("method", "trainings"), [("copy_mask", 0), ("panet", 2)])
def test_measuring_writes_nothing(data: Path, tmp_path: Path, method: str, trainings: int) -> None:
    (plan,) = planned(where(data, tmp_path, f"method={method}", *TINY[method]), measure=True)
    assert len(plan.seconds) == 1 and len(plan.trainings) == trainings
    assert plan.expected == 4 * plan.seconds[0] + sum(fold.seconds for fold in plan.trainings)
    assert not (tmp_path / "runs").exists()


def test_trainings_to_do_are_counted_and_timed(data: Path, tmp_path: Path) -> None:
    panet = where(data, tmp_path, "method=panet", *TINY["panet"])
    (before,) = planned(panet)
    assert [fold.seconds for fold in before.trainings] == [3 * DEFAULT_STEP_S] * 2
    (job,) = compose_jobs([*panet, "protocol.fold=0"], False)
    assert execute(job.cfg, job.choices) == 0
    (half,) = planned(panet)
    (fold,) = half.trainings
    assert (fold.steps, len(fold.timed), fold.hosts) == (3, 1, half.hosts)
    assert fold.seconds == 3 * fold.timed[0] > 0
    assert half.expected == half.pending * median(half.seconds) + fold.seconds
    # runs that differ in evaluation share a training, of other settings none was timed
    shared = planned([*panet, "protocol.n_parts=3,1"], True)
    assert [(plan.pending, len(plan.trainings)) for plan in shared] == [(2, 1), (4, 0)]
    (other,) = planned([*panet, "method.training.schedule.pairs=2"])
    assert [fold.timed for fold in other.trainings] == [()] * 2


@pytest.mark.parametrize(
    ("matcher", "flip", "zoom", "query_slices"),
    [
        ("encoder_features", False, 0, "organ_range"),
        ("ncc", True, 0, "organ_range"),
        ("encoder_features", False, 1, "organ_range"),
        ("ncc", False, 0, "untold_full_volume"),
    ],
)
def test_encoder_images_are_those_of_the_run(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    matcher: str,
    flip: bool,
    zoom: int,
    query_slices: str,
) -> None:
    sizes = ["support_set.count=null", "support_set.per_query_slice=1"]
    scales = "[0.7]" if zoom else "[]"
    sizes += [f"method.zoom.passes={zoom}", f"method.scale.scales={scales}"]
    more = [*RANDOM, *sizes, f"matcher={matcher}", f"method.flip={flip}", "protocol.fold=0"]
    more.append(f"protocol.query_slices={query_slices}")
    overrides = where(data, tmp_path, *more)
    (plan,) = planned(overrides)
    encoded = 0
    encode = Sam2.encode

    def counted(self, images):
        nonlocal encoded
        encoded += len(images)
        return encode(self, images)

    monkeypatch.setattr(Sam2, "encode", counted)
    (job,) = compose_jobs(overrides, False)
    run = Run(job.cfg, job.choices)
    for cell in run.requested:
        run.evaluation.segment(cell)
    exact = matcher == "encoder_features" and not flip and not zoom
    assert 0 < encoded <= plan.images
    assert encoded == plan.images or not exact


def test_encoder_images_of_other_methods() -> None:
    served = {"liver": {3: [0, 1], 7: [2]}, "spleen": {7: [1, 2]}}
    assert encoder_images(OmegaConf.create({"_target_": "copy"}), served) == 0
    single = {"segmenter": {}}
    assert encoder_images(OmegaConf.create(single), served) == 3 + 2
    for passes, doubt, looks in ((2, 0, 2), (2, 0.5, 3), (0, 0.5, 0)):
        zoomed = single | {"zoom": {"passes": passes, "doubt": doubt}}
        assert encoder_images(OmegaConf.create(zoomed), served) == 5 + looks * (3 + 2 + 2 + 1)


class Own(CopyMask):
    """A method with parts named like those of others."""

    def __init__(self, segmenter, support_set, training, zoom) -> None:
        super().__init__()


@pytest.mark.parametrize("training", ["3", "{_target_:builtins.dict,steps:3}"])
def test_a_method_of_ones_own_may_call_its_parts_as_it_likes(
    data: Path, tmp_path: Path, training: str
) -> None:
    parts = {"segmenter": "tiny", "support_set": "{count:3}", "training": training, "zoom": "2.0"}
    own = [f"method._target_={Own.__module__}.{Own.__qualname__}"]
    own += [f"+method.{name}={value}" for name, value in parts.items()]
    overrides = where(data, tmp_path, "method=copy_mask", *own)
    (plan,) = planned(overrides, measure=True)
    assert (plan.pending, plan.trainings) == (4, []) and plan.images > 0
    (job,) = compose_jobs(overrides, False)
    assert execute(job.cfg, job.choices) == 0


def test_sweep_is_composed_as_hydra_does(data: Path, tmp_path: Path) -> None:
    base = where(data, tmp_path, "hydra/launcher=basic")
    jobs = compose_jobs([*base, "method=copy_mask,registration", "seed=range(2)"], True)
    assert [job.name for job in jobs] == [
        f"method={method} seed={seed}"
        for method in ("copy_mask", "registration")
        for seed in (0, 1)
    ]
    assert [job.choices["method"] for job in jobs] == ["copy_mask"] * 2 + ["registration"] * 2
    assert [job.cfg.seed for job in jobs] == [0, 1] * 2
    experiment = compose_jobs([*base, "experiment=ablation_matcher", "seed=4", "seed=3"], True)
    assert len(experiment) > 1 and all(job.cfg.seed == 3 for job in experiment)
    globbed = compose_jobs([*base, "method=glob(panet*)"], True)
    assert [job.values for job in globbed] == [{"method": "panet"}, {"method": "panet_frozen"}]


def test_scans_that_runs_of_a_sweep_share_count_once(data: Path, tmp_path: Path) -> None:
    plans = planned(where(data, tmp_path, "method=copy_mask", "protocol.fold=0,all"), True)
    assert [(plan.requested, plan.pending) for plan in plans] == [(2, 2), (4, 2)]


def test_shares_of_a_sweep_add_up(data: Path, tmp_path: Path) -> None:
    sweep = where(data, tmp_path, "method=copy_mask", "seed=0,1")
    shares = [planned([*sweep, f"shard={number}/2"], True) for number in (1, 2)]
    assert [sum(plan.pending for plan in plans) for plans in shares] == [4, 4]


def test_damaged_scan_is_said_and_the_others_counted(data: Path, tmp_path: Path, capsys) -> None:
    (data / "image_2.nii.gz").write_bytes(b"")
    (plan,) = planned(where(data, tmp_path, *RANDOM, "protocol.fold=0"))
    assert plan.pending == 2 and plan.images > 0
    assert f"scan 2 of fold 0 will fail: {data}/image_2.nii.gz" in capsys.readouterr().err


def test_table_says_what_times_rest_on(capsys) -> None:
    timed = PlannedFold(10, (1.0, 3.0, 2.0), frozenset({"node2"}))
    untimed = PlannedFold(200, (), frozenset())
    plans = [
        Plan("seed=0", 4, 2, 10, [timed], [30.0, 50.0, 40.0], frozenset({"node1"})),
        Plan("seed=1", 4, 4, 20, [untimed], [], frozenset()),
        Plan("seed=2", 4, 0, 0, [], [], frozenset()),
    ]
    show(plans)
    text = capsys.readouterr().out
    assert "2 min" in text and "median of 3 scans timed on node1" in text
    assert "training: 20 s, 10 steps x median of finished trainings" in text and "node2" in text
    assert f"training: 3 min, 200 steps x {DEFAULT_STEP_S:g} s" in text
    assert "time of 1 of 3 runs unknown" in text
    total = next(line for line in text.splitlines() if "all 3 runs" in line)
    assert total.split()[-6:] == ["12", "6", "6", "30", "2", "?"]
    assert [duration(s) for s in (0.0, 600.0, 7200.0)] == ["0 s", "10 min", "2.0 h"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0,1"], "add --multirun"),
        (["-m", "shard=5/4"], "shard=5/4: give i/n"),
        (["sed=1"], "there is no setting sed; did you mean seed?"),
        (["-m", "seed=range(0)"], "a sweep of no jobs"),
        (["-m", "seed=interval(0,1)"], "does not support sweep type"),
    ],
)
def test_bad_settings_are_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, overrides, message
) -> None:
    arguments = [*where(data, tmp_path, "method=copy_mask"), *overrides]
    monkeypatch.setattr(sys, "argv", ["fsmis.tools.plan", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors


def test_command_line_counts_before_data_is_gone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = where(data, tmp_path, "method=copy_mask", "seed=0,1")
    monkeypatch.setattr(sys, "argv", ["fsmis.tools.plan", "-m", *arguments, "--measure"])
    main()
    text = capsys.readouterr().out
    assert "seed=1" in text and "all 2 runs" in text and "median of 2 scans" in text
    shutil.rmtree(data)
    with pytest.raises(SystemExit, match="2"):
        main()
