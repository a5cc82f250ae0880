"""Rounds, and passes that the host drives, as CUDA graphs: each launched at once.

A pass reads every slot of a cache that it is shown, so there is a graph for each of a few lengths
of text (`lengths`): all of them over the beginning of the same caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from specdec.engine.pieces import LIMITS_SIZE, STATE_SIZE, Round, RoundTensors
from specdec.models.cache import FixedCache
from specdec.profiling.timer import CUDATimerCollection

WARM_UPS = 3  # runs before the capture, in which compilers and allocators settle
SHORTEST = 256  # slots of the first graph; each further one has twice as many
SAID = 3  # numbers that a round's result has besides its K + 1 tokens


def on_device(device: torch.device) -> AbstractContextManager:
    """Graphs, streams and events go to the current device: let it be this one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def lengths(slots: int) -> list[int]:
    """How many slots of a cache the graphs see, from few to all."""
    shorter = []
    while SHORTEST << len(shorter) < slots:
        shorter.append(SHORTEST << len(shorter))
    return [*shorter, slots]


def _record(
    graph: torch.cuda.CUDAGraph,
    step: Callable[[Callable[[str], AbstractContextManager]], None],
    phase: Callable[[str], AbstractContextManager],
    device: torch.device,
    pool: tuple[int, int],
) -> None:
    """Capture `step(phase)` after a few runs of it, on a stream of its own."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(WARM_UPS):
            step(nullcontext)
    torch.cuda.current_stream(device).wait_stream(stream)
    with torch.no_grad(), torch.cuda.graph(graph, pool, stream):
        step(phase)


class CapturedPass:
    """A model's pass over a few tokens as graphs, over a cache that keeps its place.

    There is a graph for each of a few numbers of tokens; fewer are padded behind themselves, where
    none of them looks and where the next pass writes.
    """

    def __init__(
        self,
        run: Callable,
        cache: FixedCache,
        rows: Sequence[int],
        context: int | None,
        pool: tuple[int, int],
    ) -> None:
        """`run` is the compiled `ModelPass`, `rows` are the numbers of tokens, `context` is how
        many the model's positions reach."""
        self.cache, self._rows = cache, sorted(rows)
        self._reach = min(cache.slots, context or cache.slots)
        (some, *_) = cache.beginning(1)
        self._tokens = torch.zeros(max(rows), dtype=torch.long, device=some.device)
        self._length = torch.zeros((), dtype=torch.long, device=some.device)
        with torch.no_grad():
            logits, _, *hidden = run(self._tokens, self._length, cache.beginning(cache.slots))
        # Outside of the pool, as the result of a round.
        self._given = [torch.zeros_like(given) for given in (logits, *hidden)]
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._slots = lengths(cache.slots)
        for slots in reversed(self._slots):
            seen = cache.beginning(slots)
            for n in reversed(self._rows):
                graph = self._graphs[slots, n] = torch.cuda.CUDAGraph()

                def step(phase, n=n, seen=seen) -> None:
                    logits, _, *hidden = run(self._tokens[:n], self._length, seen)
                    for kept, given in zip(self._given, (logits, *hidden), strict=True):
                        kept[:n].copy_(given)

                _record(graph, step, nullcontext, some.device, pool)

    def fits(self, count: int, length: int) -> bool:
        """Whether there is a graph for `count` tokens behind `length` cached ones."""
        return count <= self._rows[-1] and length + self._padded(count) <= self._reach

    def replay(self, tokens: torch.Tensor, length: int) -> list[torch.Tensor]:
        """Logits `[n, V]` of tokens `[n]` and the hidden states that the pass is tapped at,
        launched at once; copies of what the graph gave."""
        count, rows = len(tokens), self._padded(len(tokens))
        self._tokens[:count].copy_(tokens)
        self._length.fill_(length)
        slots = next(slots for slots in self._slots if slots >= length + rows)
        self._graphs[slots, rows].replay()
        return [given[:count].clone() for given in self._given]

    def _padded(self, count: int) -> int:
        return next(rows for rows in self._rows if rows >= count)


@dataclass
class CapturedPasses:
    """The passes of a round that the host drives, by role: "target" and, where it is compiled,
    "draft"."""

    passes: dict[str, CapturedPass]

    @property
    def caches(self) -> dict[str, FixedCache]:
        return {role: captured.cache for role, captured in self.passes.items()}


@dataclass
class _Graph:
    """A captured round over the first `slots` of the caches."""

    slots: int
    on: RoundTensors
    graph: torch.cuda.CUDAGraph
    events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin, end = (torch.cuda.Event(enable_timing=True, external=True) for _ in range(2))
        self.events[name] = begin, end
        begin.record()
        yield
        end.record()


class CapturedRound:
    """A round of K proposals, captured over caches and tensors that keep their place.

    With `timed`, events around the phases are part of the graphs; without, there is no trace.
    """

    passes: dict[str, CapturedPass] = {}  # none by itself

    def __init__(
        self,
        round: Round,
        k: int,
        caches: dict[str, FixedCache],
        noise: torch.Tensor,
        timed: bool,
        pool: tuple[int, int],
    ) -> None:
        """`noise` is that of any request of the same sampling; `pool` holds what is in between."""
        self.caches, self.device = caches, noise.device
        self._round, self._k, self._timed, self._pool = round, k, timed, pool
        new = {"dtype": torch.long, "device": self.device}
        self._state = torch.zeros(STATE_SIZE, **new)
        # Outside of the pool, whose memory the graphs write one after the other.
        self._result = torch.zeros(SAID + k + 1, **new)
        self._limits = torch.zeros(LIMITS_SIZE, **new)
        # A key has its own size; a table has a row a place, and no place lies past the cache.
        rows = max(caches["target"].slots, len(noise))
        self._noise = noise.new_zeros(rows, *noise.shape[1:])
        self._temperature = torch.ones((), dtype=torch.float64, device=self.device)
        # The longest first: the others find all the memory that they need in the pool.
        most = max(cache.slots for cache in caches.values())
        self._graphs = [self._capture(slots) for slots in reversed(lengths(most))][::-1]
        self._replayed = self._graphs[-1]

    def begin(self, state, limits, noise, temperature) -> None:
        """Take up a run, before its first round."""
        self._state.copy_(state)
        self._limits.copy_(limits)
        self._noise[: len(noise)] = noise
        self._temperature.copy_(temperature)

    def replay(self, reach: int) -> torch.Tensor:
        """Launch a round that writes no further than slot `reach`; its result `[K+4]`."""
        self._replayed = next(graph for graph in self._graphs if graph.slots >= reach)
        self._replayed.graph.replay()
        return self._result

    def shorter(self, k: int) -> torch.Tensor:
        """A round of fewer proposals, where a context ends: not captured, on the same tensors."""
        return self._step(k, self._graphs[-1].on, nullcontext)

    def read_times(self, timers: CUDATimerCollection) -> None:
        """Count the phases of a replayed round whose result has been waited for."""
        for name, (begin, end) in self._replayed.events.items():
            timers.add(name, begin.elapsed_time(end))

    def _capture(self, slots: int) -> _Graph:
        seen = {name: cache.beginning(slots) for name, cache in self.caches.items()}
        on = RoundTensors(
            self._limits, self._noise, self._temperature, seen["target"], seen.get("draft", [])
        )
        captured = _Graph(slots, on, torch.cuda.CUDAGraph())

        def step(phase) -> None:
            self._result.copy_(self._step(self._k, on, phase))

        phase = captured.phase if self._timed else nullcontext
        _record(captured.graph, step, phase, self.device, self._pool)
        return captured

    def _step(self, k: int, on: RoundTensors, phase) -> torch.Tensor:
        result, state = self._round(k, self._state, on, phase)
        self._state.copy_(state)
        return result
