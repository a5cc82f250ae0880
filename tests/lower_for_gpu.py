"""Layers of Llama-3-8B's size lowered by Inductor for a card that isn't there: no CUDA, no values.

With any build of PyTorch it gets as far as the kernels are decided on; to write them it needs
Triton (`benchmarks/lowering.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
import torch.utils._triton
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.engine.gpu_operators import INDUCTOR, PRODUCTS, gpu_operators
from specdec.engine.merge import merge_equal
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


class Stopped(Exception):
    """What was wanted is there; nothing is to go on with it."""


class Unguarded(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return without_guards(function, args, kwargs or {})


def lower(sm: int, rows: int, layers: int, ours: bool, stop_at: tuple[type, str]):
    """What a method of Inductor's is called with, of a pass over `rows` tokens.

    `stop_at` is its class and name. With `ours`, the model has the operators that it has on a GPU.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE))
    model = model.to(torch.bfloat16).eval()
    seen: list = []

    def stop(*arguments) -> None:
        seen.append(arguments[-1])
        raise Stopped

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
                merge_equal(traced.graph, PRODUCTS)
                traced.recompile()
            with fakes, mock.patch.object(*stop_at, stop):
                try:
                    compile_fx(traced, [tokens, arguments[1], *buffers])
                except Exception:
                    if not seen:
                        raise
    return seen[0]


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
        gcnArchName="",  # asked for by a build without CUDA
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
        for name in ("has_triton", "has_triton_package"):
            # Where it stands, and where it was imported from there.
            for path, module in list(sys.modules.items()):
                if path.startswith("torch.") and name in vars(module):
                    put(module, name, lambda *_: True)
        put(torch._C, "_cuda_getCurrentRawStream", zero)
        put(passes.joint_graph, "lazy_init", nothing)  # patterns that are traced on a card
        put(passes.post_grad, "lazy_init", nothing)
        stack.enter_context(config.patch(settings))
        yield
