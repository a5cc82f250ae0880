"""Packages of compiled code: built from little more than a model's own code, and called as ever."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

from specdec.engine.packages import INTERFACE_WRITER, build_package, load_package
from specdec.kernels.build import STAND_INS, load_operators
from specdec.utils.cache import cache_folder
from tests.checks import needs_compiler

DEVICES = """
#include <cassert>
#include <regex>
#include <string>

int main() {
  std::regex device("(cpu|cuda|xpu|mps)(:([0-9]+))?");
  std::smatch parts;
  const std::string cpu = "cpu", cuda = "cuda:12";
  assert(std::regex_match(cpu, parts, device));
  assert(parts[1].str() == "cpu" && !parts[3].matched);
  assert(std::regex_match(cuda, parts, device));
  assert(parts[1].str() == "cuda" && parts[3].matched && parts[3].str() == "12");
  for (const std::string wrong : {"", "tpu", "cpu:", "cpu:x", "cpu:1x", "cpu1"})
    assert(!std::regex_match(wrong, parts, device));
  try {
    std::regex another("[0-9]+");
  } catch (const std::runtime_error &) {
    return 0;
  }
  return 1;
}
"""


@needs_compiler
@pytest.mark.parametrize("stand_in", [True, False], ids=["ours", "the standard library's"])
def test_a_device_is_taken_apart_as_by_the_standard_library(tmp_path, stand_in):
    source, program = tmp_path / "devices.cpp", tmp_path / "devices"
    text = DEVICES if stand_in else DEVICES.replace("return 1", "return 0")  # it knows all patterns
    source.write_text(text)
    include = [f"-I{STAND_INS}"] if stand_in else []
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-std=c++20", *include, str(source), "-o", str(program)], check=True)
    subprocess.run([str(program)], check=True)


class Scale(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by + 1


@needs_compiler
@pytest.mark.slow
def test_packages_hold_no_interface_of_their_own_and_check_no_arguments(tmp_path, monkeypatch):
    load_operators(cache_folder())
    generated = tmp_path / "generated"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(generated))
    before, x = dict(os.environ), torch.arange(4.0)
    for by in (2.0, 3.0):
        path = tmp_path / f"{by}.pt2"
        build_package(torch.export.export(Scale(by), (x,)), path, threads=1)
        (given,) = load_package(path)([x])
        assert torch.equal(given, x * by + 1)
    assert dict(os.environ) == before
    sources = [path.read_text() for path in generated.rglob("*.wrapper.cpp")]
    assert len(sources) == 2
    for source in sources:
        assert "run_impl" in source and "check_input_0" not in source
        if hasattr(CppWrapperCpu, INTERFACE_WRITER):
            assert "AOTInductorModelContainerRun(" not in source


def test_a_failing_compiler_leaves_everything_as_it_was(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no")

    methods, before = dict(vars(CppWrapperCpu)), dict(os.environ)
    load_operators(cache_folder())
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(RuntimeError, match="no"):
        build_package(None, tmp_path / "x.pt2", threads=1)
    assert dict(vars(CppWrapperCpu)) == methods and dict(os.environ) == before
