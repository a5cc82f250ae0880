"""Timers that do not disturb what they time.

On a GPU, CUDA events are put into the stream beside the work and read at the end, so the host
never waits in between. Elsewhere `time.perf_counter` reads the host's clock.
"""

from contextlib import AbstractContextManager, nullcontext
from time import perf_counter

import torch

from specdec.utils.errors import SpecdecError

Mark = float | torch.cuda.Event  # a moment: host seconds, or an event in the device's stream


def cuda_sync_time(device: torch.device | str | None = None) -> float:
    """Host seconds after all work on `device` (default: the GPU if there is one) is done."""
    device = _resolve(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _resolve(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _elapsed_ms(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float):
        return (end - begin) * 1e3
    end.synchronize()
    return begin.elapsed_time(end)


class CUDATimer:
    """Time one block: `with CUDATimer() as timer: ...`, then `timer.elapsed_ms`."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = _resolve(device)
        self._begin: Mark | None = None
        self._end: Mark | None = None

    def __enter__(self) -> "CUDATimer":
        self._end = None
        self._begin = _mark(self.device)
        return self

    def __exit__(self, *exception: object) -> None:
        self._end = _mark(self.device)

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds of the block; on a GPU the first reading waits for the block's work."""
        if self._begin is None or self._end is None:
            raise SpecdecError("CUDATimer: elapsed_ms was read before the `with` block ended")
        return _elapsed_ms(self._begin, self._end)


class _Phase:
    """Adds the span of each block to a list, in as few steps as there can be."""

    __slots__ = ("_begin", "_mark", "_spans")

    def __init__(self, spans: list[tuple[Mark, Mark]], device: torch.device) -> None:
        self._spans = spans
        self._mark = perf_counter if device.type != "cuda" else lambda: _mark(device)

    def __enter__(self) -> None:
        self._begin = self._mark()

    def __exit__(self, *exception: object) -> None:
        self._spans.append((self._begin, self._mark()))


class CUDATimerCollection:
    """Named phases, each the sum of its start-stop pairs; phases may nest or overlap.

    With `enabled=False` every method does nothing, so a decoder need not ask.
    """

    def __init__(self, device: torch.device | str | None = None, enabled: bool = True) -> None:
        self.device = _resolve(device)
        self.enabled = enabled
        self._running: dict[str, Mark] = {}
        self._spans: dict[str, list[tuple[Mark, Mark]]] = {}

    def start(self, name: str) -> None:
        if not self.enabled:
            return
        if name in self._running:
            raise SpecdecError(f"CUDATimerCollection: '{name}' was started twice; stop it first")
        self._spans.setdefault(name, [])
        self._running[name] = _mark(self.device)

    def stop(self, name: str) -> None:
        if not self.enabled:
            return
        end = _mark(self.device)
        if name not in self._running:
            raise SpecdecError(f"CUDATimerCollection: '{name}' was stopped but never started")
        self._spans[name].append((self._running.pop(name), end))

    def add(self, name: str, milliseconds: float) -> None:
        """Count time that was measured elsewhere."""
        if self.enabled:
            self._spans.setdefault(name, []).append((0.0, milliseconds / 1e3))

    def phase(self, name: str) -> AbstractContextManager[None]:
        """`with timers.phase("draft"): ...` times a block; one after the other may use it."""
        if not self.enabled:
            return nullcontext()
        return _Phase(self._spans.setdefault(name, []), self.device)

    def summary(self) -> dict[str, float]:
        """Milliseconds per phase, in the order of first start; what still runs is not counted.

        On a GPU this waits for the phases' work: call it at the end.
        """
        return {
            name: sum(_elapsed_ms(begin, end) for begin, end in spans)
            for name, spans in self._spans.items()
        }

    def __str__(self) -> str:
        phases = self.summary()
        width = max(map(len, phases), default=0)
        lines = [f"  {name:<{width}} : {ms:8.3f} ms" for name, ms in phases.items()]
        return "\n".join(["CUDATimerCollection:", *lines])
