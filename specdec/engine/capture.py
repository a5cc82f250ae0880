"""A round as one CUDA graph: launched once, read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from specdec.engine.pieces import LIMITS_SIZE, STATE_SIZE, Round, RoundTensors
from specdec.models.cache import FixedCache
from specdec.profiling.timer import CUDATimerCollection

WARM_UPS = 3  # runs before the capture, in which compilers and allocators settle


class CapturedRound:
    """A round of K proposals, captured over caches and tensors that keep their place.

    With `timed`, events around the phases are part of the graph; without, there is no trace.
    """

    def __init__(
        self,
        round: Round,
        k: int,
        caches: dict[str, FixedCache],
        noise: torch.Tensor,
        timed: bool,
    ) -> None:
        """`noise` is that of any request of the same sampling."""
        device = noise.device
        self.caches = caches
        self._round, self._k = round, k
        self._state = torch.zeros(STATE_SIZE, dtype=torch.long, device=device)
        # A key has its own size; a table has a row a place, and no place lies past the cache.
        rows = max(caches["target"].slots, len(noise))
        buffers = {name: cache.first(cache.slots) for name, cache in caches.items()}
        self._on = RoundTensors(
            limits=torch.zeros(LIMITS_SIZE, dtype=torch.long, device=device),
            noise=noise.new_zeros(rows, *noise.shape[1:]),
            temperature=torch.ones((), dtype=torch.float64, device=device),
            target=buffers["target"],
            draft=buffers.get("draft", []),
        )
        self._timed = timed
        self._events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}
        self._graph = torch.cuda.CUDAGraph()
        self._capture()

    def begin(self, state, limits, noise, temperature) -> None:
        """Take up a run, before its first round."""
        self._state.copy_(state)
        self._on.limits.copy_(limits)
        self._on.noise[: len(noise)] = noise
        self._on.temperature.copy_(temperature)

    def replay(self) -> torch.Tensor:
        """Launch a round; its result `[K+4]` on the device."""
        self._graph.replay()
        return self._result

    def shorter(self, k: int) -> torch.Tensor:
        """A round of fewer proposals, where a context ends: not captured, on the same tensors."""
        return self._step(k, nullcontext)

    def read_times(self, timers: CUDATimerCollection) -> None:
        """Count the phases of a replayed round whose result has been waited for."""
        for name, (begin, end) in self._events.items():
            timers.add(name, begin.elapsed_time(end))

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(WARM_UPS):
                self._step(self._k, nullcontext)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._result = self._step(self._k, self._phase if self._timed else nullcontext)

    def _step(self, k: int, phase) -> torch.Tensor:
        result, state = self._round(k, self._state, self._on, phase)
        self._state.copy_(state)
        return result

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        begin, end = (torch.cuda.Event(enable_timing=True, external=True) for _ in range(2))
        self._events[name] = begin, end
        begin.record()
        yield
        end.record()
