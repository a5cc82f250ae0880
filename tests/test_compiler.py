"""What is kept of compiled passes: found again, made again where it is damaged."""

from __future__ import annotations

import logging
import os
import sys
import time

import pytest
import torch

from specdec.engine import compiler, fast_model
from specdec.kernels import build
from specdec.method.sampling import Greedy, Sampling
from specdec.utils.digest import import_closure
from specdec.utils.files import exclusive_lock
from tests.tiny import make_model, wrap


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.fixture
def compile_double(tmp_path, monkeypatch):
    """`compile_ahead` of a module with a compiler that only writes files; what it was asked for."""
    asked: list[str] = []

    def compile_quickly(module, example, dynamic_shapes, path):
        asked.append(path.name)
        package = path.with_suffix(".pt2")
        package.write_bytes(b"a package")
        torch.save({"steps": [{"package": package.name}]}, path)
        for part in (package, path):
            compiler.seal(part)

    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "load_operators", lambda folder: None)
    monkeypatch.setattr(compiler, "_compile", compile_quickly)
    monkeypatch.setattr(compiler, "_load", lambda path, weights: path)

    def run(**identity):
        return compiler.compile_ahead(Double(), (torch.ones(2),), (None,), identity)

    return run, asked


def test_what_was_compiled_is_found_again(compile_double):
    run, asked = compile_double
    assert run() == run() and len(asked) == 1
    assert run(model="another") != run() and len(asked) == 2


@pytest.mark.parametrize("suffix", [".pt2", ".plan", ".pt2.sha256", ".plan.sha256"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_what_is_damaged_is_made_again_with_a_line(compile_double, suffix, damage, caplog):
    run, asked = compile_double
    path = run()
    damaged = path.with_name(path.stem + suffix)
    if damage == "cut":
        damaged.write_bytes(damaged.read_bytes()[:3])
    else:
        damaged.unlink()
    with caplog.at_level(logging.INFO):
        run()
    assert len(asked) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert any("compiling Double" in line for line in lines)
    run()
    assert len(asked) == 2


def test_a_truncated_library_of_kernels_is_built_again(tmp_path, monkeypatch):
    built = []

    def link(commands):
        for command in commands:
            built.append(command)
            target = command[command.index("-o") + 1]
            with open(target, "w") as file:
                file.write("a library")

    monkeypatch.setattr(build, "_run_all", link)
    path = build.build(tmp_path, "native")
    count = len(built)
    assert build.build(tmp_path, "native") == path and len(built) == count
    path.write_text("a lib")
    assert build.build(tmp_path, "native") == path and len(built) == 2 * count
    assert path.read_text() == "a library"


def test_what_is_compiled_depends_on_no_loading():
    """An edit of hub.py or of a command recompiles nothing."""
    read = {
        name for module in (compiler.__name__, compiler.GRAFT) for name in import_closure(module)
    }
    others = ("models.", "data.", "commands.", "benchmark.", "analysis.", "study.")
    assert not [name for name in read if name.removeprefix("specdec.").startswith(others)]


def test_a_kernels_source_is_part_of_what_is_compiled(compile_double, monkeypatch):
    run, _ = compile_double
    before = run()
    monkeypatch.setattr(compiler, "source_digest", lambda: "other kernels")
    assert run() != before
    monkeypatch.undo()


def test_another_level_of_instructions_is_compiled_apart(compile_double, monkeypatch):
    run, _ = compile_double
    before = run()
    monkeypatch.setenv("SPECDEC_MARCH", "x86-64-v3")
    assert run() != before


@pytest.mark.skipif(sys.platform != "linux", reason="a process is copied on Linux alone")
def test_another_process_compiles_what_this_one_then_finds(compile_double):
    run, asked = compile_double
    assert not compiler.is_kept(run)

    def fail():
        raise RuntimeError("it will be asked for again, and then say so")

    with compiler.compiling_beside([fail, run]):
        pass
    assert compiler.is_kept(run) and run() and asked == []


@pytest.mark.skipif(sys.platform != "linux", reason="a process is copied on Linux alone")
def test_two_processes_share_what_is_to_be_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "available_cores", lambda: 2)

    def piece(number: int):
        path = tmp_path / str(number)

        def compile():
            with exclusive_lock(path.with_suffix(".lock"), lambda: None):
                if not path.exists():
                    if compiler._kept_only.get():
                        raise compiler.NotKept
                    time.sleep(0.3)
                    path.write_text(str(os.getpid()))

        return compile

    def fail():
        raise RuntimeError("it says so where it is asked for")

    pieces = [piece(number) for number in range(4)]
    compiler.compile_by_two(pieces)
    by = [int((tmp_path / str(number)).read_text()) for number in range(4)]
    assert by[0] == os.getpid() != by[3]
    monkeypatch.setattr(compiler, "compiling_beside", None)  # there is nothing left to share
    compiler.compile_by_two([*pieces, fail])


def test_a_copy_runs_nothing_that_it_compiled(monkeypatch, uncompiled):
    """Its threads were not copied: on two of them it waited for ever."""
    ran = []

    def compile_ahead(module, *rest):
        return lambda *given: ran.append(module) or module(*given)

    monkeypatch.setattr(fast_model, "compile_ahead", compile_ahead)
    wrapper = wrap(make_model())
    token = compiler._threads.set(2)
    try:
        fast_model.FastModel(wrapper, False).decide(Sampling(Greedy))
        assert not ran
    finally:
        compiler._threads.reset(token)
    fast_model.FastModel(wrapper, False).decide(Sampling(Greedy))
    assert ran


def test_a_copy_compiles_for_the_threads_of_the_process_it_is_of(compile_double):
    run, asked = compile_double
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with compiler.compiling_beside([run]):
            pass
        assert compiler.is_kept(run)
        torch.set_num_threads(1)
        assert not compiler.is_kept(run)
    finally:
        torch.set_num_threads(before)
