"""The benchmark end to end, small: what it counts and what it finds equal, never its seconds."""

import pandas as pd
import pytest

from fsmis.bench.__main__ import main
from fsmis.phantom import SIZE

SLICES, ORGANS, COPIES = 2, 2, 3
MATCHED = min(SLICES, COPIES)
SMALL = f"--image-size 64 --slices {SLICES} --organs {ORGANS} --copies {COPIES} --repeats 1".split()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("bench") / "made" / "bench.csv"
    main([*SMALL, "--lpips-size", "64", "--out", str(out)])
    return pd.read_csv(out).set_index(["stage", "way"])


def counts(rows: pd.DataFrame, stage: str, column: str) -> list[int]:
    return rows.loc[stage, column].tolist()


def test_every_image_passes_the_encoder_once(rows):
    """In the order public, public with organs together, ours, floor."""
    distinct = SLICES + MATCHED
    expected = [2 * SLICES * ORGANS, 2 * SLICES, distinct, distinct]
    assert counts(rows, "two-frame", "image_encodes") == expected


def test_rows_of_memory_attention_and_encoder(rows):
    pairs = SLICES * ORGANS
    assert counts(rows, "two-frame", "attention_rows") == [pairs, pairs, pairs, 0]
    # The public predictor also memorises the query, which nothing reads.
    expected = [2 * pairs, 2 * pairs, MATCHED * ORGANS, 0]
    assert counts(rows, "two-frame", "memory_rows") == expected


def test_every_image_passes_the_backbone_once(rows):
    once = SLICES + COPIES
    assert counts(rows, "LPIPS", "backbone_images") == [2 * SLICES * COPIES, once, once]


def test_operations(rows):
    of_floor = rows["gflop_of_floor"]
    assert of_floor["two-frame", "public"] > 2 > of_floor["two-frame", "ours"] > 1
    assert of_floor["LPIPS", "ours"] == pytest.approx(1, abs=0.02)
    both = rows.loc["both", "gflop"]
    assert both["ours"] == pytest.approx(
        rows.loc[("two-frame", "ours"), "gflop"] + rows.loc[("LPIPS", "ours"), "gflop"]
    )


def test_results_are_equal_and_not_vacuous(rows):
    logits = rows.loc["two-frame"].drop("floor")
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
