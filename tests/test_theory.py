"""The formulas of speculative decoding, against their limits, each other, and a simulation."""

import numpy as np
import pytest

from specdec.analysis import theory


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_tokens_per_round_is_the_geometric_formula(alpha, k):
    assert theory.tokens_per_round(alpha, k) == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha))


def test_tokens_per_round_at_the_ends_needs_no_limit():
    assert theory.tokens_per_round(0.0, 4) == 1
    assert theory.tokens_per_round(1.0, 4) == 5
    np.testing.assert_allclose(
        theory.tokens_per_round(np.array([[0.0, 0.5, 1.0]]), 2), [[1, 1.75, 3]]
    )


def test_tokens_per_round_is_the_mean_of_the_exact_distribution():
    alpha, k = 0.7, 4
    chances = [alpha**n * (1 - alpha if n < k else 1) for n in range(k + 1)]
    assert sum(chances) == pytest.approx(1)
    mean = sum((n + 1) * chance for n, chance in enumerate(chances))
    assert theory.tokens_per_round(alpha, k) == pytest.approx(mean)


@pytest.mark.parametrize("k, tau", [(2, 47 / 16), (4, 47 / 10), (8, 47 / 6)])
def test_a_budget_cuts_the_last_round_short(k, tau):
    """All accepted, 47 tokens behind the first: 2.94 and 4.70 tokens a round, not 3 and 5."""
    assert theory.tokens_per_round_within(1.0, k, [47]) == pytest.approx(tau)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_a_long_text_hardly_knows_its_budget(alpha):
    long = theory.tokens_per_round_within(alpha, 4, [20_000])
    assert long == pytest.approx(theory.tokens_per_round(alpha, 4), rel=1e-3)


def test_rounds_within_budgets_are_those_of_a_simulation():
    rng = np.random.default_rng(0)
    alpha, k, budgets = 0.75, 8, [5, 11, 47]
    rounds = 0
    for _ in range(4000):
        for budget in budgets:
            left = budget
            while left > 0:
                left -= min(rng.geometric(1 - alpha) - 1, k) + 1
                rounds += 1
    simulated = 4000 * sum(budgets) / rounds
    assert theory.tokens_per_round_within(alpha, k, budgets) == pytest.approx(simulated, rel=0.01)


def test_without_a_token_there_is_no_tau():
    assert np.isnan(theory.tokens_per_round_within(0.5, 4, [0, 0]))
    assert np.isnan(theory.tokens_per_round_within(float("nan"), 4, [47]))


def test_speedup_without_overhead_is_theorem_3_8_of_leviathan():
    alpha, k, c = 0.8, 5, 0.05
    expected = (1 - alpha ** (k + 1)) / ((1 - alpha) * (c * k + 1))
    assert theory.speedup(theory.tokens_per_round(alpha, k), k, c) == pytest.approx(expected)


def test_speedup_counts_overhead_of_both_sides():
    assert theory.speedup(3.0, 4, c=0.1, v=1.3, h=0.1, h0=0.2) == pytest.approx(3 * 1.2 / 1.8)


def test_with_one_draft_token_and_no_overhead_alpha_breaks_even_at_the_cost_ratio():
    assert theory.break_even_alpha(1, c=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_at_the_break_even_alpha_the_speedup_is_one(k):
    costs = {"c": 0.15, "v": 1.4, "h": 0.1, "h0": 0.03}
    alpha = theory.break_even_alpha(k, **costs)
    assert 0 < alpha < 1
    assert theory.speedup(theory.tokens_per_round(alpha, k), k, **costs) == pytest.approx(1)


def test_no_acceptance_rate_pays_where_a_draft_step_costs_more_than_a_target_step():
    assert np.isnan(theory.break_even_alpha(4, c=1.1))


def test_a_draft_that_costs_nothing_never_loses():
    assert theory.break_even_alpha(4, c=0.0) == 0


def test_break_even_of_costs_that_were_not_measured_is_unknown():
    assert np.isnan(theory.break_even_alpha(4, c=float("nan")))
