"""Uncertainty of a mean Dice, and of a difference of two, with the patient as the unit.

As in the tables, means are over the scans of a fold, then over folds, then over organs. A scan that
several folds query (protocol ``qnet``) is one patient. Patients are drawn from all folds together:
four to seven in a fold are too few. The support scans, five at most, are held fixed, so an interval
does not tell how another support would have scored.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fsmis.reporting.tables import in_units

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
CELL = ["fold", "support_scan", "query_scan"]
METHOD = f"{100 * CONFIDENCE:.0f} % interval: bootstrap over patients (BCa, {RESAMPLES} resamples)"


@dataclass(frozen=True)
class Description:
    """Dice of a run, or a difference of two; ``sd``, ``low`` and ``high`` are NaN for one patient.

    Attributes:
        mean: over scans, then folds, then organs.
        sd, median: over patients' means.
        n: number of patients.
        low, high: ends of the interval of ``mean``.
    """

    mean: float
    sd: float
    median: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Other run less main run, over the scans that both have scored.

    ``mean`` is over scans, then folds, then organs; ``pairs`` counts patients; ``p`` is that of
    ``paired``.
    """

    mean: float
    pairs: int
    p: float

    @classmethod
    def of(cls, main: pd.DataFrame, other: pd.DataFrame) -> "Difference":
        pairs = difference(main, other)
        return cls(mean_of(pairs), len(patient_means(pairs)), paired(main, other))


def by_scan(scores: pd.DataFrame, measure: str = "dice") -> pd.DataFrame:
    """A measure: a row for each ``CELL``, a column for each organ, NaN where undefined.

    ``measure`` is a column of scores.csv; ``dice`` and ``iou`` become percent.
    """
    values = scores.assign(value=in_units(scores, measure))
    return values.set_index([*CELL, "organ"])["value"].unstack("organ")


def ranked(scores: pd.DataFrame) -> pd.Series:
    """Mean Dice over organs of each scan in percent, the worst first; index: ``CELL``.

    Scans without any number are left out.
    """
    return by_scan(scores).mean(axis="columns").dropna().sort_values(kind="stable")


def mean_of(dice: pd.DataFrame | pd.Series) -> float:
    return float(pd.DataFrame(dice).groupby(level=0).mean().mean().mean())


def describe(
    dice: pd.DataFrame | pd.Series, resamples: int = RESAMPLES, seed: int = SEED
) -> Description:
    """Mean, spread and bootstrap interval of Dice, or of differences of Dice, in their unit.

    ``dice`` has a row for each scored scan (index: first level the fold, last the scan) and a
    column for each organ, of which the mean is described. The result is all NaN without numbers.
    The interval is ``scipy.stats.bootstrap``'s BCa. It is percentiles where all resamples agree,
    and where an organ is in so few scans that some resamples lack it, which are left out.
    """
    frame = pd.DataFrame(dice).dropna(axis="columns", how="all").dropna(how="all")
    if frame.empty:
        return Description(np.nan, np.nan, np.nan, 0, np.nan, np.nan)
    # each scan's share of its fold, so that any set of patients has a mean over folds
    weights = frame.notna() / frame.groupby(level=0).transform("count").replace(0, np.nan)
    sums, shares = (
        part.fillna(0).groupby(level=-1).sum().to_numpy() for part in (frame * weights, weights)
    )

    def mean(patients: np.ndarray, axis: int = -1) -> Any:
        with np.errstate(invalid="ignore"):  # no patient drawn has an organ: no number
            return (sums[patients].sum(axis - 1) / shares[patients].sum(axis - 1)).mean(-1)

    patients = np.arange(len(sums))
    means = patient_means(frame)
    low = high = np.nan
    if len(patients) > 1:
        low, high = _interval(mean, patients, resamples, seed)
    centre = float(mean(patients))
    return Description(centre, float(means.std()), float(means.median()), len(means), low, high)


def patient_means(dice: pd.DataFrame | pd.Series) -> pd.Series:
    """Mean over the organs of a scan, then over the folds that query it; index: the scan."""
    return pd.DataFrame(dice).mean(axis="columns").dropna().groupby(level=-1).mean()


def difference(main: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """``other - main`` wherever both have a score; both as ``by_scan`` has them."""
    return (other - main).dropna(axis="columns", how="all").dropna(how="all")


def paired(main: pd.DataFrame | pd.Series, other: pd.DataFrame | pd.Series) -> float:
    """Two-sided P value of Wilcoxon's signed-rank test over patients that both runs have scored.

    In (0, 1], 1 for equal scores; NaN without a pair. With n pairs, never below ``2**(1 - n)``.
    """
    pairs = difference(pd.DataFrame(main), pd.DataFrame(other))
    # equal but for rounding is a tie
    differences = patient_means(pairs).round(9) if len(pairs) else pd.Series(dtype=float)
    if not differences.any():
        return 1.0 if len(differences) else np.nan
    return float(stats.wilcoxon(differences).pvalue)


def smallest_p(pairs: int) -> float:
    """The smallest p value that Wilcoxon's test can give with so many pairs."""
    return min(1.0, 2.0 ** (1 - pairs))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """P values adjusted by Holm's step-down method; NaN is no test and stays.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    adjusted = np.full(p.shape, np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def _interval(
    statistic: Any, patients: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", stats.DegenerateDataWarning
        )  # of equal resamples, see below
        result = stats.bootstrap(
            (patients,),
            statistic,
            n_resamples=resamples,
            batch=1000,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    if np.isnan(low):
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(result.bootstrap_distribution, [tail, 1 - tail])
    return float(low), float(high)
