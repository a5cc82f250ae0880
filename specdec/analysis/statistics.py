"""Intervals over prompts: a jackknife for ratios of totals, Wilson's for shares, and quantiles.

What was measured on one prompt stays together, whichever arm measured it: prompts are independent,
the tokens and rounds of one prompt are not. How often each interval holds what it promises was
simulated: `benchmarks/coverage.py`, whose table stands in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

Interval = tuple[np.ndarray | float, np.ndarray | float]
LEVEL = 0.95
#: A quantile below which too few values lie beyond it is the largest value, whatever it is called.
FEWEST_VALUES = {0.5: 1, 0.95: 20, 0.99: 100}


def ratio(numerator: float | np.ndarray, denominator: float | np.ndarray) -> np.ndarray | float:
    """numerator / denominator, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    undefined = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)[()]


def jackknife_interval(
    amounts: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray | float],
    *,
    log: bool = True,
    level: float = LEVEL,
) -> Interval:
    """Interval of a statistic of totals over prompts, by leaving out one prompt after the other.

    Args:
        amounts: `[..., prompts, amounts]`; the first amount says how much a prompt weighs.
        statistic: takes totals `[amounts, ...]` and gives `[...]`.
        log: whether it is a positive ratio, whose logarithm is nearer to a normal distribution
            than itself.

    Tukey's jackknife (Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 11),
    with Student's t of as many degrees of freedom as there are prompts of equal weight, less one:
    where one long text makes up most of the totals, ten prompts say little more than two. Fewer
    than two prompts of any weight, or a statistic that is undefined without one of them, give no
    interval (NaN).
    """
    amounts = np.asarray(amounts, dtype=float)
    if amounts.shape[-2] == 0:
        return np.nan, np.nan
    totals = amounts.sum(axis=-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.log if log else np.asarray
        value = scale(statistic(np.moveaxis(totals[..., 0, :], -1, 0)))
        without_one = scale(statistic(np.moveaxis(totals - amounts, -1, 0)))  # [..., prompts]
        weights = amounts[..., 0]
        n = (weights > 0).sum(axis=-1)
        spread = ((without_one - without_one.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
        error = np.sqrt((n - 1) / n * spread)
        half = np.where(n < 2, np.nan, _t(level, _degrees(weights)) * error)
        low, high = value - half, value + half
        return (np.exp(low)[()], np.exp(high)[()]) if log else (low[()], high[()])


class Estimate(NamedTuple):
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


def estimate(
    statistic: Callable[..., np.ndarray | float],
    *arms: Mapping[str, ArrayLike],
    log: bool = True,
    level: float = LEVEL,
) -> Estimate:
    """A statistic of the totals over prompts of one or more arms, with its jackknife interval.

    An arm is amounts by name, `[prompts]` each, the same prompts in every arm; `statistic` takes
    the totals of each arm, by the same names. The first amount of the first arm says how much a
    prompt weighs. Without a prompt, everything is NaN.
    """
    names = [(i, name) for i, arm in enumerate(arms) for name in arm]
    together = np.stack([np.asarray(arms[i][name], float) for i, name in names], axis=-1)

    def of_totals(totals: np.ndarray) -> np.ndarray | float:
        split: list[dict] = [{} for _ in arms]
        for (i, name), total in zip(names, totals, strict=True):
            split[i][name] = total
        return statistic(*split)

    low, high = jackknife_interval(together, of_totals, log=log, level=level)
    return Estimate(float(of_totals(together.sum(axis=0))), float(low), float(high))


def proportion_interval(
    successes: ArrayLike,
    trials: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = LEVEL,
) -> Interval:
    """Interval of a share, Σ successes ÷ Σ trials over prompts (`[..., prompts]` each).

    Wilson's score interval (Wilson 1927) for as many independent trials as would scatter as much
    as the prompts do (Franco et al. 2019, *Comparative Study of Confidence Intervals for
    Proportions in Complex Sample Surveys*), fewer by what Student's t takes off for few prompts
    (Korn and Graubard 1998). It does not collapse where all were accepted, or none. Where the
    prompts scatter too little to tell, `design_effect` trials count as one: how many times the
    variance of independent trials that of their sum is. Fewer than two prompts with a trial give no
    interval (NaN).
    """
    successes, trials = np.broadcast_arrays(*(np.asarray(x, float) for x in (successes, trials)))
    n, total = (trials > 0).sum(axis=-1), trials.sum(axis=-1)
    share = np.asarray(ratio(successes.sum(axis=-1), total))
    variance = _cluster_variance(successes, trials, share)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = ndtri((1 + level) / 2)
        as_scattered = np.where(variance > 0, share * (1 - share) / variance, np.inf)
        independent = np.minimum(total / design_effect, as_scattered)
        independent = independent * (z / _t(level, _degrees(trials))) ** 2
        centre = share + z**2 / (2 * independent)
        half = z * np.sqrt(share * (1 - share) / independent + z**2 / (4 * independent**2))
        low, high = ((centre + s * half) / (1 + z**2 / independent) for s in (-1, 1))
    low, high = np.minimum(low, share).clip(0), np.maximum(high, share).clip(max=1)  # rounding
    return np.where(n < 2, np.nan, low)[()], np.where(n < 2, np.nan, high)[()]


def acceptance_interval(
    accepted: ArrayLike, proposed: ArrayLike, K: int, *, level: float = LEVEL
) -> Interval:
    """Interval of α, Σ accepted ÷ Σ proposed over prompts (`[..., prompts]` each).

    One refusal in a round of K costs all that follows: 1 to K proposals, equally often where
    refusals are rare. That scatters (2K + 1)/3 times as much as independent proposals would.
    """
    return proportion_interval(accepted, proposed, design_effect=(2 * K + 1) / 3, level=level)


def quantiles(values: np.ndarray, weights: np.ndarray, shares: ArrayLike) -> np.ndarray:
    """For each share the least value that at least this share of the weights does not exceed.

    The inverse of the distribution that `latency_cdf` draws; NaN without values.
    """
    if len(values) == 0:
        return np.full(np.shape(shares), np.nan)
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / np.sum(weights)
    places = np.searchsorted(reached, np.asarray(shares) - 1e-12).clip(max=len(values) - 1)
    return values[order][places]


def distribution(
    values: np.ndarray, weights: np.ndarray, prompts: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of the weights that does not exceed each of `grid`, and its interval.

    `prompts` numbers the prompt of each value from 0: values of one prompt are not independent.
    """
    weight_up_to = np.zeros((prompts.max(initial=-1) + 1, len(grid) + 1))
    np.add.at(weight_up_to, (prompts, np.searchsorted(grid, values)), weights)
    total = weight_up_to.sum(axis=1)
    below = np.cumsum(weight_up_to[:, :-1], axis=1).T  # [grid, prompts]
    shares = np.asarray(ratio(below.sum(axis=1), total.sum()))
    # Towards the ends no prompt differs from another any more, which says nothing: there they are
    # taken to scatter as they do where it can be seen, around the median.
    (median,) = quantiles(values, weights, [0.5])
    half = np.bincount(prompts, weights * (values <= median), minlength=len(total))
    share = half.sum() / total.sum()
    scatter = _cluster_variance(half, total, share) * total.sum() / max(share * (1 - share), 1e-9)
    handed_over_together = (weights**2).sum() / weights.sum()
    design_effect = max(handed_over_together, np.nan_to_num(scatter))
    return shares, *proportion_interval(below, total, design_effect=design_effect)


def quantile_interval(
    values: np.ndarray, weights: np.ndarray, prompts: np.ndarray, share: float
) -> Interval:
    """Interval of one quantile: the values at which the distribution may reach `share`.

    Woodruff (1952), *Confidence Intervals for Medians and Other Position Measures*. An end that
    the data do not bound is NaN: ten prompts may never have shown the slowest twentieth.
    """
    if len(values) == 0:
        return np.nan, np.nan
    grid = np.unique(values)
    _, low, high = distribution(values, weights, prompts, grid)
    may_reach, must_have_reached = grid[high >= share], grid[low >= share]
    return tuple(
        float(reached.min(initial=np.inf)) if len(reached) else np.nan
        for reached in (may_reach, must_have_reached)
    )


def _cluster_variance(successes: np.ndarray, trials: np.ndarray, share: ArrayLike) -> np.ndarray:
    """The jackknife's variance of a share of totals over prompts (`[..., prompts]`).

    Without the factor (n − 1)/n: simulated, ten prompts of unequal length cover too little with it.
    """
    errors = successes - np.asarray(share)[..., None] * trials
    others = trials.sum(axis=-1)[..., None] - trials
    return (np.asarray(ratio(errors, others)) ** 2).sum(axis=-1)


def _degrees(weights: np.ndarray) -> np.ndarray:
    """Degrees of freedom: prompts of equal weight that there are (Kish 1965), less one."""
    equal = np.asarray(ratio(weights.sum(axis=-1) ** 2, (weights**2).sum(axis=-1)))
    return np.maximum(equal - 1, 1)


def _t(level: float, degrees: ArrayLike) -> np.ndarray:
    return stdtrit(degrees, (1 + level) / 2)
