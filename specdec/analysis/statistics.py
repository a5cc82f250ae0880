"""Intervals: bootstrap over prompts for ratios of totals, Wilson for proportions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binomtest, norm, t

Interval = tuple[float, float]
NO_INTERVAL: Interval = (float("nan"), float("nan"))
LEVEL = 0.95


def ratio(numerator: float | np.ndarray, denominator: float | np.ndarray) -> np.ndarray | float:
    """numerator / denominator, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    undefined = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)[()]


def bootstrap_interval(
    samples: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray | float],
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """95 % interval of a statistic of totals over prompts, by resampling prompts.

    `samples`: arrays [prompts, columns]. The rows of one array are resampled together, so what was
    measured on the same prompt stays a pair; different arrays are resampled independently.
    `statistic` takes one array of column totals [columns, draws] per sample and gives [draws] or
    [values, draws]; the ends of the interval are numbers or [values]. Fewer than two prompts in a
    sample give no interval (NaN); so does a statistic that is NaN in every draw.

    Percentile intervals, their levels widened for small samples as in Hesterberg (2015), *What
    Teachers Should Know About the Bootstrap*, section 5.3 (the "expanded percentile interval"):
    the plain ones cover 90 % instead of 95 % at ten prompts.
    """
    sizes = [len(sample) for sample in samples]
    if min(sizes) < 2:
        return NO_INTERVAL
    generator = np.random.default_rng(seed)
    totals = []
    for sample, size in zip(samples, sizes, strict=True):
        times_drawn = generator.multinomial(size, np.full(size, 1 / size), size=draws)
        totals.append((times_drawn @ np.asarray(sample, dtype=float)).T)  # [columns, draws]
    values = np.asarray(statistic(*totals))
    if np.isnan(values).all():
        return NO_INTERVAL
    smallest = min(sizes)
    widening = np.sqrt(smallest / (smallest - 1))
    tail = norm.cdf(widening * t.ppf((1 - LEVEL) / 2, smallest - 1))
    low, high = np.nanquantile(values, [tail, 1 - tail], axis=-1)
    return low, high


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % Wilson score interval of a proportion; no interval (NaN) without trials."""
    if trials == 0:
        return NO_INTERVAL
    found = binomtest(int(successes), int(trials)).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)
