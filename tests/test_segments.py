"""A traced pass cut at its layers: the same numbers, and layers alike are one piece of code."""

from __future__ import annotations

import pytest
import torch

from specdec.engine import compiler, segments
from specdec.engine.pieces import Decision, ModelPass
from specdec.engine.segments import cut
from specdec.kernels.build import load_operators
from specdec.kernels.graft import graft
from specdec.method.sampling import Greedy, Sampling
from specdec.models.cache import FixedCache, GrowingCache
from specdec.utils.cache import cache_folder
from tests.checks import needs_compiler
from tests.tiny import make_model

LAYERS, VOCABULARY, SLOTS = 12, 384, 64


def arguments(model, rows: int) -> tuple:
    cache = GrowingCache()
    with torch.no_grad():
        model(torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)
    fixed = FixedCache(cache, SLOTS)
    fixed.fill(cache)
    return torch.arange(rows) + 10, torch.tensor(2), fixed.first(SLOTS)


def dynamic() -> tuple:
    rows, slots = (torch.export.Dim(name, min=0, max=2**24) for name in ("rows", "slots"))
    return {0: rows}, None, [{0: slots}] * (2 * LAYERS)


def trace(model, taps: tuple[int, ...] = ()) -> torch.export.ExportedProgram:
    module = ModelPass(model, VOCABULARY, taps)
    with torch.no_grad():
        return torch.export.export(
            module,
            arguments(model, 5),
            dynamic_shapes=dynamic(),
            strict=False,
            # Else torch 2.11 asks for a proof where keys are repeated for the queries' heads.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


@pytest.fixture(scope="module", params=["gpt2", "llama", "neox"])
def traced(request):
    """A model, and its pass."""
    model = make_model(request.param, VOCABULARY, layers=LAYERS).eval().requires_grad_(False)
    return model, trace(model)


def run(program, given: tuple) -> list[torch.Tensor]:
    """What the segments give, one after the other, without a compiler."""
    signature = program.graph_signature
    flat = [*given[:2], *given[2]]
    values = dict(zip(signature.user_inputs, flat, strict=True))
    held = {**program.state_dict, **program.constants}
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        values |= {name: held[of] for name, of in names.items()}
    for segment in cut(program):
        outputs = segment.module(*(values[node.name] for node in segment.inputs))
        values |= {node.name: out for node, out in zip(segment.outputs, outputs, strict=True)}
    return [values[name] for name in signature.user_outputs]


def check_segments(model, program, taps: tuple[int, ...] = ()) -> None:
    for rows in (1, 2, 3, 7):
        ours, whole = arguments(model, rows), arguments(model, rows)
        with torch.no_grad():
            expected = ModelPass(model, VOCABULARY, taps)(*whole)
            assert len(expected) == 2 + len(taps)
            for got, right in zip(run(program, ours), expected, strict=True):
                torch.testing.assert_close(got, right)
        for mine, theirs in zip(ours[2], whole[2], strict=True):  # keys and values were written
            torch.testing.assert_close(mine, theirs)


def test_segments_give_what_the_whole_gives(traced):
    check_segments(*traced)


def test_segments_give_the_hidden_states_that_are_asked_for():
    model = make_model("llama", VOCABULARY, layers=LAYERS).eval().requires_grad_(False)
    taps = (0, 3, LAYERS)  # the third layer is in the middle of a segment
    check_segments(model, trace(model, taps), taps)


def test_layers_alike_are_one_piece_of_code(traced, monkeypatch):
    _, program = traced
    found = [segment.text() for segment in cut(program)]
    # Before the layers, two at a time, behind them.
    assert len(found) == 1 + LAYERS // 2 + 1 and len(set(found)) == 3
    monkeypatch.setattr(segments, "FEW_LAYERS", LAYERS)  # these are compiled at once
    assert len(cut(program)) == 1


def test_a_layer_that_does_something_else_is_compiled_apart():
    model = make_model("llama", VOCABULARY, layers=LAYERS)
    model.model.layers[5].input_layernorm.variance_epsilon = 0.1
    assert len({segment.text() for segment in cut(trace(model))}) == 4


@pytest.mark.parametrize(("layers", "together"), [(9, 1), (20, 2), (30, 3), (31, 31), (32, 4)])
def test_many_layers_go_together_evenly(layers, together):
    assert segments._group(layers) == together


def test_a_decision_is_one_segment():
    k = torch.export.Dim("k", min=0, max=2**24)
    example = (
        torch.randn(4, VOCABULARY), torch.arange(4), torch.tensor(0), torch.zeros(6).long(),
        torch.tensor([9] + [-1] * 8), torch.zeros(1), torch.ones((), dtype=torch.float64),
    )  # fmt: skip
    sizes = {0: k + 1}, {0: k + 1}, None, None, None, None, None
    program = torch.export.export(
        Decision(Sampling(Greedy)), example, dynamic_shapes=sizes, strict=False
    )
    assert len(cut(program)) == 1


@needs_compiler
def test_layers_that_read_the_same_input_are_one_product():
    """Queries, keys and values; what the MLP's gate and its values are made of."""
    load_operators(cache_folder())
    model = make_model("llama", VOCABULARY, layers=LAYERS).eval().requires_grad_(False)
    held = sum(weight.nbytes for weight in model.parameters())
    with graft(model, to_trace=True):
        module = ModelPass(model, VOCABULARY)
        program = compiler.trace(module, arguments(model, 5), dynamic())
    products = [
        node for node in program.graph.nodes if node.target is torch.ops.specdec.linear.default
    ]
    assert len(products) == 4 * LAYERS + 1
    storages = {weight.untyped_storage() for weight in model.parameters()}
    assert sum(storage.nbytes() for storage in storages) == held  # no copy is kept


@needs_compiler
@pytest.mark.slow
def test_compiled_segments_give_what_the_model_gives(monkeypatch, tmp_path):
    """With our kernels, at every number of rows; a model with other weights finds all packages."""
    load_operators(cache_folder())  # built once, not in this folder again
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    for seed in (0, 1):
        model = make_model("llama", VOCABULARY, layers=LAYERS, seed=seed)
        model.eval().requires_grad_(False)
        module = ModelPass(model, VOCABULARY)
        with graft(model):
            compiled = compiler.compile_ahead(module, arguments(model, 5), dynamic(), {})
            for rows in (1, 2, 5, 9):
                with torch.no_grad():
                    expected = module(*arguments(model, rows))
                for got, right in zip(compiled(*arguments(model, rows)), expected, strict=True):
                    torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-3)
        assert len(list(tmp_path.glob("Segment-*.pt2"))) == 3
