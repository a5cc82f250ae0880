"""What a compiler makes of a pass on a GPU, without one: kernels a layer, what they write, spills.

    python benchmarks/lowering.py --sm 80 90

Needs a CUDA build of PyTorch, with the Triton and the assembler that come with it. Layers of
Llama-3-8B's size are traced on tensors that hold nothing and lowered by Inductor for a stand-in of
the card; every Triton kernel is then compiled to machine code. Products (cuBLAS) are counted, not
compiled. It shows no values and no time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' stand-ins

from specdec.engine.gpu_operators import INDUCTOR, gpu_operators, merge_products
from specdec.engine.pieces import ModelPass
from tests.fake_cuda import on_fake_device, without_guards

SLOTS = 1024
SHAPE = dict(
    vocab_size=1024,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
# Multiprocessors, registers and shared memory of a multiprocessor: A100, H100.
CARDS = {80: (108, 65536, 167_936), 90: (132, 65536, 233_472)}
LAUNCH = re.compile(r"^\s+(\w+)\.run\(|^\s+(extern_kernels\.\w+|torch\.ops\.aten\.\w+)", re.M)
BUFFER = re.compile(r"empty_strided_cuda\(\(([\d, ]+)\)")
TRITON = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.S)


class Generated(Exception):
    """The code is there; nothing is to run it."""


class Unguarded(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return without_guards(function, args, kwargs or {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sm", type=int, nargs="+", default=[80, 90], choices=CARDS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5], help="tokens of a pass")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, triton {triton.__version__}; {SLOTS} slots, bfloat16")
    for sm in arguments.sm:
        for rows in arguments.rows:
            for name, ours in (("as it is", False), ("ours", True)):
                one, two = (generate(sm, rows, layers, ours) for layers in (1, 2))
                report(f"sm_{sm}, {rows} tokens, {name}", one, two, sm)


def report(title: str, one: str, two: str, sm: int) -> None:
    """`one` and `two`: the code of as many layers."""
    launches = [[a or b for a, b in LAUNCH.findall(code)] for code in (one, two)]
    products = [sum(launch.startswith("extern") for launch in found) for found in launches]
    kernels = len(launches[1]) - len(launches[0])
    buffers = [tuple(map(int, re.findall(r"\d+", shape))) for shape in BUFFER.findall(one)]
    expanded = [shape for shape in buffers if _elements(shape) >= SLOTS * 32 * 128]
    spills, registers, size = assemble(one, sm)
    print(
        f"{title}: {kernels} kernels a layer, of these {products[1] - products[0]} products; "
        f"buffers of all heads and slots: {expanded or 'none'}; "
        f"{size} Triton kernels assembled, at most {registers} registers, {spills} bytes spilled"
    )


def generate(sm: int, rows: int, layers: int, ours: bool) -> str:
    """The code that Inductor writes for a pass over `rows` tokens."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE))
    model = model.to(torch.bfloat16).eval()
    written: list[str] = []

    def save(code: str) -> None:
        written.append(code)
        raise Generated

    with stand_in_gpu(sm), fake_tensor.FakeTensorMode() as fakes:
        on_fake_device(model)
        buffers = [
            torch.empty(SLOTS, 8, 128, dtype=torch.bfloat16, device="cuda:0")
            for _ in range(2 * layers)
        ]
        tokens = torch.zeros(rows, dtype=torch.long, device="cuda:0")
        arguments = tokens, torch.zeros((), dtype=torch.long, device="cuda:0"), buffers
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(Unguarded())
            if ours:
                stack.enter_context(gpu_operators(model))
                stack.enter_context(config.patch(INDUCTOR))
            module = ModelPass(model, SHAPE["vocab_size"])
            traced = torch.export.export(module, arguments, strict=False).module()
            if ours:
                merge_products(traced.graph)
                traced.recompile()
            with fakes, mock.patch.object(GraphLowering, "save_output_code", save):
                try:
                    compile_fx(traced, [tokens, arguments[1], *buffers])
                except Exception:
                    if not written:
                        raise
    return written[0]


def assemble(code: str, sm: int) -> tuple[int, int, int]:
    """Bytes spilled by all Triton kernels of the code, most registers, and how many there are."""
    spilled, most, count = 0, 0, 0
    for name, source in TRITON.findall(code):
        for each in _kernels(name, source, sm):
            count += 1
            said = _ptxas(each, sm)
            spilled += sum(map(int, re.findall(r"(\d+) bytes spill", said)))
            most = max([most, *map(int, re.findall(r"Used (\d+) registers", said))])
    return spilled, most, count


def _kernels(name: str, source: str, sm: int) -> Iterator[str]:
    """The PTX of a kernel as Inductor wrote it, in its first configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(source)
        found: dict = {"__file__": str(path), "__name__": name}
        with mock.patch.object(triton_helpers, "set_driver_to_gpu"):
            exec(compile(source, str(path), "exec"), found)
        tuner = found[name]
        chosen = tuner.configs[0]
        meta = tuner.triton_meta
        constants = dict(meta["constants"]) | chosen.kwargs
        signature = dict(meta["signature"])
        signature |= dict.fromkeys(chosen.kwargs, "constexpr")
        attributes = meta["configs"][0]
        built = triton.compile(
            ASTSource(tuner.fn, signature, constants, attributes),
            target=GPUTarget("cuda", sm, 32),
            options={"num_warps": chosen.num_warps, "num_stages": chosen.num_stages},
        )
        yield built.asm["ptx"]


def _ptxas(ptx: str, sm: int) -> str:
    """What the assembler that comes with Triton says of registers."""
    assembler = triton.knobs.nvidia.ptxas.path
    architecture = re.search(r"\.target (sm_\w+)", ptx).group(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [assembler, "-v", f"-arch={architecture}", str(path), "-o", f"{path}.cubin"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


@contextmanager
def stand_in_gpu(sm: int) -> Iterator[None]:
    """What PyTorch asks of a card and its driver, answered for a card that isn't there."""
    processors, registers, shared = CARDS[sm]
    properties = SimpleNamespace(
        name=f"sm_{sm}",
        major=sm // 10,
        minor=sm % 10,
        multi_processor_count=processors,
        total_memory=80 * 2**30,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=registers,
        warp_size=32,
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=shared - 1024,
        shared_memory_per_multiprocessor=shared,
        L2_cache_size=40 * 2**20,
        uuid="0",
    )
    nothing = lambda *_: None  # noqa: E731
    zero = lambda *_: 0  # noqa: E731
    answers = {
        "get_device_properties": lambda *_: properties,
        "_get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (sm // 10, sm % 10),
        "get_device_name": lambda *_: properties.name,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": zero,
        "set_device": nothing,
        "synchronize": nothing,
        "mem_get_info": lambda *_: (80 * 2**30, 80 * 2**30),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8, device="cpu"),
        "set_rng_state": nothing,
        "_exchange_device": zero,
        "_maybe_exchange_device": zero,
        "_lazy_init": nothing,
    }
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", sm, 32),
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_device=zero,
        get_device_interface=lambda: torch.cuda,
    )
    settings = {
        "compile_threads": 1,
        "force_disable_caches": True,
        "joint_graph_constant_folding": False,  # folding computes
    }
    passes = torch._inductor.fx_passes
    with ExitStack() as stack:
        put = lambda *what: stack.enter_context(mock.patch.object(*what, create=True))  # noqa: E731
        for name, answer in answers.items():
            put(torch.cuda, name, answer)
        put(fake_tensor, "init_gpu_context", nothing)
        put(torch._C, "_cuda_getCurrentRawStream", zero)
        put(passes.joint_graph, "lazy_init", nothing)  # patterns that are traced on a card
        put(passes.post_grad, "lazy_init", nothing)
        stack.enter_context(config.patch(settings))
        triton.runtime.driver.set_active(driver)
        yield


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


if __name__ == "__main__":
    main()
