"""Peak memory per phase: resident memory on a CPU, the allocator's on a GPU."""

import sys

import pytest
import torch

from specdec.profiling import memory
from specdec.profiling.memory import MemoryTracker
from specdec.utils.errors import SpecdecError

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks restart on Linux only")

MB = 2**20


def allocate(megabytes: int, device: str = "cpu") -> None:
    """Fill that much memory and let it go."""
    torch.ones(megabytes * MB, dtype=torch.uint8, device=device)


def test_before_the_first_phase_there_is_no_peak():
    assert MemoryTracker("cpu").peak_mb == 0
    assert MemoryTracker("cpu").peaks_mb == {}


def test_the_peak_of_a_phase_holds_what_was_freed_before_its_end():
    tracker = MemoryTracker("cpu")
    with tracker.phase("prefill"):
        pass
    with tracker.phase("decode"):
        allocate(200)
    assert tracker.peaks_mb["decode"] >= tracker.peaks_mb["prefill"] + 150
    assert tracker.peak_mb == tracker.peaks_mb["decode"]


@needs_linux
def test_a_later_phase_does_not_inherit_the_peak_of_an_earlier_one():
    tracker = MemoryTracker("cpu")
    with tracker.phase("prefill"):
        allocate(200)
    with tracker.phase("decode"):
        pass
    assert tracker.peaks_mb["decode"] <= tracker.peaks_mb["prefill"] - 150


@needs_linux
def test_of_a_phase_used_twice_the_higher_peak_stays():
    tracker = MemoryTracker("cpu")
    with tracker.phase("decode"):
        allocate(200)
    first = tracker.peaks_mb["decode"]
    with tracker.phase("decode"):
        pass
    assert tracker.peaks_mb == {"decode": first}


def test_without_proc_the_peak_is_that_of_the_whole_process(monkeypatch):
    def missing(*_args, **_settings):
        raise FileNotFoundError("/proc/self")

    monkeypatch.setattr(memory.Path, "read_text", missing)
    monkeypatch.setattr(memory.Path, "write_text", missing)
    tracker = MemoryTracker("cpu")
    with tracker.phase("decode"):
        pass
    assert 50 < tracker.peak_mb < 100_000


def test_a_phase_inside_a_phase_is_an_error():
    tracker = MemoryTracker("cpu")
    with tracker.phase("decode"):
        with pytest.raises(SpecdecError, match="'draft' begins inside 'decode'"):
            with tracker.phase("draft"):
                pass


def test_a_phase_that_fails_is_recorded_and_closed():
    tracker = MemoryTracker("cpu")
    with pytest.raises(ZeroDivisionError):
        with tracker.phase("decode"):
            _ = 1 / 0
    with tracker.phase("decode"):
        pass
    assert tracker.peak_mb > 0


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_a_phase_has_the_peak_of_the_allocator():
    before = torch.cuda.memory_allocated() / MB
    tracker = MemoryTracker("cuda")
    with tracker.phase("prefill"):
        allocate(300, "cuda")
    with tracker.phase("decode"):
        allocate(100, "cuda")
    assert tracker.peaks_mb["prefill"] == pytest.approx(before + 300, abs=4)
    assert tracker.peaks_mb["decode"] == pytest.approx(before + 100, abs=4)
    assert tracker.peak_mb == tracker.peaks_mb["prefill"]


def test_on_a_gpu_what_the_allocator_reserved_stands_beside_what_was_in_use(monkeypatch):
    reserved = iter([900 * MB, 700 * MB])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 100 * MB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: next(reserved))
    tracker = MemoryTracker("cuda:0")
    for name in ("prefill", "decode"):
        with tracker.phase(name):
            pass
    assert tracker.peak_reserved_mb == 900
    assert tracker.peak_mb == 100
    assert MemoryTracker("cpu").peak_reserved_mb is None
