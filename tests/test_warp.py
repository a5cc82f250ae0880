"""What temperature, top-k and top-p leave of a distribution, against transformers' own warpers."""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.sampling import Warp, least_by_bits, least_by_sorting
from tests.distribution import warped

WAYS = [least_by_bits, least_by_sorting]


@pytest.mark.parametrize("size", [5, 64, 4096])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.6, 0), (1.5, 3)])
def test_the_warp_is_that_of_transformers(size, top_p, temperature, top_k):
    logits = torch.randn(7, size, dtype=torch.float64, generator=torch.manual_seed(size)) * 3
    ours = Warp(temperature, top_k, top_p)(logits)
    theirs = warped(logits, temperature, top_k, top_p)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
    # In float32 the sum may fall on the other side of `top_p`, by one token of the tail.
    single = Warp(temperature, top_k, top_p)(logits.float()).double()
    torch.testing.assert_close(single, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("least_of_mass", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_of_a_mass_is_one_of_the_probabilities(dtype, least_of_mass):
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.0, 0.0, 1.0, 0.0]], dtype=dtype)
    for mass, first in [(0.4, 0.5), (0.5, 0.5), (0.51, 0.25), (0.75, 0.25), (0.8, 0.125)]:
        assert least_of_mass(probabilities, mass).tolist() == [[first], [1.0]]


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [1, 5, 4096])
def test_both_ways_find_the_same(size, mass):
    logits = torch.randn(7, size, dtype=torch.float64, generator=torch.manual_seed(size)) * 3
    probabilities = logits.softmax(-1)
    assert torch.equal(least_by_bits(probabilities, mass), least_by_sorting(probabilities, mass))


def test_ties_of_the_last_token_are_kept():
    logits = torch.tensor([0.5, 0.125, 0.125, 0.125, 0.125]).log()
    assert (Warp(1.0, top_p=0.55)(logits) > 0).all()
    assert (Warp(1.0, top_p=0.5)(logits) > 0).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("least_of_mass", WAYS)
def test_more_mass_than_rounding_leaves_keeps_every_token(least_of_mass):
    probabilities = torch.full((1, 3), 0.3)
    assert least_of_mass(probabilities, 0.95).item() == 0
