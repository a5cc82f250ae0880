"""A round as one CUDA graph: launched once, read once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from specdec.decoding.pieces import STATE_SIZE
from specdec.profiling.timer import CUDATimerCollection

PHASES = ("draft", "verify", "sample")
WARM_UPS = 3  # runs before the capture, in which compilers and allocators settle


class CapturedRound:
    """The pieces of a round, captured over tensors that keep their place.

    With `timed`, events between the pieces are part of the graph; without, there is no trace.
    """

    def __init__(
        self,
        pieces: dict[str, Callable],
        buffers: dict[str, list[torch.Tensor]],
        noise: torch.Tensor,
        places: int,
        end_tokens: int,
        timed: bool,
    ) -> None:
        device = noise.device
        self._pieces, self._buffers = pieces, buffers
        self._state = torch.zeros(STATE_SIZE, dtype=torch.long, device=device)
        self._limits = torch.zeros(1 + end_tokens, dtype=torch.long, device=device)
        # A key has its own size; a table has a row a place, and no place lies past the cache.
        rows = max(places, len(noise))
        self._noise = noise.new_zeros(rows, *noise.shape[1:])
        self._temperature = torch.ones((), device=device)
        self._no_q = torch.zeros(0, device=device)
        self._events: list[torch.cuda.Event] = []
        if timed:
            self._events = [
                torch.cuda.Event(enable_timing=True, external=True) for _ in range(len(PHASES) + 1)
            ]
        self._graph = torch.cuda.CUDAGraph()
        self._capture()

    def begin(self, state, limits, noise, temperature) -> None:
        """Take up a run, before its first round."""
        self._state.copy_(state)
        self._limits.copy_(limits)
        self._noise[: len(noise)] = noise
        self._temperature.copy_(temperature)

    def replay(self) -> torch.Tensor:
        """Launch a round; its result `[K+2]` on the device."""
        self._graph.replay()
        return self._result

    def read_times(self, timers: CUDATimerCollection) -> None:
        """Count the phases of a round whose result has been waited for."""
        for name, (begin, end) in zip(PHASES, pairwise(self._events), strict=False):
            timers.add(name, begin.elapsed_time(end))

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(WARM_UPS):
                self._round()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._result = self._round()

    def _round(self) -> torch.Tensor:
        self._mark(0)
        block, q = self._state[1:2], self._no_q
        if "draft" in self._pieces:
            block, q = self._pieces["draft"](
                self._state, self._noise, self._temperature, self._buffers["draft"]
            )
        self._mark(1)
        logits = self._pieces["verify"](block, self._state, self._buffers["target"])
        self._mark(2)
        result, state = self._pieces["decide"](
            logits, block, q, self._state, self._limits, self._noise, self._temperature
        )
        self._state.copy_(state)
        self._mark(3)
        return result

    def _mark(self, place: int) -> None:
        if self._events:
            self._events[place].record()
