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
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' stand-ins

from tests.lower_for_gpu import CARDS, SLOTS, lower

LAUNCH = re.compile(r"^\s+(\w+)\.run\(|^\s+(extern_kernels\.\w+|torch\.ops\.aten\.\w+)", re.M)
BUFFER = re.compile(r"empty_strided_cuda\(\(([\d, ]+)\)")
TRITON = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.S)


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
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", sm, 32),
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_device=lambda: 0,
        get_device_interface=lambda: torch.cuda,
    )
    triton.runtime.driver.set_active(driver)
    return lower(sm, rows, layers, ours, stop_at=(GraphLowering, "save_output_code"))


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


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


if __name__ == "__main__":
    main()
