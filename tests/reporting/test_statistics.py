"""Statistics against tables, hand computations and independent formulas."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from fsmis.reporting.statistics import (
    by_scan,
    describe,
    difference,
    holm,
    paired,
    patient_means,
    smallest_p,
)
from fsmis.reporting.tables import MEAN, summarise
from tests.reporting.test_tables import FULL, ORGANS

P_VALUES = st.lists(st.floats(1e-9, 1), min_size=1, max_size=8)


def scores_of(values: np.ndarray, folds: int) -> pd.DataFrame:
    """Score rows of values ``[scans, organs]`` (NaN: organ absent), scans dealt out to folds."""
    rows = [
        {"fold": scan % folds, "support_scan": "s", "query_scan": str(scan), "organ": f"o{organ}"}
        | {"dice": dice, "iou": dice, "hd95_mm": 1.0, "assd_mm": 1.0}
        | {"tp": 1, "fp": 0, "fn": 0, "protocol": "alpnet-3parts-organ_range"}
        for scan, row in enumerate(values)
        for organ, dice in enumerate(row)
        if not np.isnan(dice)
    ]
    return pd.DataFrame(rows)


def series(*values: float) -> pd.Series:
    """Dice of one scan after the other, all of one fold."""
    index = pd.MultiIndex.from_tuples([(0, str(scan)) for scan in range(len(values))])
    return pd.Series(values, index)


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        float,
        st.tuples(st.integers(3, 9), st.integers(1, 3)),
        elements=st.floats(0, 1) | st.just(np.nan),
    ),
    st.integers(1, 3),
)
def test_mean_and_deviation_are_those_of_the_tables(values: np.ndarray, folds: int) -> None:
    values[0] = 0.5  # at least one scan has each organ
    scores = scores_of(values, folds)
    organs = [f"o{organ}" for organ in range(values.shape[1])]
    table = summarise(scores, organs).set_index("organ")
    dice = by_scan(scores)
    described = {MEAN: describe(dice, resamples=20)}
    described |= {organ: describe(dice[organ], resamples=20) for organ in organs}
    for organ, found in described.items():
        assert found.mean == pytest.approx(table.loc[organ, "dice"])
        assert found.sd == pytest.approx(table.loc[organ, "sd"], nan_ok=True)
        assert found.n == table.loc[organ, "scans"]


def test_interval_is_that_of_scipy_for_one_fold() -> None:
    values = np.random.default_rng(3).beta(8, 2, 20) * 100
    found = describe(series(*values))
    expected = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0), batch=1000)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.15)
    assert found.low < found.mean < found.high


def test_interval_depends_on_the_seed_alone() -> None:
    dice = by_scan(scores_of(np.random.default_rng(0).random((12, 2)), folds=3))
    assert describe(dice) == describe(dice.sample(frac=1, random_state=1))
    assert describe(dice) != describe(dice, seed=1)


def test_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = generator.normal(70, 10, (20, 1)) + generator.normal(0, 5, (20, 4))
        dice = by_scan(scores_of(values / 100, folds=5))
        found = describe(dice, resamples=400)
        covered += found.low <= 70 <= found.high
    assert 0.88 <= covered / 200 <= 0.98


def test_unequal_folds_weigh_alike() -> None:
    found = describe(by_scan(FULL.assign(support_scan="s"))["liver"])
    assert found.mean == pytest.approx((30 + 90) / 2)
    assert found.median == pytest.approx(40) and found.n == 3


def test_scan_queried_in_two_folds_is_one_patient() -> None:
    index = pd.MultiIndex.from_tuples([(0, "8"), (1, "8"), (1, "2")])
    dice = pd.Series([40.0, 60.0, 80.0], index)
    found = describe(dice)
    assert found.n == 2
    assert found.mean == pytest.approx((40 + 70) / 2)  # as the tables have it
    assert patient_means(dice).to_dict() == {"8": 50, "2": 80}


def test_one_patient_has_no_interval() -> None:
    found = describe(series(50.0))
    assert (found.mean, found.median, found.n) == (50, 50, 1)
    assert np.isnan([found.sd, found.low, found.high]).all()


@pytest.mark.filterwarnings("error")
def test_equal_scores_have_a_point_for_an_interval() -> None:
    found = describe(series(70, 70, 70))
    assert (found.sd, found.low, found.high) == pytest.approx((0, 70, 70))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("in_scans", [2, 5])
def test_an_organ_in_few_scans_leaves_the_mean_its_interval(in_scans: int) -> None:
    values = np.random.default_rng(0).normal(0.8, 0.05, (20, 2))
    values[in_scans:, 1] = np.nan
    found = describe(by_scan(scores_of(values, folds=5)), resamples=999)
    assert found.low < found.mean < found.high and found.high - found.low < 10


@pytest.mark.filterwarnings("error")
def test_no_score_is_no_number() -> None:
    found = describe(series(np.nan, np.nan))
    assert found.n == 0 and np.isnan(found.mean) and np.isnan(found.low)


def test_pairs_are_what_both_have_scored() -> None:
    main = by_scan(FULL.assign(support_scan="s"))
    other = main[main.index.get_level_values("query_scan") != "2"] - 10
    other.loc[other.index[0], "RK"] = np.nan
    pairs = difference(main, other)
    assert list(pairs.index.get_level_values("query_scan")) == ["1", "8"]
    assert pairs["liver"].tolist() == pytest.approx([-10, -10])
    assert pairs["RK"].isna().tolist() == [True, False]


def test_another_support_scan_is_no_pair() -> None:
    main, other = (by_scan(FULL.assign(support_scan=support)) for support in ("s", "t"))
    assert difference(main, other).empty and np.isnan(paired(main, other))


def test_wilcoxon_by_hand() -> None:
    main = series(50, 50, 50, 50, 50, 50)
    # all six differences of one sign: 2 of the 2**6 signs are as extreme
    assert paired(main, series(51, 52, 53, 54, 55, 56)) == pytest.approx(2 / 64)
    # the smallest against the others: ranks sum to 1, 4 of 64 are as extreme
    assert paired(main, series(49, 52, 53, 54, 55, 56)) == pytest.approx(4 / 64)


@settings(deadline=None)
@given(st.integers(1, 12))
def test_no_p_is_below_the_smallest(pairs: int) -> None:
    main, other = series(*[50.0] * pairs), series(*(51.0 + scan for scan in range(pairs)))
    assert paired(main, other) == pytest.approx(smallest_p(pairs))


def test_equal_runs_do_not_differ() -> None:
    dice = by_scan(FULL.assign(support_scan="s"))
    assert paired(dice, dice) == 1
    assert paired(dice["liver"], dice["liver"] + 1e-13) == 1


def test_a_table_of_organs_is_tested_by_its_means() -> None:
    generator = np.random.default_rng(0)
    main, other = (by_scan(scores_of(generator.random((9, 3)), folds=3)) for _ in range(2))
    assert paired(main, other) == paired(main.mean(axis=1), other.mean(axis=1))


def test_holm_by_hand() -> None:
    # in order 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 are 0.04, 0.06, 0.06, 0.04; never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert holm([]).size == 0


@settings(deadline=None)
@given(P_VALUES, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(
    p_values: list[float], level: float
) -> None:
    rejected = set()
    remaining = dict(enumerate(p_values))
    while remaining:
        smallest = min(remaining, key=remaining.__getitem__)
        if remaining[smallest] * len(remaining) > level:
            break
        rejected.add(smallest)
        del remaining[smallest]
    assert set(np.flatnonzero(holm(p_values) <= level)) == rejected


@settings(deadline=None)
@given(P_VALUES)
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted, p = holm(p_values), np.array(p_values)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, len(p) * p) + 1e-12).all()


def test_organs_of_the_mean() -> None:
    assert list(by_scan(FULL.assign(support_scan="s")).columns) == sorted(ORGANS)
