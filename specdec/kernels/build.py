"""Build the kernels for the processor at hand, once, and make them operators of torch.

`torch.ops.specdec.linear`, `nf4_linear`, `nf4_rounded_linear`, `int8_linear`, `attention` and
`least_of_mass`: see operators.cpp for what they take. `$SPECDEC_MARCH` names another level of
instructions than this processor's own (as `-march` of gcc: `x86-64-v3` has AVX2, `x86-64-v4`
AVX-512); for torch's own code set its `ATEN_CPU_CAPABILITY` (`avx2`) beside it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from ctypes import CDLL, RTLD_GLOBAL, c_void_p, cast
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from specdec.utils.errors import SpecdecError
from specdec.utils.files import exclusive_lock
from specdec.utils.logging import get_logger
from specdec.utils.reproducibility import processor_name
from specdec.utils.sealed import is_whole, seal

FOLDER = Path(__file__).parent
# (PyTorch lists these in cpp_extension, whose import warns where there is CUDA and no GPU.)
TORCH = Path(torch.__file__).parent
INCLUDE = [f"-I{TORCH / place}" for place in ("include", "include/torch/csrc/api/include")]
#: Headers that a compiler is to find before its own of the same names.
STAND_INS = FOLDER / "include"
# The functions by which a package of compiled code is called (specdec/engine/packages.py), which
# PyTorch keeps as a source to be written into each.
INTERFACE = TORCH / "_inductor/codegen/aoti_runtime/interface.cpp"
PACKAGE_HEADER = "torch/csrc/inductor/aoti_include/cpu.h"
LIBRARY = "specdec"  # torch.ops.specdec
FLAGS = ["-O2", "-std=c++20", "-ffp-contract=off"]  # what is fused is written (lanes.h)

#: How compiled code calls the operators (operators.cpp): nothing between it and them.
SHIMS = {
    "linear": "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, AtenTensorHandle*",
    "nf4_linear": "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
    "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, int64_t, AtenTensorHandle*, "
    "AtenTensorHandle*",
    "nf4_rounded_linear": "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
    "AtenTensorHandle*, AtenTensorHandle*",
    "int8_linear": "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, "
    "AtenTensorHandle*",
    "attention": "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, double, "
    "AtenTensorHandle*",
    "least_of_mass": "AtenTensorHandle, double, AtenTensorHandle*",
}

_PREFIX = "aoti_torch_cpu_"  # the compiler's

log = get_logger(__name__)


def _names() -> list[str]:
    return [f"{_PREFIX}{name}" for name in SHIMS]


def shims() -> dict[torch._ops.OpOverload, list[str]]:
    """The same as PyTorch's compiler wants it: declarations in C for each operator, of pointers to
    functions."""
    return {
        getattr(torch.ops.specdec, name).default: [f"AOTITorchError (*{_PREFIX}{name})({takes})"]
        for name, takes in SHIMS.items()
    }


@cache
def source_digest() -> str:
    """16 hex digits of the SHA-256 of the kernels' source: part of the code behind a result."""
    sources = sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp"), *STAND_INS.iterdir()])
    return _digest(*(f"{path.name}\n{path.read_text()}" for path in sources))


def instructions() -> str:
    """The level of instructions that the kernels are built for, as `-march` takes it."""
    return os.environ.get("SPECDEC_MARCH") or "native"


def instruction_set() -> str:
    """The vectors that passes on this CPU use: "avx512", "avx2", "neon" or "generic".

    Where the kernels are not loaded (an eager run), those of torch itself.
    """
    if _loaded(LIBRARY):
        return torch.ops.specdec.instruction_set()
    own = torch.backends.cpu.get_cpu_capability().lower()
    return "generic" if own == "default" else own


def load_operators(folder: Path) -> None:
    """Define the operators `torch.ops.specdec`, built once into `folder`; a process does it once.

    Raises:
        SpecdecError: where the compiler fails.
        Exception: of `torch`, where there is no compiler.
    """
    if not _loaded(LIBRARY):
        path = build(folder, instructions())
        load_library(path, LIBRARY)
        _point_to(path)


def build(folder: Path, march: str, library: str = LIBRARY) -> Path:
    """The operators `torch.ops.<library>` built for a level of instructions, as a file."""
    # Late: it brings the whole compiler along, a quarter of a job's imports.
    from torch._inductor.cpp_builder import get_cpp_compiler

    compiler = get_cpp_compiler()
    compiling = [compiler, *FLAGS, f"-march={march}", f"-DLIBRARY={library}", "-fPIC", "-w", "-c"]
    compiling += INCLUDE
    linking = [compiler, "-shared", f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
    as_packages = [f"-I{STAND_INS}", "-include", PACKAGE_HEADER, "-O1"]
    means = (torch.__version__, processor_name(), *compiling, *linking, *as_packages)
    name = _digest(source_digest(), *SHIMS, *means)
    path = folder / f"kernels-{name}.so"
    all_made = _pointers_of(path), interface_of(path), path
    with exclusive_lock(path.with_suffix(".lock"), lambda: log.info("waiting for the kernels")):
        if not all(is_whole(made) for made in all_made):
            log.info("building the kernels for %s …", march)
            with TemporaryDirectory(dir=folder) as place:
                unfinished = [Path(place) / made.name for made in all_made]
                pointers, interface, whole = map(str, unfinished)
                objects = [f"{place}/operators.o", f"{place}/kernels.o"]
                _run_all(
                    [
                        [*compiling, str(FOLDER / "kernels.cpp"), "-o", objects[1]],
                        [*compiling, str(FOLDER / "operators.cpp"), "-o", objects[0]],
                        [*compiling, *as_packages, str(INTERFACE), "-o", interface],
                    ]
                )
                source = Path(place) / "pointers.cpp"
                source.write_text("".join(f'extern "C" void *{n}; void *{n};' for n in _names()))
                _run_all(
                    [
                        [*linking[:2], "-nostdlib", str(source), "-o", pointers],
                        [*linking[:2], *objects, *linking[2:], "-o", whole],
                    ]
                )
                for file, made in zip(unfinished, all_made, strict=True):
                    file.replace(made)
                    seal(made)
    return path


def _run_all(commands: Iterable[list[str]]) -> None:
    """Run commands of a compiler at the same time; the first that fails is an error."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(command, **pipes) for command in commands]
    said = [process.communicate()[0] for process in running]
    for process, text in zip(running, said, strict=True):
        if process.returncode != 0:
            raise SpecdecError(
                f"{process.args[0]} could not build the kernels: {text.strip()[:200]}"
            )


def load_library(path: Path, library: str) -> None:
    """Load what `build` made, and tell torch the shapes of what its operators give."""
    torch.ops.load_library(str(path))
    shapes = {
        "linear": lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
        "nf4_linear": lambda x, *weights_and_out: x.new_empty(x.shape[0], weights_and_out[6]),
        "nf4_rounded_linear": lambda x, packed, scales, *rest: x.new_empty(
            x.shape[0], scales.shape[0]
        ),
        "int8_linear": lambda x, weight, scales, bias: x.new_empty(x.shape[0], weight.shape[0]),
        "attention": lambda q, k, v, mask, scale: q.new_empty(q.shape[1], q.shape[0], v.shape[2]),
        "least_of_mass": lambda probabilities, mass: probabilities.new_empty(
            probabilities.shape[0], 1
        ),
    }
    for name, shape in shapes.items():
        torch.library.register_fake(f"{library}::{name}", shape)


def _point_to(path: Path) -> None:
    """Let compiled code find the functions of a library that is loaded.

    It looks among the names that are global in this process. Were the library's made so, torch's
    would come along, in the way of any other package with a part in C++ (llama.cpp's then ends the
    process); so a second one, which needs none, holds pointers and nothing else.
    """
    kernels, pointers = CDLL(str(path)), CDLL(str(_pointers_of(path)), mode=RTLD_GLOBAL)
    for name in _names():
        c_void_p.in_dll(pointers, name).value = cast(kernels[name], c_void_p).value


def _pointers_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-pointers.so")


def interface_of(path: Path) -> Path:
    """Beside the operators at `path` lies `INTERFACE`, compiled, for packages to hold."""
    return path.with_name(f"{path.stem}-interface.o")


def _loaded(library: str) -> bool:
    return hasattr(getattr(torch.ops, library), "linear")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
