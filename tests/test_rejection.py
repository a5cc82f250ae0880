"""The acceptance rule, enumerated exactly: every draft, every accept pattern, every budget."""

from __future__ import annotations

import pytest
import torch

from specdec.certification.rule import TOLERANCE, random_rows, worst_error
from specdec.method import rule as rejection
from specdec.method.noise import invert


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("vocab_size", "k"), [(2, 1), (2, 2), (2, 4), (3, 1), (3, 2), (3, 3), (5, 1)]
)
def test_a_round_emits_the_targets_distribution_exactly(vocab_size, k, zeros):
    assert worst_error(vocab_size, k, budget=k + 1, zeros=zeros) <= TOLERANCE


@pytest.mark.slow
def test_a_round_of_four_draft_tokens_over_three_words_is_exact():
    assert worst_error(3, 4, budget=5) <= TOLERANCE


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_round_cut_by_the_budget_emits_the_targets_distribution_exactly(budget):
    assert worst_error(3, 3, budget) <= TOLERANCE


def no_residual_in_late_positions(p, q, count):
    weights = next_distribution(p, q, count)
    return torch.where(count > 0, p[int(count)], weights)


next_distribution = rejection.next_distribution


def test_the_enumeration_catches_a_residual_that_is_missing_in_late_positions(monkeypatch):
    monkeypatch.setattr(rejection, "next_distribution", no_residual_in_late_positions)
    assert worst_error(3, 2, budget=3) > 1e-3


def test_the_enumeration_catches_a_budget_that_is_not_masked(monkeypatch):
    # A proposal past the budget has q = 0, and u·0 ≤ p would keep it.
    accepted_count = rejection.accepted_count
    everything = torch.ones(3, dtype=torch.bool)
    monkeypatch.setattr(
        rejection,
        "accepted_count",
        lambda p, q, x, u, valid: accepted_count(p, q, x, u, everything),
    )
    assert worst_error(3, 3, budget=2) > TOLERANCE


def test_a_token_the_target_cannot_emit_is_never_kept_however_small_the_uniform():
    p = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    tokens, valid = torch.tensor([0]), torch.tensor([True])
    smallest = torch.tensor([2.0**-53], dtype=torch.float64)
    assert rejection.accepted_count(p, q, tokens, smallest, valid) == 0


def test_equal_distributions_keep_everything_even_at_a_uniform_of_one():
    p = random_rows(torch.Generator().manual_seed(3), 5, 7)
    tokens, valid = torch.tensor([0, 3, 6, 2]), torch.ones(4, dtype=torch.bool)
    ones = torch.ones(4, dtype=torch.float64)
    assert rejection.accepted_count(p, p[:4], tokens, ones, valid) == 4


def test_where_the_residual_vanishes_the_targets_distribution_is_used():
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    weights = rejection.next_distribution(p, p[:1], torch.tensor(0))
    assert torch.equal(weights, p[0])


def test_the_bonus_token_is_drawn_from_the_last_row_of_the_target():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    count, token = rejection.reject(
        p,
        p[:1],
        torch.tensor([0]),
        torch.tensor([0.7], dtype=torch.float64),
        torch.tensor([0.3, 0.3], dtype=torch.float64),
        torch.tensor([True]),
    )
    assert (int(count), int(token)) == (1, 1)


def test_matching_keeps_tokens_up_to_the_first_that_differs():
    chosen, valid = torch.tensor([4, 5, 6, 7]), torch.ones(3, dtype=torch.bool)
    for tokens, expected in [([4, 5, 6], (3, 7)), ([4, 9, 6], (1, 5)), ([9, 5, 6], (0, 4))]:
        count, token = rejection.match(chosen, torch.tensor(tokens), valid)
        assert (int(count), int(token)) == expected


def test_matching_never_keeps_a_token_past_the_budget():
    chosen = torch.tensor([4, 5, 6, 7])
    count, token = rejection.match(chosen, chosen[:3], torch.tensor([True, False, False]))
    assert (int(count), int(token)) == (1, 5)


def test_inversion_maps_intervals_of_the_uniform_to_tokens_exactly():
    weights = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    below = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0).double())
    for uniform, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (below, 4)]:
        assert invert(weights, torch.as_tensor(uniform, dtype=torch.float64)) == token


def test_inversion_never_gives_a_token_of_no_weight_at_the_edge_of_rounding():
    weights = torch.tensor([0.1] * 7 + [0.0], dtype=torch.float32)
    largest = torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    assert invert(weights, largest) == 6
