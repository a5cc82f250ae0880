"""4-bit models: what is quantised and what is not, what they hold, and that they decode."""

import importlib.util
import logging

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.loaded_pair import load_pair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine import fast_model as fast
from specdec.engine.fast_model import fast_model
from specdec.engine.session import FastSession
from specdec.kernels.graft import graft
from specdec.models.loading.loader import load_model
from specdec.models.shared_weights import share_weights
from specdec.models.wrapper import ModelWrapper
from tests.checks import needs_compiler
from tests.tiny import make_model, make_tokenizer, wrap

needs_bitsandbytes = pytest.mark.skipif(
    not (importlib.util.find_spec("bitsandbytes") and importlib.util.find_spec("accelerate")),
    reason="needs the extra `gpu` (bitsandbytes, accelerate)",
)
pytestmark = needs_bitsandbytes

PROMPT = "def add(a, b):\n"


@pytest.fixture(scope="module")
def micro():
    """`micro`'s target in 4 bits, and in full."""
    return load_pair("micro_int4", device="cpu")


def layers_in_4bit(model) -> dict:
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}


class TestMicro:
    def test_every_projection_of_a_gpt2_is_in_nf4_with_double_quantisation(self, micro):
        # GPT-2 stores its projections as Conv1D, which are turned before they are quantised.
        layers = layers_in_4bit(micro.draft.model)
        assert len(layers) == 4 * micro.draft.model.config.n_layer
        for layer in layers.values():
            state = layer.weight.quant_state
            assert layer.weight.dtype == torch.uint8
            assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)

    def test_it_is_the_same_model_but_for_rounding(self, micro):
        draft, target = micro
        ids = torch.tensor([target.tokenizer(PROMPT).input_ids])
        rough, exact = draft.forward(ids)[0], target.forward(ids)[0]
        assert torch.corrcoef(torch.stack([rough.flatten(), exact.flatten()]))[0, 1] > 0.98
        assert not torch.equal(rough, exact)

    def test_passes_neither_undo_the_double_quantisation_nor_change_the_compute_dtype(self, micro):
        draft, _ = micro
        before = draft.memory_footprint_mb
        ids = torch.tensor([draft.tokenizer(PROMPT).input_ids])
        draft.forward(ids)
        assert draft.memory_footprint_mb == before
        for layer in layers_in_4bit(draft.model).values():
            assert layer.weight.quant_state.nested
            x = torch.randn(3, layer.in_features)
            weight = dequantised(layer)
            expected = x.double() @ weight.double().T + layer.bias.double()
            # bfloat16 would be off by some 1e-2.
            torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)

    def test_greedy_output_is_the_targets(self, micro):
        draft, target = micro
        ids = target.tokenizer(PROMPT).input_ids
        alone = AutoregressiveDecoder(target).generate(ids, 24, eos_token_id=None)
        both = SpeculativeDecoder(draft, target, 4).generate(ids, 24, eos_token_id=None)
        assert both.generated_ids == alone.generated_ids
        assert both.acceptance_rate > 0.5

    def test_as_a_draft_it_runs_in_compiled_rounds(self, micro, uncompiled):
        draft, target = micro
        ids = target.tokenizer(PROMPT).input_ids
        results = [
            SpeculativeDecoder(draft, target, 2, engine=engine).generate(ids, 12)
            for engine in ("eager", "compiled")
        ]
        assert results[0].generated_ids == results[1].generated_ids
        assert results[1].engine == "compiled" and results[1].engine_reason is None

    def test_a_draft_has_a_form_that_rounds_and_a_target_one_that_does_not(self, micro):
        draft, target = micro
        assert fast_model(draft, as_draft=True).rounds and not fast_model(draft).rounds
        assert fast_model(draft) is fast_model(draft)
        assert fast_model(target, as_draft=True) is fast_model(target)

    def test_coupled_samples_are_the_targets(self, micro):
        draft, target = micro
        ids = target.tokenizer(PROMPT).input_ids
        settings = dict(temperature=1.0, seed=4, eos_token_id=None)
        alone = AutoregressiveDecoder(target, coupled=True).generate(ids, 24, **settings)
        both = SpeculativeDecoder(draft, target, 4, coupled=True).generate(ids, 24, **settings)
        assert both.generated_ids == alone.generated_ids

    def test_a_4_bit_target_decodes_alone_and_behind_a_draft(self, micro):
        draft, target = micro
        ids = target.tokenizer(PROMPT).input_ids
        alone = AutoregressiveDecoder(draft).generate(ids, 16, eos_token_id=None)
        both = SpeculativeDecoder(target, draft, 4).generate(ids, 16, eos_token_id=None)
        assert both.generated_ids == alone.generated_ids


def compare_with_eager(wrapper) -> None:
    """Compiled, a 4-bit target is what it is eagerly, to rounding; a draft has rounded."""
    ids = torch.tensor([5, 9, 2, 7, 30, 8])
    exact = wrapper.forward(ids[None])[0][0, 3:]

    def read(as_draft: bool) -> torch.Tensor:
        model = fast_model(wrapper, as_draft)
        session = FastSession(model, model.take_cache(64))
        session.read(ids[:3], keep=1)
        return session.read(ids[3:], keep=3).logits

    size = exact.abs().max()
    assert (read(as_draft=False) - exact).abs().max() < 1e-4 * size
    assert 1e-3 * size < (read(as_draft=True) - exact).abs().max() < 0.3 * size


def in_4_bits(folder, seed: int = 0) -> ModelWrapper:
    """A tiny model of layers whose rows are whole blocks, in 4 bits."""
    tokenizer = make_tokenizer()
    shape = dict(hidden_size=64, intermediate_size=128)
    make_model("llama", len(tokenizer), seed=seed, **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model, _ = load_model(str(folder), "int4", device="cpu")
    return wrap(model, tokenizer)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_target_never_rounds_also_where_it_is_a_draft_elsewhere(tmp_path):
    """One 4-bit model is draft and target of a pair: its two compiled passes are not the same."""
    both = in_4_bits(tmp_path)
    decoder = SpeculativeDecoder(both, both, 2, engine="compiled")
    assert decoder.generate([5, 9, 2], 4).engine_reason is None
    compare_with_eager(both)
    layers = layers_in_4bit(both.model).values()
    assert not any("forward" in vars(layer) for layer in layers)
    assert all(layer.weight.quant_state for layer in layers)
    # What was compiled serves a model of the same shape and other weights, scales and offsets.
    compare_with_eager(in_4_bits(tmp_path, seed=5))


@needs_compiler
@pytest.mark.slow
def test_a_compiled_target_that_rounds_is_caught(tmp_path, monkeypatch):
    """A test of the test above, by an engine broken on purpose."""
    monkeypatch.setattr(
        fast, "graft", lambda model, may_round=False, to_trace=False: graft(model, True, to_trace)
    )
    with pytest.raises(AssertionError):
        compare_with_eager(in_4_bits(tmp_path))


def dequantised(layer) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.fixture
def saved(tmp_path):
    """A model with a head of its own, whose layers are no multiples of what kernels like."""
    tokenizer = make_tokenizer()
    settings = dict(hidden_size=48, intermediate_size=80)
    make_model("llama", len(tokenizer), **settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_what_stays_in_higher_precision_is_said(saved, caplog):
    with caplog.at_level(logging.INFO):
        load_model(str(saved), "int4", device="cpu")
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("int4")]
    assert line == (
        "int4: 14 layers in NF4, double quantisation, computing in float32; not quantised: "
        "model.embed_tokens (float32), lm_head (float32), norms and biases"
    )


def test_layers_of_any_shape_run(saved):
    model, tokenizer = load_model(str(saved), "int4", device="cpu")
    assert torch.isfinite(model(torch.tensor([tokenizer(PROMPT).input_ids])).logits).all()


def test_memory_counts_scales_and_tables_of_every_4_bit_layer(saved):
    model, tokenizer = load_model(str(saved), "int4", device="cpu")
    wrapper = ModelWrapper(model, tokenizer, "cpu")
    layers = layers_in_4bit(model).values()
    bare = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    blocks = [-(-layer.in_features * layer.out_features // 64) for layer in layers]
    scales = sum(n + 4 * -(-n // 256) for n in blocks)  # 8 bits a block, 32 for 256 of them
    offsets = 4 * len(layers)
    tables = wrapper.memory_footprint_mb * 2**20 - bare - scales - offsets
    # A layer has 16 values of NF4 and 256 of the 8-bit scales; some may be shared.
    assert 4 * (16 + 256) <= tables <= 4 * (16 + 256) * len(layers)


def test_memory_of_a_plain_model_is_its_parameters_and_buffers_once(tiny_wrapper):
    model = tiny_wrapper.model
    assert model.lm_head.weight is model.transformer.wte.weight  # shared
    expected = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert tiny_wrapper.memory_footprint_mb == expected / 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_memory_is_what_the_allocator_gave():
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model, tokenizer = load_model("resources/micro/target", "int4", device="cuda")
    held = torch.cuda.memory_allocated() - before
    wrapper = ModelWrapper(model, tokenizer, model.device)
    tensors = 8 * len(list(model.parameters()))
    assert abs(held - wrapper.memory_footprint_mb * 2**20) <= 512 * tensors  # it rounds to 512 B
    assert {m.compute_dtype for m in layers_in_4bit(model).values()} == {torch.bfloat16}


def test_a_4_bit_self_shares_what_is_not_quantised_with_its_model(caplog):
    target, tokenizer = load_model("resources/micro/target", "bfloat16", device="cpu")
    draft, _ = load_model("resources/micro/target", "int4", device="cpu")
    own = sum(part.nbytes for part in draft.parameters() if part.dtype == torch.float32)
    with caplog.at_level(logging.INFO):
        assert share_weights(draft, target)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("int4 draft")]
    assert line == (
        "int4 draft: what is not quantised is the target's own, in bfloat16; "
        f"{own / 1e6:.0f} MB of copies freed"
    )
    ours, theirs = dict(draft.named_parameters()), dict(target.named_parameters())
    shared = [name for name in ours if ours[name].data_ptr() == theirs[name].data_ptr()]
    assert set(ours) - set(shared) == {f"{name}.weight" for name in layers_in_4bit(draft)}
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    logits = draft(ids).logits
    assert logits.dtype == torch.bfloat16 and torch.isfinite(logits).all()


def test_a_4_bit_draft_of_other_weights_keeps_its_own():
    target, _ = load_model("resources/micro/target", "bfloat16", device="cpu")
    draft, _ = load_model("resources/micro/draft", "int4", device="cpu")
    before = {name: weight.data_ptr() for name, weight in draft.named_parameters()}
    assert not share_weights(draft, target)
    assert {name: weight.data_ptr() for name, weight in draft.named_parameters()} == before


def test_layers_that_are_one_product_are_held_once(tmp_path):
    model = in_4_bits(tmp_path).model
    before = {name: layer.weight.data.clone() for name, layer in layers_in_4bit(model).items()}
    attention = model.model.layers[0].self_attn
    with graft(model, may_round=True, to_trace=True):
        joined = attention.q_proj.nf4_packed
    q, k, v = (getattr(attention, f"{name}_proj").weight for name in "qkv")
    assert [part.data_ptr() for part in (q, k, v)] == [
        joined.data_ptr() + begin for begin in (0, q.nbytes, q.nbytes + k.nbytes)
    ]
    assert joined.nbytes == q.nbytes + k.nbytes + v.nbytes
    for name, layer in layers_in_4bit(model).items():
        assert torch.equal(layer.weight, before[name]) and layer.weight.quant_state is not None
