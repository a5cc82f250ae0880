"""Intervals: that they cover what they promise, and hold where there is little to go on."""

import numpy as np
import pytest
from scipy.stats import t

from specdec.analysis.statistics import bootstrap_interval, ratio, wilson_interval


def mean_of(totals: np.ndarray) -> np.ndarray:
    return totals[0] / totals[1]


def with_ones(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=1)


def test_the_interval_of_a_mean_is_the_one_of_students_t():
    size = 200
    values = np.random.default_rng(1).normal(10, 2, size=size)
    low, high = bootstrap_interval([with_ones(values)], mean_of)
    half = t.ppf(0.975, size - 1) * values.std(ddof=1) / np.sqrt(size)
    assert (high - low) / 2 == pytest.approx(half, rel=0.04)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.05 * half)


@pytest.mark.slow
def test_ninety_five_percent_intervals_cover_ninety_five_percent_at_ten_prompts():
    """The plain percentile interval covers about 90 % here."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        low, high = bootstrap_interval([with_ones(rng.normal(size=10))], mean_of, draws=2000)
        covered += low <= 0 <= high
    assert 0.94 <= covered / 1000 <= 0.97


def test_pairs_stay_pairs_so_that_what_both_share_does_not_widen_the_interval():
    shared = np.exp(np.random.default_rng(3).normal(size=30))
    ours, theirs = shared[:, None], 2 * shared[:, None]
    paired = bootstrap_interval([np.hstack([theirs, ours])], lambda totals: totals[0] / totals[1])
    apart = bootstrap_interval([theirs, ours], lambda one, other: one[0] / other[0])
    assert paired == pytest.approx((2, 2))
    assert apart[0] < 1.5 and apart[1] > 2.5


def test_the_same_data_give_the_same_interval():
    values = np.random.default_rng(4).normal(size=(12, 2)) + 5
    assert bootstrap_interval([values], mean_of) == bootstrap_interval([values], mean_of)


def test_one_prompt_gives_no_interval():
    assert np.isnan(bootstrap_interval([np.ones((1, 2))], mean_of)).all()
    assert np.isnan(bootstrap_interval([np.ones((0, 2))], mean_of)).all()


def test_draws_without_a_denominator_are_left_out():
    sample = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert bootstrap_interval([sample], lambda totals: ratio(*totals)) == pytest.approx((1, 1))
    nothing = np.zeros((3, 2))
    assert np.isnan(bootstrap_interval([nothing], lambda totals: ratio(*totals))).all()


def test_a_statistic_of_several_values_gives_an_interval_for_each():
    sample = np.random.default_rng(5).random((20, 3))
    low, high = bootstrap_interval([sample], lambda totals: totals / totals[-1])
    assert low.shape == high.shape == (3,)
    assert (low <= high).all() and low[-1] == high[-1] == 1


def test_wilson_is_the_score_interval():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson_interval(30, 100)
    assert abs(0.3 - low) / np.sqrt(low * (1 - low) / 100) == pytest.approx(1.96, abs=1e-3)
    assert abs(0.3 - high) / np.sqrt(high * (1 - high) / 100) == pytest.approx(1.96, abs=1e-3)


def test_without_trials_there_is_no_wilson_interval():
    assert np.isnan(wilson_interval(0, 0)).all()


def test_a_ratio_to_nothing_is_unknown():
    assert np.isnan(ratio(1, 0))
    np.testing.assert_array_equal(ratio(np.array([1.0, 2.0]), np.array([0.0, 4.0])), [np.nan, 0.5])
