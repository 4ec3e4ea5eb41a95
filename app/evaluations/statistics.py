"""Intervals and tests for scores on a test set. Draws have a fixed seed: a page never changes its mind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

RESAMPLES = 10_000
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int, z: float = _Z95) -> Interval:
    """Interval of one rate (Wilson 1927; Newcombe 1998, method 3). Right for few rows and for 0 and 100 %."""
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0, 0)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, n)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two systems differ, from the rows that only one of them got right."""
    n = only_first + only_second
    if n == 0:
        return 1.0
    return float(min(1.0, 2 * binom.cdf(min(only_first, only_second), n, 0.5)))


def mean(values: Sequence[float], seed: int = 7) -> Interval:
    """Mean with its BCa bootstrap interval (Efron 1987)."""
    return ratio(values, np.ones(len(values)), seed)


def ratio(numerators: Sequence[float], denominators: Sequence[float] | np.ndarray, seed: int = 7) -> Interval:
    """Sum over sum (such as loss over tokens) with its BCa bootstrap interval over rows."""
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    n = len(top)
    value = float(top.sum() / bottom.sum()) if n else float("nan")
    if n < 2 or (np.ptp(top) == 0 and np.ptp(bottom) == 0):
        return Interval(value, value, value, n)
    rng = np.random.default_rng(seed)
    draws = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):
        rows = rng.integers(0, n, size=(min(500, RESAMPLES - start), n))
        draws[start : start + len(rows)] = top[rows].sum(1) / bottom[rows].sum(1)
    without = (top.sum() - top) / (bottom.sum() - bottom)
    low, high = _bca(draws, value, without)
    return Interval(value, low, high, n)


def difference(first: Sequence[float], second: Sequence[float], seed: int = 7) -> Interval:
    """Mean of (first − second) over the same rows, paired, with its BCa bootstrap interval."""
    return mean(np.asarray(first, float) - np.asarray(second, float), seed)


def _bca(draws: np.ndarray, value: float, without_one: np.ndarray) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles; `without_one` are the values with each row left out."""
    below = np.mean(draws < value) + np.mean(draws == value) / 2
    bias = norm.ppf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    gaps = without_one.mean() - without_one
    spread = float((gaps**2).sum() ** 1.5)
    acceleration = float((gaps**3).sum()) / (6 * spread) if spread > 0 else 0.0
    shares = []
    for z in (-_Z95, _Z95):
        moved = bias + (bias + z) / (1 - acceleration * (bias + z))
        shares.append(float(norm.cdf(moved)))
    low, high = np.quantile(draws, shares)
    return float(low), float(high)


def clearly_better(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the paired difference is above zero beyond chance: McNemar for right or wrong, bootstrap otherwise."""
    pairs = list(zip(first, second, strict=True))
    if all(value in (0.0, 1.0) for pair in pairs for value in pair):
        only_first = sum(a > b for a, b in pairs)
        only_second = sum(b > a for a, b in pairs)
        return only_first > only_second and mcnemar(only_first, only_second) < 0.05
    return difference(first, second).low > 0
