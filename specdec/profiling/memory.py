"""Peak memory per phase: of the device's allocator on a GPU, of the process elsewhere."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from specdec.utils.errors import SpecdecError

MB = 2**20
KB = 2**10


class MemoryTracker:
    """Peak memory of named phases, in MB (2^20 bytes).

    On a GPU it is what torch's allocator held at most during the phase, elsewhere the resident
    memory of the whole process. Nothing is measured between a phase's begin and its end, so
    tracking costs some 0.1 ms a phase and nothing a step. Phases do not nest.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.peaks_mb: dict[str, float] = {}
        self.peak_reserved_mb: float | None = None  # of a GPU: what graphs hold counts here alone
        self._running: str | None = None

    @property
    def peak_mb(self) -> float:
        """The highest peak of all phases; 0 before the first has ended."""
        return max(self.peaks_mb.values(), default=0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Track the block; of a name used again the higher peak stays."""
        if self._running is not None:
            raise SpecdecError(
                f"MemoryTracker: phase '{name}' begins inside '{self._running}'; phases do not nest"
            )
        self._running = name
        self._reset_peak()
        try:
            yield
        finally:
            self._running = None
            self.peaks_mb[name] = max(self._read_peak_mb(), self.peaks_mb.get(name, 0.0))
            if self.device.type == "cuda":
                reserved = torch.cuda.max_memory_reserved(self.device) / MB
                self.peak_reserved_mb = max(reserved, self.peak_reserved_mb or 0.0)

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_resident_peak()

    def _read_peak_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MB
        return _resident_peak_mb()


def _reset_resident_peak() -> None:
    """Begin the peak anew where the system can; elsewhere it stays the peak since the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM and nothing else
    except OSError:
        pass


def _resident_peak_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (MB if sys.platform == "darwin" else KB)  # macOS counts bytes, others KB
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / KB  # "VmHWM:  123456 kB"
