"""Timers: host clock on a CPU, CUDA events on a GPU."""

import time

import pytest
import torch

from specdec.profiling.timer import CUDATimer, CUDATimerCollection, cuda_sync_time
from specdec.utils.errors import SpecdecError

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def busy(milliseconds: float) -> None:
    """Take at least that long, without sleeping: a sleep may end a little early."""
    end = time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < end:
        pass


@pytest.fixture
def timers() -> CUDATimerCollection:
    return CUDATimerCollection("cpu")


class TestSyncTime:
    def test_seconds_pass(self):
        before = cuda_sync_time("cpu")
        busy(2)
        assert 0.002 <= cuda_sync_time("cpu") - before < 1

    def test_the_default_device_is_whatever_there_is(self):
        assert isinstance(cuda_sync_time(), float)


class TestTimer:
    def test_a_block_takes_as_long_as_it_takes(self):
        with CUDATimer("cpu") as timer:
            busy(3)
        assert 3 <= timer.elapsed_ms < 1000

    def test_reading_twice_gives_the_same(self):
        with CUDATimer("cpu") as timer:
            pass
        assert timer.elapsed_ms == timer.elapsed_ms >= 0

    def test_reading_before_the_end_is_an_error(self):
        with CUDATimer("cpu") as timer:
            with pytest.raises(SpecdecError, match="before"):
                _ = timer.elapsed_ms

    def test_reading_a_timer_never_used_is_an_error(self):
        with pytest.raises(SpecdecError, match="before"):
            _ = CUDATimer("cpu").elapsed_ms

    def test_a_block_that_fails_is_timed_and_its_error_passes(self):
        with pytest.raises(ZeroDivisionError):
            with CUDATimer("cpu") as timer:
                busy(1)
                _ = 1 / 0
        assert timer.elapsed_ms >= 1

    def test_a_timer_used_again_forgets_the_first_block(self):
        timer = CUDATimer("cpu")
        with timer:
            busy(20)
        with timer:
            pass
        assert timer.elapsed_ms < 20

    def test_the_default_device_is_whatever_there_is(self):
        with CUDATimer() as timer:
            torch.ones(3).sum()
        assert timer.elapsed_ms >= 0


class TestCollection:
    def test_start_and_stop_of_one_name_add_up(self, timers):
        for _ in range(3):
            timers.start("draft")
            busy(2)
            timers.stop("draft")
        assert 6 <= timers.summary()["draft"] < 1000

    def test_what_happens_between_phases_is_not_counted(self, timers):
        with timers.phase("draft"):
            pass
        busy(20)
        with timers.phase("draft"):
            pass
        assert timers.summary()["draft"] < 20

    def test_phases_come_in_the_order_of_their_first_start(self, timers):
        for name in ("verify", "draft", "verify", "sample"):
            with timers.phase(name):
                pass
        assert list(timers.summary()) == ["verify", "draft", "sample"]

    def test_phases_may_overlap(self, timers):
        timers.start("round")
        timers.start("draft")
        timers.stop("round")
        timers.stop("draft")
        assert set(timers.summary()) == {"round", "draft"}

    def test_stop_without_start_is_an_error(self, timers):
        with pytest.raises(SpecdecError, match="'draft' was stopped but never started"):
            timers.stop("draft")

    def test_stopping_twice_is_an_error(self, timers):
        timers.start("draft")
        timers.stop("draft")
        with pytest.raises(SpecdecError, match="never started"):
            timers.stop("draft")

    def test_starting_twice_is_an_error(self, timers):
        timers.start("draft")
        with pytest.raises(SpecdecError, match="'draft' was started twice"):
            timers.start("draft")

    def test_a_phase_that_fails_is_stopped_and_counted(self, timers):
        with pytest.raises(ZeroDivisionError):
            with timers.phase("draft"):
                _ = 1 / 0
        with timers.phase("draft"):
            pass
        assert timers.summary()["draft"] >= 0

    def test_a_summary_can_be_read_again_and_grows(self, timers):
        with timers.phase("draft"):
            busy(1)
        first = timers.summary()
        assert timers.summary() == first
        with timers.phase("draft"):
            busy(1)
        assert timers.summary()["draft"] >= first["draft"] + 1

    def test_what_still_runs_is_not_counted(self, timers):
        timers.start("draft")
        busy(2)
        assert timers.summary() == {"draft": 0}

    def test_an_unused_collection_is_empty(self, timers):
        assert timers.summary() == {}
        assert str(timers) == "CUDATimerCollection:"

    def test_printed_it_is_a_table_of_milliseconds(self, timers, monkeypatch):
        monkeypatch.setattr(timers, "summary", lambda: {"draft": 1.2434, "verify": 4.8169})
        assert str(timers) == (
            "CUDATimerCollection:\n  draft  :    1.243 ms\n  verify :    4.817 ms"
        )

    def test_a_disabled_collection_does_nothing(self):
        timers = CUDATimerCollection("cpu", enabled=False)
        timers.stop("never started")
        timers.start("draft")
        timers.start("draft")
        with timers.phase("draft"):
            pass
        assert timers.summary() == {}


@pytest.mark.gpu
@needs_cuda
class TestOnCuda:
    @staticmethod
    def work() -> torch.Tensor:
        matrix = torch.randn(2048, 2048, device="cuda")
        for _ in range(20):
            matrix = matrix @ matrix / 2048
        return matrix

    def test_a_timer_measures_the_work_and_not_its_launch(self):
        self.work()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with CUDATimer() as timer:
            self.work()
        torch.cuda.synchronize()
        wall_ms = (time.perf_counter() - begin) * 1e3
        assert 0 < timer.elapsed_ms <= wall_ms * 1.05
        assert timer.elapsed_ms > wall_ms * 0.3

    def test_timing_never_waits_for_the_device(self):
        mode = torch.cuda.get_sync_debug_mode()
        matrix = torch.randn(64, 64, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            timers = CUDATimerCollection()
            for _ in range(3):
                with timers.phase("draft"), CUDATimer():
                    matrix = matrix @ matrix
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        assert timers.summary()["draft"] > 0

    def test_phases_add_up_to_about_the_whole(self):
        timers = CUDATimerCollection("cuda")
        self.work()
        with timers.phase("whole"):
            for name in ("draft", "verify"):
                with timers.phase(name):
                    self.work()
        parts = timers.summary()
        assert parts["draft"] + parts["verify"] == pytest.approx(parts["whole"], rel=0.2)

    def test_sync_time_waits_for_the_device(self):
        torch.cuda.synchronize()
        with CUDATimer() as timer:
            begin = cuda_sync_time("cuda")
            self.work()
            seconds = cuda_sync_time("cuda") - begin
        assert seconds * 1e3 == pytest.approx(timer.elapsed_ms, rel=0.2)

    def test_a_collection_on_the_cpu_uses_the_host_clock_beside_a_gpu(self):
        timers = CUDATimerCollection("cpu")
        with timers.phase("host"):
            busy(2)
        assert timers.summary()["host"] >= 2
