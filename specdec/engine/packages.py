"""Packages of compiled code: PyTorch's compiler (AOTInductor) builds them, in a part of its time.

Beside a model's own code each package holds PyTorch's runtime for packages, and nearly all the time
that building a package took went there. So what is the same in all of them is compiled once, and
what is of no use here is not compiled at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from specdec.kernels.build import STAND_INS, build, instructions, interface_of, shims
from specdec.utils.cache import cache_folder

#: What of PyTorch's compiler writes the interface into each package. (Before torch 2.13 that is no
#: function by itself: there the interface stays in.)
INTERFACE_WRITER = "_write_aoti_interface_header"
#: The processor is believed about its vectors; else a program is compiled and run for each kind.
VECTORS = {"cpp.vec_isa_ok": True}


def settings(threads: int) -> dict[str, Any]:
    """Of PyTorch's compiler, as far as they decide what a package does."""
    return {
        "always_keep_tensor_constants": True,  # else those of a few numbers are code
        "cpp.use_decompose_tanh": True,  # by exp, which takes a third of the time
        "cpp.threads": threads,  # written into the loops
        **VECTORS,
        **({} if instructions() == "native" else {"cpp.march": instructions()}),
    }


def build_package(program: torch.export.ExportedProgram, path: Path, threads: int) -> None:
    """Compile a program for passes on `threads`, into the file `path`."""
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    by = settings(threads) | {"aot_inductor.custom_ops_to_c_shims": shims()}
    interface = interface_of(build(cache_folder(), instructions()))
    with (
        _found_first("CPLUS_INCLUDE_PATH", STAND_INS),
        _found_first("LIBRARY_PATH", interface.parent),
        _without_checks(),
        ExitStack() as apart,
    ):
        if hasattr(CppWrapperCpu, INTERFACE_WRITER):
            by["aot_inductor.custom_op_libs"] = [f":{interface.name}"]  # as -l takes a file
            apart.enter_context(patch.object(CppWrapperCpu, INTERFACE_WRITER, _declare_model))
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=by
        )


@cache
def load_package(path: Path) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    """What a package does; models share it. (PyTorch's own call reads a description of its
    arguments from JSON, each time.)"""
    with torch._inductor.config.patch(VECTORS):  # what it was built for is compared with these
        return torch._inductor.aoti_load_package(str(path)).loader.boxed_run


def _found_first(variable: str, folder: Path) -> AbstractContextManager:
    """Let a compiler look into `folder` first: for what, the name of the variable says."""
    places = filter(None, (str(folder), os.environ.get(variable)))
    return patch.dict(os.environ, {variable: os.pathsep.join(places)})


def _declare_model(wrapper: Any) -> None:
    """What of the interface a package's own code needs."""
    wrapper.header.splice("#include <torch/csrc/inductor/aoti_runtime/model.h>\n")


@contextmanager
def _without_checks() -> Iterator[None]:
    """Leave out the code that checks a package's arguments where AOTI_RUNTIME_CHECK_INPUTS is set:
    for the weights of a few layers that takes as long as all else."""
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
    from torch._inductor.virtualized import V

    checks = CppWrapperCpu.generate_input_output_runtime_checks

    def of_no_inputs(wrapper: CppWrapperCpu) -> None:
        inputs, V.graph.graph_inputs = V.graph.graph_inputs, {}
        try:
            checks(wrapper)
        finally:
            V.graph.graph_inputs = inputs

    with patch.object(CppWrapperCpu, checks.__name__, of_no_inputs):
        yield
