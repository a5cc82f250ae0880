"""Intervals: that they cover what they promise, and hold where there is little to go on."""

import numpy as np
import pytest
from scipy.stats import binomtest, t

from benchmarks import coverage
from specdec.analysis.statistics import (
    acceptance_interval,
    distribution,
    estimate,
    jackknife_interval,
    proportion_interval,
    quantile_interval,
    quantiles,
    ratio,
)


def mean_of(totals: np.ndarray) -> np.ndarray:
    return totals[1] / totals[0]


def with_ones(values: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(values), values], axis=-1)


# The jackknife


def test_the_interval_of_a_mean_is_the_one_of_students_t():
    values = np.random.default_rng(1).normal(10, 2, size=20)
    low, high = jackknife_interval(with_ones(values), mean_of, log=False)
    half = t.ppf(0.975, 19) * values.std(ddof=1) / np.sqrt(20)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_the_interval_of_a_ratio_is_as_wide_up_as_down_in_factors():
    rng = np.random.default_rng(2)
    values = rng.lognormal(size=8)
    value, low, high = estimate(lambda arm: arm["b"] / arm["a"], {"a": np.ones(8), "b": values})
    assert value / low == pytest.approx(high / value) and low > 0


def test_pairs_stay_pairs_so_that_what_both_share_does_not_widen_the_interval():
    shared = np.exp(np.random.default_rng(3).normal(size=30))
    found = estimate(lambda one, other: one["s"] / other["s"], {"s": 2 * shared}, {"s": shared})
    assert found == pytest.approx((2, 2, 2))


def test_one_long_text_among_short_ones_widens_the_interval():
    """Its ten prompts say little more than two: t of their number promised too much."""
    values = np.random.default_rng(4).normal(10, 1, size=10)
    lengths = np.where(np.arange(10) == 0, 50.0, 1.0)
    ends = []
    for weights in (lengths, np.full(10, lengths.mean())):
        rows = np.stack([weights, weights * values], axis=-1)
        low, high = jackknife_interval(rows, mean_of)
        ends.append(np.log(high / low))
    assert ends[0] > 2 * ends[1]


def test_one_prompt_gives_no_interval():
    for rows in (np.ones((1, 2)), np.ones((0, 2)), np.array([[1.0, 1.0], [0.0, 0.0]])):
        assert np.isnan(jackknife_interval(rows, lambda totals: ratio(totals[1], totals[0]))).all()


def test_prompts_that_gave_nothing_change_nothing():
    rows = with_ones(np.array([1.0, 2.0, 4.0]))
    padded = np.vstack([rows, np.zeros((5, 2))])
    ends = [jackknife_interval(x, mean_of) for x in (rows, padded)]
    assert ends[1][0] == pytest.approx(ends[0][0], rel=0.05)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=0.05)


def test_many_studies_at_once_give_the_intervals_of_each():
    rows = np.random.default_rng(5).lognormal(size=(4, 6, 2))
    low, high = jackknife_interval(rows, mean_of)
    for i in range(4):
        assert (low[i], high[i]) == pytest.approx(jackknife_interval(rows[i], mean_of))


# Shares


def test_with_many_equal_prompts_the_interval_of_a_share_is_wilsons():
    accepted = np.tile([0, 1], 5000)
    low, high = proportion_interval(accepted, np.ones(10_000))
    exact = binomtest(5000, 10_000).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-4)


def test_prompts_that_differ_widen_the_interval_of_a_share():
    alike, apart = np.full(10, 30), np.where(np.arange(10) % 2, 60, 0)
    widths = [np.subtract(*proportion_interval(x, np.full(10, 60))[::-1]) for x in (alike, apart)]
    assert widths[1] > 3 * widths[0]


@pytest.mark.parametrize("share", [0, 1])
def test_where_all_or_none_was_accepted_the_interval_is_no_point(share):
    """[1, 1] held the truth 44 times in 100 at α = 0.988 and three prompts."""
    low, high = acceptance_interval(np.full(3, 46 * share), np.full(3, 46), K=4)
    assert high - low > 0.05 and share in (low, high)


def test_the_interval_of_a_share_stays_within_zero_and_one():
    low, high = proportion_interval([0, 9, 10], [10, 10, 10])
    assert 0 <= low < high <= 1


def test_a_share_of_one_prompt_or_none_has_no_interval():
    for trials in ([5], [], [5, 0]):
        assert np.isnan(proportion_interval(np.zeros(len(trials)), trials)).all()


# Quantiles and distributions


def test_a_quantile_counts_each_value_by_its_weight():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])
    assert quantiles(values, weights, [0, 0.5, 0.51, 0.75, 1]).tolist() == [1, 1, 2, 2, 3]


def test_a_quantile_is_the_inverse_of_the_distribution():
    """Tables interpolated where figures did not: 176 against 192 ms."""
    values = np.random.default_rng(6).lognormal(size=37)
    (p95,) = quantiles(values, np.ones(37), [0.95])
    assert p95 == np.percentile(values, 95, method="inverted_cdf")
    prompts = np.arange(37) % 5
    shares, low, high = distribution(values, np.ones(37), prompts, np.sort(values))
    assert p95 == np.sort(values)[shares >= 0.95][0]
    assert (low <= shares).all() and (shares <= high).all()


def test_five_copies_of_a_prompt_do_not_count_as_five():
    rng = np.random.default_rng(7)
    once = rng.lognormal(size=(10, 20))
    prompts = np.repeat(np.arange(10), 20)
    grid = np.array([1.0])
    alone = distribution(once.ravel(), np.ones(200), prompts, grid)
    copies = distribution(np.tile(once.ravel(), 5), np.ones(1000), np.tile(prompts, 5), grid)
    assert (copies[2] - copies[1])[0] > 0.8 * (alone[2] - alone[1])[0]


def test_a_quantile_lies_in_its_interval_which_few_prompts_leave_open_above():
    rng = np.random.default_rng(8)
    values, prompts = rng.lognormal(size=400), np.repeat(np.arange(20), 20)
    (p50,) = quantiles(values, np.ones(400), [0.5])
    low, high = quantile_interval(values, np.ones(400), prompts, 0.5)
    assert low < p50 < high
    low, high = quantile_interval(values[:60], np.ones(60), prompts[:60], 0.95)
    assert low > 0 and np.isnan(high)


def test_no_values_have_no_quantile():
    nothing = np.empty(0)
    assert np.isnan(quantiles(nothing, nothing, [0.5])).all()
    assert np.isnan(quantile_interval(nothing, nothing, nothing.astype(int), 0.5)).all()


# Coverage: a small version of benchmarks/coverage.py


@pytest.mark.parametrize("kind", coverage.KINDS)
@pytest.mark.parametrize("n", [3, 10])
def test_intervals_of_speedups_hold_the_truth(kind, n):
    """The percentile bootstrap held it 70 to 76 times in 100 at three prompts."""
    for figure in ("S", "τ", "c", "v", "h"):
        held = coverage.coverage(figure, coverage.KINDS[kind], n, 600)
        assert held >= 0.91, figure


@pytest.mark.parametrize("alpha", [0.3, 0.8, 0.99, 1.0])
def test_intervals_of_acceptance_hold_the_truth(alpha):
    for K in (1, 4):
        kind = coverage.acceptance(alpha, K)
        for n in (3, 10):
            assert coverage.coverage("α", kind, n, 600) >= 0.91, (K, n)


def test_the_interval_of_the_best_of_several_k_holds_where_a_single_ones_does_not():
    held = coverage.best_of_equal(10, 300)
    assert held["single"] < 0.9 < 0.93 <= held["chosen"]
    assert held["bias"] > 0.02


def test_a_ratio_to_nothing_is_unknown():
    assert np.isnan(ratio(1, 0))
    np.testing.assert_array_equal(ratio(np.array([1.0, 2.0]), np.array([0.0, 4.0])), [np.nan, 0.5])
