"""What temperature, top-k and top-p leave of a distribution, against transformers' own warpers."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from specdec.engine.compiler import compile_ahead
from specdec.engine.pieces import DraftChoice
from specdec.kernels.build import load_operators
from specdec.method.noise import uniform_table
from specdec.method.sampling import (
    Warp,
    choose_sampling,
    least_of_mass,
    make_noise,
)
from specdec.utils.cache import cache_folder
from tests.checks import needs_compiler
from tests.distribution import warped
from tests.fake_cuda import fake_cuda


def least_by_kernel(probabilities, mass):
    load_operators(cache_folder())
    return torch.ops.specdec.least_of_mass(probabilities, mass)


WAYS = [least_of_mass, pytest.param(least_by_kernel, marks=needs_compiler)]


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


@pytest.mark.parametrize(
    ("least_of_mass", "dtype"),
    [
        (least_of_mass, torch.float32),
        (least_of_mass, torch.float64),
        pytest.param(least_by_kernel, torch.float32, marks=needs_compiler),
    ],
)
def test_the_least_of_a_mass_is_one_of_the_probabilities(least_of_mass, dtype):
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.0, 0.0, 1.0, 0.0]], dtype=dtype)
    for mass, first in [(0.4, 0.5), (0.5, 0.5), (0.51, 0.25), (0.75, 0.25), (0.8, 0.125)]:
        assert least_of_mass(probabilities, mass).tolist() == [[first], [1.0]]


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [1, 5, 37, 4096])
@needs_compiler
def test_both_ways_find_the_same(size, mass):
    # Whole parts of 2^20, whose sums are exact in any order.
    parts = torch.randint(1, 2**7, (7, size), generator=torch.manual_seed(size)).float() / 2**20
    probabilities = torch.cat([1 - parts.sum(-1, keepdim=True), parts], dim=-1)
    assert torch.equal(least_by_kernel(probabilities, mass), least_of_mass(probabilities, mass))


@pytest.mark.parametrize("method", ["rejection", "coupled"])
def test_compiled_for_a_gpu_the_warp_sorts_once_and_gives_the_references_tokens(
    method, monkeypatch
):
    """The pieces are traced for a GPU that isn't there, and what was traced runs on the CPU."""
    sampling = choose_sampling(Warp(0.8, top_p=0.9), method)
    size, rows = 300, 4
    logits = torch.randn(rows, size, generator=torch.manual_seed(0)) * 3
    noise = make_noise(sampling, 5, 16, "cpu")
    temperature = torch.tensor(0.8, dtype=torch.float64)
    given = logits, torch.tensor(2), noise, temperature
    choice = DraftChoice(sampling, size, size)
    expected = choice(*given)  # by the eager reference
    with fake_cuda():
        there = [torch.empty(t.shape, dtype=t.dtype, device="cuda:0") for t in given]
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        traced = make_fx(choice)(*there)
    names = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith("sort") for name in names) == 1
    assert sum(name.startswith("sum") for name in names) < 5  # bit by bit it would be 30 in a row
    for node in traced.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = node.kwargs | {"device": torch.device("cpu")}
    traced.recompile()
    for ours, theirs in zip(traced(*given), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_ties_of_the_last_token_are_kept():
    logits = torch.tensor([0.5, 0.125, 0.125, 0.125, 0.125]).log()
    assert (Warp(1.0, top_p=0.55)(logits) > 0).all()
    assert (Warp(1.0, top_p=0.5)(logits) > 0).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("least_of_mass", WAYS)
def test_more_mass_than_rounding_leaves_keeps_every_token(least_of_mass):
    probabilities = torch.full((1, 3), 0.3)
    assert least_of_mass(probabilities, 0.95).item() == 0


BFLOAT16 = torch.linspace(-9, 9, 4096).view(64, 64).T.reshape(1, -1).bfloat16()  # [1, V]


def chosen_from(choice, settings):
    """q of a compiled round's `DraftChoice`, or of what was compiled of it."""
    temperature = torch.tensor(settings["temperature"], dtype=torch.float64)
    noise = uniform_table(0, 64, "cpu")
    return choice(BFLOAT16, torch.tensor(0), noise, temperature)[1]


HALF = [dict(temperature=0.7), dict(temperature=1.3, top_k=50), dict(temperature=0.7, top_p=0.8)]


@pytest.mark.parametrize("settings", HALF, ids=str)
def test_half_precision_logits_are_widened_before_anything_else_in_every_engine(settings):
    warp = Warp(**settings)
    exact = Warp(**settings)(BFLOAT16.float())
    assert torch.equal(warp(BFLOAT16), exact)
    sampling = choose_sampling(warp, "rejection")
    eager = sampling.sampler(torch.tensor(warp.temperature), uniform_table(0, 8, "cpu"))
    assert torch.equal(eager.propose(BFLOAT16[0], 0)[1], exact[0])
    choice = DraftChoice(sampling, BFLOAT16.shape[1], BFLOAT16.shape[1])
    assert torch.equal(chosen_from(choice, settings), exact)
    narrow = (BFLOAT16 / warp.temperature).float().softmax(-1)  # as the mistake would have it
    if len(settings) == 1:
        assert (narrow - exact).abs().sum() > 0.01


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("settings", HALF, ids=str)
def test_so_are_they_in_compiled_code(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    sampling = choose_sampling(Warp(**settings), "rejection")
    choice = DraftChoice(sampling, BFLOAT16.shape[1], BFLOAT16.shape[1])
    number, one = torch.tensor(0), torch.ones((), dtype=torch.float64)
    example = (BFLOAT16, number, uniform_table(0, 64, "cpu"), one)
    compiled = compile_ahead(choice, example, (None, None, None, None), {})
    exact = Warp(**settings)(BFLOAT16)
    torch.testing.assert_close(chosen_from(compiled, settings), exact, rtol=1e-5, atol=0)
