"""Compile a module ahead of time for a CPU, once: the outcome is kept on disk for other processes.

The compiler is PyTorch's (`torch.export`, then AOTInductor), which writes and builds C++. What it
makes depends on shapes and code, not on weights: those are among the arguments, so a file takes a
few MB and a second process starts in milliseconds. A model is compiled in segments, layers that are
alike once (`specdec.engine.segments`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._pytree import tree_map_only

from specdec.engine.merge import merge_equal
from specdec.engine.packages import build_package, load_package, settings
from specdec.engine.segments import Segment, cut, form
from specdec.kernels.build import instructions, load_operators, source_digest
from specdec.utils.cache import cache_folder
from specdec.utils.digest import code_digest
from specdec.utils.files import exclusive_lock
from specdec.utils.logging import get_logger
from specdec.utils.machine import available_cores
from specdec.utils.reproducibility import processor_name
from specdec.utils.sealed import is_whole, seal

GRAFT = "specdec.kernels.graft"
# Products of torch's own: how they sum a row depends on how many go with it.
PRODUCTS = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "convolution", "conv1d",
    "scaled_dot_product_attention",
}  # fmt: skip

log = get_logger(__name__)

_kept_only: ContextVar[bool] = ContextVar("kept_only", default=False)
_threads: ContextVar[int | None] = ContextVar("threads", default=None)


class NotKept(BaseException):
    """Something would have to be compiled. No Exception: nobody who makes do without a compiler is
    to catch it."""


@contextlib.contextmanager
def kept_only() -> Iterator[None]:
    """In this block nothing is compiled: what isn't kept on disk raises NotKept."""
    token = _kept_only.set(True)
    try:
        yield
    finally:
        _kept_only.reset(token)


@contextlib.contextmanager
def compiling_beside(pieces: Sequence[Callable[[], object]]) -> Iterator[None]:
    """During this block another process calls `pieces`, each of which compiles something.

    What it compiles is kept, so whoever asks for it after the block finds it, or learns why it
    can't be compiled. Only on Linux: elsewhere a process can't be copied, and nothing is gained.
    """
    if _kept_only.get() or sys.platform != "linux":
        yield
        return
    work = partial(_call_all, pieces, torch.get_num_threads())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads are not copied: none is asked for anything
        beside = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        beside.start()
    try:
        yield
    finally:
        beside.join()


def _call_all(pieces: Sequence[Callable[[], object]], threads: int) -> None:
    """Compile for passes on `threads`, with one: those that there were are not in this copy."""
    torch.set_num_threads(1)
    _threads.set(threads)
    for piece in pieces:
        with contextlib.suppress(Exception):  # it will be asked for again, and then say why
            piece()


def is_copy() -> bool:
    """Whether this process was copied to compile: it must run nothing that it compiled, for the
    threads that this would go on were not copied, and waiting for them never ends."""
    return _threads.get() is not None


def compile_by_two(pieces: Sequence[Callable[[], object]]) -> None:
    """Call the pieces that are not compiled, each of which compiles something: this process from
    the first on, another from the last on, until they meet.

    Where there is nothing to share, or nobody to share it with, nothing happens. Where a piece
    can't be compiled it is left at that: it says why where it is asked for.
    """
    if is_copy() or available_cores() < 2:  # a copy makes no copies
        return
    missing = [piece for piece in pieces if not is_kept(piece)]
    if len(missing) > 1:
        with compiling_beside([partial(_call_each, missing[::-1])]):
            with contextlib.suppress(Exception):
                _call_each(missing)


def is_kept(piece: Callable[[], object]) -> bool:
    """Whether a call of `piece` compiles nothing."""
    try:
        with kept_only(), contextlib.suppress(Exception):
            piece()
    except NotKept:
        return False
    return True


def _call_each(pieces: Sequence[Callable[[], object]]) -> None:
    for piece in pieces:
        piece()


def compile_ahead(
    module: torch.nn.Module,
    example: tuple,
    dynamic_shapes: tuple,
    identity: dict[str, Any],
    label: str | None = None,
) -> Callable:
    """A callable that does what `module` does, compiled now or found on disk.

    Its attribute `rows_apart` tells whether what a row gives depends on no row beside it, bit for
    bit.

    Args:
        module: reads its arguments' values nowhere on the host; may write into argument tensors.
        example: arguments of the shapes to come.
        dynamic_shapes: of `torch.export.export`; what is not named there is fixed.
        identity: what decides the code besides the shapes of arguments and weights (JSON).
        label: what the log calls it.

    Raises:
        Exception: whatever the compiler says about a module that it cannot do.
    """
    weights = dict(module.named_parameters(remove_duplicate=False))
    weights |= dict(module.named_buffers(remove_duplicate=False))
    path = cache_folder() / f"{_digest(module, weights, example, identity)}.plan"
    name = label or type(module).__name__
    if _kept_only.get() and not _is_kept(path):
        raise NotKept(name)
    load_operators(cache_folder())
    with exclusive_lock(path.with_suffix(".lock"), lambda: log.info("waiting for %s", name)):
        if not _is_kept(path):
            if path.exists():
                log.warning("%s is not as it was written: compiling %s again", path, name)
            log.info("compiling %s …", name)
            began = time.perf_counter()
            _compile(module, example, dynamic_shapes, path)
            log.info("compiled %s in %.0f s", name, time.perf_counter() - began)
    return _load(path, weights)


def _is_kept(path: Path) -> bool:
    """Whether the plan at `path` is there, and the packages that it names."""
    if not is_whole(path):
        return False
    return all(is_whole(path.with_name(step["package"])) for step in torch.load(path)["steps"])


def _compile(module, example: tuple, dynamic_shapes: tuple, path: Path) -> None:
    """Build the packages of a module, and the plan of their calls at `path`.

    A plan is about values: the arguments first, then what each call in turn gives. A call takes
    some of them, by number, and weights and constants, by name.
    """
    program = trace(module, example, dynamic_shapes)
    signature = program.graph_signature
    known: dict[str, int | str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
        **{name: number for number, name in enumerate(signature.user_inputs)},
    }
    steps, count = [], len(signature.user_inputs)
    for segment in cut(program):
        package = _compile_segment(segment, path.parent)
        takes = [known[node.name] for node in segment.inputs]
        steps.append({"package": package.name, "takes": takes})
        for node in segment.outputs:
            known[node.name] = count
            count += 1
    constants = signature.inputs_to_lifted_tensor_constants.values()  # that are nobody's weights
    plan = {
        "steps": steps,
        "gives": [known[name] for name in signature.user_outputs],
        "constants": {name: program.constants[name] for name in constants},
        "rows_apart": _rows_apart(program.graph_module),
    }
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    torch.save(plan, unfinished)
    unfinished.replace(path)
    seal(path)


def trace(
    module: torch.nn.Module, example: tuple, dynamic_shapes: tuple
) -> torch.export.ExportedProgram:
    """The graph of a module; of products of the same rows and weights one is left."""
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=dynamic_shapes, strict=False)
    aten, ours = torch.ops.aten, torch.ops.specdec
    views, products = (aten.view, aten.reshape), (ours.linear, ours.nf4_rounded_linear)
    merge_equal(program.graph_module.graph, {target.default for target in (*views, *products)})
    return program


def _compile_segment(segment: Segment, folder: Path) -> Path:
    """Its package, which segments that are alike share, of whatever model; it appears whole."""
    threads = _threads.get() or torch.get_num_threads()
    identity = {"does": segment.text(), "by": settings(threads), **_means()}
    path = folder / f"Segment-{_hash(identity)}.pt2"
    with exclusive_lock(path.with_suffix(".lock"), lambda: log.info("waiting for a part of it")):
        if not is_whole(path):
            unfinished = path.with_name(f".{os.getpid()}.{path.name}")
            with _quiet(), torch.no_grad():
                program = torch.export.export(
                    segment.module,
                    segment.examples(),
                    dynamic_shapes=segment.dynamic_shapes(),
                    strict=False,
                )
                build_package(program, unfinished, threads)
            unfinished.replace(path)
            seal(path)
    return path


def _rows_apart(traced: torch.fx.GraphModule) -> bool:
    """Whether all products are our kernels' (or sums of one number, as those of rotations are)."""
    graphs = [part.graph for part in traced.modules() if isinstance(part, torch.fx.GraphModule)]
    products = [
        node
        for graph in graphs
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace == "aten"
        and node.target._opname in PRODUCTS
    ]
    return all(
        node.target._opname in ("matmul", "bmm") and node.args[0].meta["val"].shape[-1] == 1
        for node in products
    )


def _load(path: Path, weights: dict[str, torch.Tensor]) -> Callable:
    """What the plan at `path` does: it takes tensors and lists of tensors, and gives a tensor or
    several."""
    plan = torch.load(path)
    known = {name: value.detach() for name, value in (plan["constants"] | weights).items()}
    steps = []
    for step in plan["steps"]:
        # The weights stay where they are; values take their places among them in each call.
        given = [known.get(value) for value in step["takes"]]
        places = [(i, value) for i, value in enumerate(step["takes"]) if isinstance(value, int)]
        with _quiet():
            run = load_package(path.with_name(step["package"]))
        steps.append((run, given, places))
    gives = plan["gives"]

    def call(*arguments):
        values = []
        for part in arguments:
            values += part if isinstance(part, list) else (part,)
        for run, given, places in steps:
            given = given.copy()
            for place, value in places:
                given[place] = values[value]
            values += run(given)
        if len(gives) == 1:
            return values[gives[0]]
        return [values[value] for value in gives]

    call.rows_apart = plan["rows_apart"]
    return call


def _digest(module, weights: dict, example: tuple, identity: dict) -> str:
    """A name for the plan: of all that it and what it calls depend on."""
    shapes = []
    tree_map_only(torch.Tensor, lambda t: shapes.append(form(t)), example)
    everything = {
        "module": type(module).__name__,
        "identity": identity,
        "weights": {name: form(weight) for name, weight in weights.items()},
        "arguments": shapes,
        "traced": _code(type(module).__module__),  # with what it imports
        "threads": _threads.get() or torch.get_num_threads(),
        **_means(),
    }
    return f"{type(module).__name__}-{_hash(everything)}"


@cache
def _code(module: str) -> str:
    """Of a module that is imported: as its source was when it was first asked for."""
    return code_digest(module)


def _means() -> dict[str, Any]:
    """By what something is compiled, and for which machine."""
    return {
        # How it is made, and what stands in for a model's layers.
        "code": [_code(module) for module in (__name__, GRAFT)],
        "kernels": [source_digest(), instructions()],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": [processor_name(), torch.backends.cpu.get_cpu_capability()],
    }


def _hash(everything: dict) -> str:
    text = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's advice to its own developers out of a user's output."""
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
