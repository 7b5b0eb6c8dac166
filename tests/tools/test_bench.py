"""The benchmark end to end, small: what it counts and what it finds equal, never its seconds."""

from collections import Counter

import pandas as pd
import pytest
from matplotlib.image import imread

from fsmis.tools.bench import ROUNDED, Workload, phantom_workload, promises, ways, whole_volume
from fsmis.tools.bench.__main__ import main
from fsmis.tools.bench.measure import count
from fsmis.tools.bench.ways import Perceptual, TwoFrame
from fsmis.tools.phantom import SIZE

SLICES, ORGANS, COPIES = 2, 2, 3
MATCHED = min(SLICES, COPIES)
VOLUME, LABELS, OF_DEFAULT = 4, 4, 2  # slices, labels; copies of the labelled slice
SCALES = 5  # of the support that are tried
SMALL = f"--image-size 64 --slices {SLICES} --organs {ORGANS} --copies {COPIES} --repeats 1".split()
SMALL += f"--volume-slices {VOLUME} --volume-size 64".split()
SMALL += ["--volume-settings", f"support_set.count={OF_DEFAULT}", "method.zoom.size=64"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What a small benchmark writes."""
    folder = tmp_path_factory.mktemp("bench") / "made"
    with pytest.MonkeyPatch.context() as patch:
        for module in (ways, whole_volume):
            patch.setattr(module, "computes_in_bfloat16", lambda: True)
        main([*SMALL, "--lpips-size", "64", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def rows(out) -> pd.DataFrame:
    return pd.read_csv(out / "ratios.csv").set_index(["stage", "way"])


@pytest.fixture(scope="module")
def work() -> Workload:
    return phantom_workload(slices=16, organs=4, copies=32, seed=0)


def counts(rows: pd.DataFrame, stage: str, column: str) -> list[int]:
    return rows.loc[stage, column].tolist()


def test_every_image_passes_the_encoder_once(rows):
    """In the order public, with organs together, that and ours in bfloat16, ours, floor."""
    distinct = SLICES + MATCHED
    expected = [2 * SLICES * ORGANS, 2 * SLICES, 2 * SLICES, distinct, distinct, distinct]
    assert counts(rows, "two-frame", "image_encodes") == expected


def test_rows_of_memory_attention_and_encoder(rows):
    pairs = SLICES * ORGANS
    assert counts(rows, "two-frame", "attention_rows") == [pairs] * 5 + [0]
    # The public predictor also memorises the query, which nothing reads.
    expected = [*[2 * pairs] * 3, *[MATCHED * ORGANS] * 2, 0]
    assert counts(rows, "two-frame", "memory_rows") == expected


def test_every_image_passes_the_backbone_once(rows):
    once = SLICES + COPIES
    assert counts(rows, "LPIPS", "backbone_images") == [2 * SLICES * COPIES, once, once]


def test_only_the_public_path_writes_images(rows):
    assert counts(rows, "two-frame", "image_files") == [2 * SLICES] * 3 + [0] * 3


def test_counts_of_a_whole_scan(work):
    """16 slices, 4 organs, 32 copies: nothing more than once."""
    step = TwoFrame("sam2_mini", 64, seed=0)
    ours = step.ways(work)[-2]
    count([ours], step.networks())
    assert ours.counts == Counter(
        image_encodes=16 + 16, attention_rows=16 * 4, memory_rows=16 * 4, image_files=0
    )
    lpips = Perceptual(image_size=64, seed=0)
    ours = lpips.ways(work)[-2]
    count([ours], lpips.networks())
    assert ours.counts == Counter(backbone_images=16 + 32, image_files=0)


def test_a_volume_is_encoded_once(rows):
    """In two sessions the labelled slice and the middle one are there twice."""
    volume = rows.loc["volume"]
    assert volume["image_encodes"].tolist() == [VOLUME + 3, VOLUME + 3, VOLUME + 1]
    assert set(volume["attention_rows"]) == {(VOLUME + 1) * LABELS}
    assert volume["image_files"].tolist() == [VOLUME + 3, 0, 0]
    assert volume.loc["ours (sam2_volume)", "alike"] > 0.95
    assert volume.loc["transformers", "alike"] > 0.5


def test_what_scale_extent_and_zoom_add_to_the_default(rows):
    """Encodes, rows and memories, at most; the seconds are told by the benchmark alone."""
    plain, default = rows.loc["budget", "first pass alone"], rows.loc["budget", "default"]
    pairs = VOLUME * LABELS
    assert plain["image_encodes"] == VOLUME + OF_DEFAULT
    assert pairs <= plain["attention_rows"] <= 2 * pairs  # the volume pass asks again
    closer = LABELS * (VOLUME + OF_DEFAULT)  # crops of each organ: the method once more
    scales = VOLUME + SCALES  # the few slices once, the labelled one at every scale
    assert default["image_encodes"] <= plain["image_encodes"] + scales + VOLUME + closer
    assert default["attention_rows"] <= (4 + SCALES) * pairs
    passes = 2 * (3 * pairs + pairs)  # three copies, then the slice itself
    assert default["memory_rows"] <= SCALES * LABELS + passes
    assert default["dice"] > 0
    rounded = rows.loc["budget", "default (bfloat16)"]
    assert rounded["image_encodes"] <= plain["image_encodes"] + scales + VOLUME + closer
    assert rounded["dice"] > 0


def test_a_part_is_measured_alone(capsys, monkeypatch):
    monkeypatch.setattr(ways, "computes_in_bfloat16", lambda: False)
    arguments = "--only two-frame --image-size 64 --slices 1 --organs 1 --copies 1 --repeats 0"
    main(arguments.split())
    printed = capsys.readouterr().out
    assert "two-frame" in printed and "LPIPS\n" not in printed and "budget" not in printed
    assert ROUNDED not in printed  # which would take longer than float32


def test_scaling_is_a_table_and_a_figure(out):
    scaling = pd.read_csv(out / "scaling.csv")
    points = scaling.groupby("axis")["value"].unique().map(sorted).to_dict()
    assert points == {"query slices": [1, 2], "organs": [1, 2], "support copies": [1, 3, 6]}
    assert (scaling["seconds"] > 0).all()
    assert set(scaling[scaling["axis"] == "support copies"]["way"]) == {"pairwise", "ours", "floor"}
    assert imread(out / "scaling.png").std() > 0


@pytest.mark.parametrize(
    ("stage", "column", "value"),
    [
        ("two-frame", "image_encodes", SLICES + MATCHED + 1),
        ("two-frame", "attention_rows", SLICES * ORGANS + 1),
        ("two-frame", "memory_rows", MATCHED * ORGANS + 1),
        ("two-frame", "image_files", 1),
        ("two-frame", "difference", 3e-4),
        ("two-frame", "flipped_pixels", 3),
        ("LPIPS", "backbone_images", SLICES + COPIES + 1),
        ("LPIPS", "difference", 2e-4),
        ("LPIPS", "same_nearest", False),
    ],
)
def test_a_broken_promise_is_seen(rows, work, stage, column, value):
    part = work.part(SLICES, ORGANS, COPIES)
    assert all(p.holds for p in promises(rows.reset_index(), part, 64, 64) if p.binding)
    worse = rows.copy()
    worse[column] = worse[column].astype(object)
    worse.loc[(stage, "ours"), column] = value
    broken = [p for p in promises(worse.reset_index(), part, 64, 64) if p.binding and not p.holds]
    assert len(broken) == 1


def test_operations(rows):
    of_floor = rows["gflop_of_floor"]
    assert of_floor["two-frame", "public"] > 2 > of_floor["two-frame", "ours"] > 1
    assert of_floor["LPIPS", "ours"] == pytest.approx(1, abs=0.02)
    both = rows.loc["both", "gflop"]
    assert both["ours"] == pytest.approx(
        rows.loc[("two-frame", "ours"), "gflop"] + rows.loc[("LPIPS", "ours"), "gflop"]
    )


def test_results_are_equal_and_not_vacuous(rows):
    rounded = [name for name in rows.loc["two-frame"].index if name.endswith(ROUNDED)]
    assert len(rounded) == 2
    assert (rows.loc["two-frame"].loc[rounded, "difference"] > 2e-4).all()
    logits = rows.loc["two-frame"].drop(["floor", *rounded])
    assert (logits["difference"] < 2e-4).all()
    assert (logits["flipped_pixels"] <= 1e-5 * SLICES * ORGANS * SIZE**2).all()
    assert logits["difference"]["ours"] > 0
    assert logits["foreground_percent"].between(1, 99).all()
    distances = rows.loc["LPIPS"].drop("floor")
    assert (distances["difference"] < 1e-4).all() and distances["same_nearest"].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "100"], "multiple of 32"),
        (["--lpips-size", "16"], "16 is less than 31"),
        (["--slices", "0"], "0 is less than 1"),
        (["--segmenter", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_bad_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*SMALL, *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
