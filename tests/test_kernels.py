"""The kernels compute what PyTorch does, and a row the same beside any others, bit for bit."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from ctypes import CDLL
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.pytorch_utils import Conv1D

from specdec.engine.fast_model import fast_model
from specdec.kernels import build, formats
from specdec.kernels.graft import graft
from specdec.models.cache import FixedCache, GrowingCache
from specdec.models.loading.loader import load_model
from specdec.utils.cache import cache_folder
from specdec.utils.errors import SpecdecError
from tests.checks import needs_compiler
from tests.tiny import make_model, wrap

pytestmark = needs_compiler

PLENTY = 2**40  # bytes of memory
ROWS = [*range(1, 18), 40]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float16: 0.03}


@pytest.fixture(scope="module")
def operators():
    build.load_operators(cache_folder())
    return torch.ops.specdec


@pytest.mark.parametrize("kept", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 128), (50, 37), (768, 3), (7, 1)])
def test_a_row_of_a_linear_layer_is_the_same_beside_any_others(
    operators, dtype, kept, width_in, width_out
):
    x, bias = torch.randn(max(ROWS), width_in).to(dtype), torch.randn(width_out).to(dtype)
    weight = torch.randn(width_out, width_in).to(kept)
    right = linear(x.double(), weight.double(), bias.double())
    alone = torch.cat([operators.linear(row[None], weight, bias) for row in x])
    assert alone.dtype == dtype
    torch.testing.assert_close(alone.double(), right, atol=TOLERANCE[dtype], rtol=1e-2)
    for rows in ROWS:
        for first in {0, (max(ROWS) - rows) // 2, max(ROWS) - rows}:
            some = slice(first, first + rows)
            assert torch.equal(operators.linear(x[some], weight, bias), alone[some])


def test_rows_may_lie_apart_or_crosswise(operators):
    weight, wide = torch.randn(5, 16), torch.randn(16, 40)
    right = operators.linear(wide.T.contiguous(), weight, None)
    assert torch.equal(operators.linear(wide.T, weight, None), right)
    assert torch.equal(operators.linear(wide.T.contiguous()[::2], weight, None), right[::2])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_results_are_rounded_as_torch_rounds(operators, dtype):
    x = (torch.randn(200, 9) * torch.logspace(-6, 6, 200)[:, None]).to(dtype)
    x[:3, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    weight = torch.randn(100, 9)
    ours = operators.linear(x, weight, None)
    right = operators.linear(x.float(), weight, None).to(dtype)
    assert torch.equal(ours.isnan(), right.isnan()) and ours.isnan().any()
    assert torch.equal(ours.nan_to_num(), right.nan_to_num())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(3, 3, 64), (9, 3, 32), (8, 1, 24), (2, 2, 6)]
)
def test_a_row_of_attention_is_the_same_beside_any_others(
    operators, dtype, heads, kv_heads, dim, threads
):
    """Nor does it depend on how many slots are reserved."""
    slots, held, most = 100, 50, max(ROWS)
    q = (torch.randn(heads, most, dim) * 3).to(dtype)
    k, v = torch.randn(2, slots, kv_heads, dim).to(dtype).transpose(1, 2)
    mask = torch.arange(slots) <= held + torch.arange(most)[:, None]
    right = scaled_dot_product_attention(
        *(part[None].double() for part in (q, k, v)), attn_mask=mask[None, None], enable_gqa=True
    )[0].transpose(0, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = [
            operators.attention(
                q[:, i : i + 1],
                k[:, : held + i + 1],
                v[:, : held + i + 1],
                mask[i : i + 1, : held + i + 1],
                dim**-0.5,
            )
            for i in range(most)
        ]
        alone = torch.cat(alone)
        tolerance = 3e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(alone.double(), right, atol=tolerance, rtol=1e-2)
        for rows in ROWS:
            for first in {0, most - rows}:
                some = slice(first, first + rows)
                ours = operators.attention(q[:, some], k, v, mask[some], dim**-0.5)
                assert torch.equal(ours, alone[some])
    finally:
        torch.set_num_threads(before)


def test_a_window_hides_what_lies_before_it(operators):
    q, k, v = torch.randn(2, 3, 32), torch.randn(2, 40, 32), torch.randn(2, 40, 32)
    places = 30 + torch.arange(3)[:, None]
    mask = (torch.arange(40) <= places) & (torch.arange(40) > places - 8)
    theirs = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
    ours = operators.attention(q, k, v, mask, 32**-0.5)
    torch.testing.assert_close(ours, theirs.transpose(0, 1), atol=3e-6, rtol=1e-5)
    alone = operators.attention(q[:, 2:], k, v, mask[2:], 32**-0.5)
    assert torch.equal(ours[2:], alone)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)


def in_4_bits(weight: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The weights that bitsandbytes means, and its parts as `nf4_linear` takes them."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    second = state.state2
    parts = [packed, state.absmax, state.code, second.code, second.absmax, state.offset]
    return dequantize_4bit(packed, state), parts


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 128), (576, 37), (48, 80), (50, 6)])
def test_4_bit_weights_are_read_as_they_lie(operators, dtype, width_in, width_out):
    """Exactly those of bitsandbytes: a row of the unit matrix gives them back."""
    weight, parts = in_4_bits(torch.randn(width_out, width_in))
    given_back = operators.nf4_linear(torch.eye(width_in), *parts, width_out, None)
    assert torch.equal(given_back, weight.T)
    x, bias = torch.randn(max(ROWS), width_in).to(dtype), torch.randn(width_out).to(dtype)
    ours = operators.nf4_linear(x, *parts, width_out, bias)
    right = linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(ours.double(), right, atol=TOLERANCE[dtype], rtol=1e-2)
    for rows in ROWS:
        some = operators.nf4_linear(x[-rows:], *parts, width_out, bias)
        assert torch.equal(some, ours[-rows:])


def check_rounded(product, weight: torch.Tensor) -> None:
    """Near what the weights say, for rows of any size; a row the same beside any others."""
    x = torch.randn(max(ROWS), weight.shape[1]) * torch.logspace(-3, 3, max(ROWS))[:, None]
    ours, right = product(x), linear(x, weight)
    size = right.square().mean(1, keepdim=True).sqrt()
    assert ((ours - right) / size).square().mean().sqrt() < 0.02
    assert torch.equal(product(x * 0), ours * 0)
    for rows in ROWS:
        assert torch.equal(product(x[-rows:]), ours[-rows:])


@needs_bitsandbytes
@pytest.mark.parametrize(("width_in", "width_out"), [(576, 101), (64, 37)])
def test_a_draft_rounds_its_activations_and_levels_to_8_bits(operators, width_in, width_out):
    weight, (packed, scales, levels, *others) = in_4_bits(torch.randn(width_out, width_in))
    parts = packed, formats.nf4_scales(scales, *others).view(width_out, -1), levels
    check_rounded(lambda x: operators.nf4_rounded_linear(x, *parts, None), weight)


@pytest.mark.parametrize(("width_in", "width_out"), [(192, 101), (64, 37)])
def test_a_head_in_8_bits(operators, width_in, width_out):
    weight = torch.randn(width_out, width_in)
    scale = weight.abs().amax(1) / 127
    eight = (weight / scale[:, None]).round().char()
    check_rounded(lambda x: operators.int8_linear(x, eight, scale, None), weight)


@needs_bitsandbytes
def test_a_4_bit_model_is_computed_as_bitsandbytes_does(operators):
    """A target: its numbers to rounding, its weights handed over and back. A draft may round."""
    model, tokenizer = load_model("resources/micro/target", "int4", device="cpu")
    ids = torch.tensor([tokenizer("def add(a, b):").input_ids])
    before = {name: type(weight) for name, weight in model.named_parameters()}
    theirs = model(ids).logits
    with graft(model):
        ours = model(ids).logits
        assert all(type(weight) is torch.nn.Parameter for weight in model.parameters())
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert {name: type(weight) for name, weight in model.named_parameters()} == before
    assert torch.equal(model(ids).logits, theirs)
    with graft(model, may_round=True):
        hidden, rounded = model.base_model(ids)[0], model(ids).logits
    with graft(model, may_round=True, to_trace=True):  # several layers are one product
        assert torch.equal(model.base_model(ids)[0], hidden)
        traced = model(ids).logits  # by a head in 8 bits
    assert 0 < (rounded - traced).abs().max() < 0.5
    assert torch.equal(model(ids).logits, theirs)
    assert 1e-3 < (rounded - theirs).abs().max() < 1
    assert (rounded.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.8


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_weights_are_kept_in_half_the_bytes_only_where_nothing_is_lost(kind):
    model = make_model(kind, dtype=torch.float32)
    layers = [form.layers[0] for form in formats.forms(make_laid_out(model))]
    exact = layers[0]
    exact.weight.data = exact.weight.data.bfloat16().float()
    before = [layer.weight.clone() for layer in layers]
    formats.lay_out_weights(model, PLENTY)
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.weight, weight)
        by_output = weight.T if isinstance(layer, Conv1D) else weight
        read = formats.read_weights(layer)
        assert read.is_contiguous() and torch.equal(read.float(), by_output)
        assert (read.dtype == torch.bfloat16) == (layer is exact)


def make_laid_out(model):
    formats.lay_out_weights(model, PLENTY)
    return model


def test_short_weights_need_room():
    model = make_model("llama", dtype=torch.bfloat16).float()
    formats.lay_out_weights(model, free_bytes=1000)
    assert not any(hasattr(layer, formats.SHORT_WEIGHT) for layer in model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_model_with_our_kernels_computes_the_same(operators, kind, dtype):
    model = make_model(kind, dtype=torch.bfloat16).to(dtype)
    tokens = torch.tensor([[3, 60, 9, 9, 41]])
    formats.lay_out_weights(model, PLENTY)
    theirs = model(tokens).logits
    with graft(model):
        ours = model(tokens).logits
    with graft(model, to_trace=True):  # several layers are one product
        assert torch.equal(model(tokens).logits, ours)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    assert torch.equal(model(tokens).logits, theirs)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("llama", torch.bfloat16),
        pytest.param("gpt2", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("llama", torch.float32, marks=pytest.mark.slow),
        pytest.param("gpt2", torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_position_of_a_compiled_pass_is_the_same_beside_any_others(tiny_tokenizer, kind, dtype):
    """Products, head, norms and attention, at every place in a block, for any slots reserved."""
    model = make_model(kind, len(tiny_tokenizer), dtype=dtype)
    fast = fast_model(wrap(model))  # of the sizes that other tests have compiled
    held, most = 30, max(ROWS)
    of = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(tiny_tokenizer), (held + most,), generator=of)
    with torch.no_grad():
        cache = GrowingCache()
        model(tokens[None, :held], past_key_values=cache, use_cache=True)

    def buffers(slots: int) -> list[torch.Tensor]:
        fixed = FixedCache(cache, slots)
        fixed.fill(cache)
        return fixed.first(slots)

    def run(*given) -> torch.Tensor:
        return fast.run(*given)[0]

    seen = buffers(128)
    alone = []
    for i in range(held, held + most):
        alone.append(run(tokens[i : i + 1], torch.tensor(i), seen).clone())
    alone = torch.cat(alone)
    with torch.no_grad():
        right = model(tokens[None]).logits[0, held:]
    torch.testing.assert_close(alone, right, atol=2 * TOLERANCE[dtype], rtol=0.05)
    for count in ROWS:
        for first in {0, (most - count) // 2, most - count}:
            block = slice(held + first, held + first + count)
            # As after a prefill of what comes before it: what is behind is written over.
            ours = run(tokens[block], torch.tensor(held + first), seen)
            assert torch.equal(ours, alone[first : first + count]), (count, first)
    more = buffers(512)
    assert torch.equal(run(tokens[held:], torch.tensor(held), more), alone)


def test_what_a_compiler_says_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FLAGS", ["-no-such-flag"])
    with pytest.raises(SpecdecError, match="could not build the kernels: .*no-such-flag"):
        build.build(tmp_path, "native")
    assert not list(tmp_path.glob("*.so"))


def test_the_instruction_set_is_told(operators):
    assert build.instruction_set() == operators.instruction_set()
    assert build.instruction_set() in ("avx512", "avx2", "neon", "generic")


def test_reading_is_only_reading(operators):
    words = torch.randint(-(2**60), 2**60, (4096,))
    assert operators.read(words) == words.sum()


def test_what_our_kernels_need_stays_out_of_the_way_of_other_packages(operators):
    """What is global comes first in what any other library calls: llama.cpp's ended the process
    with parts of torch's."""
    everybody, ours = CDLL(None), [f"aoti_torch_cpu_{name}" for name in build.SHIMS]
    assert all(hasattr(everybody, name) for name in ours)
    assert not hasattr(everybody, "aoti_torch_get_data_ptr")


CHECK = Path(__file__).with_name("kernels_check.cpp")


def run_check(folder: Path, command: list[str], runner: list[str] = ()) -> str:
    """What kernels_check.cpp prints, built by `command` (the kernels without torch)."""
    program = folder / "check"
    command = [*command, *build.FLAGS, "-w", f"-I{build.FOLDER}", str(CHECK), "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([*runner, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def processor_has(flag: str) -> bool:
    return flag in Path("/proc/cpuinfo").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("march", "flag", "name"),
    [
        ("x86-64", "sse2", "generic"),
        ("x86-64-v3", "avx2", "avx2"),
        ("x86-64-v4", "avx512bw", "avx512"),
    ],
)
def test_every_level_of_x86_is_right(tmp_path, march, flag, name):
    if not processor_has(flag):
        pytest.skip(f"this processor has no {flag}")
    assert run_check(tmp_path, ["g++", f"-march={march}"]) == f"{name}: 0 faults\n"


@pytest.mark.slow
def test_the_shapes_of_avx512_are_right_on_avx2(tmp_path):
    """The same tiles, each vector being two of the processor's."""
    if not processor_has("avx2"):
        pytest.skip("this processor has no avx2")
    shapes = ["-DLANES=16", "-DREGISTERS=32"]
    assert run_check(tmp_path, ["g++", "-march=x86-64-v3", *shapes]) == "avx512: 0 faults\n"


@pytest.mark.slow
def test_aarch64_is_right(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if not (compiler and emulator):
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user")
    assert run_check(tmp_path, [compiler, "-static"], [emulator]) == "neon: 0 faults\n"
