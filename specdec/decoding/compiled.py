"""The fast engine: rounds of fixed shape over fixed caches, compiled (CPU) or captured (GPU).

It takes over after the prefill, which is the reference's own, and gives the reference's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from specdec.decoding.capture import PHASES, CapturedRound
from specdec.decoding.compiler import compile_ahead
from specdec.decoding.generation import Generation, Round
from specdec.decoding.narrow import lay_out_weights, narrow_operators
from specdec.decoding.pieces import (
    STATE_SIZE,
    TARGET_LENGTH,
    Decision,
    DraftBlock,
    TargetPass,
)
from specdec.decoding.sampling import Greedy, Sampler
from specdec.models.cache import SLOTS_STEP, FixedCache, GrowingCache
from specdec.models.wrapper import ModelWrapper, Session

END_TOKENS = 8  # that a round looks at, so that one shape serves all models


class CompiledEngine:
    """The pieces of a decoder, compiled, and its caches; without a draft, those of the baseline."""

    def __init__(self, target: ModelWrapper, draft: ModelWrapper | None, k: int) -> None:
        self.wrappers = {"target": target} | ({} if draft is None else {"draft": draft})
        self.k = k
        self.device = target.device
        self.preparation_seconds = 0.0
        self._pieces: dict[tuple, Callable] = {}
        self._samples: dict[str, tuple[torch.Tensor, GrowingCache]] = {}
        self.caches: dict[str, FixedCache] = {}
        self._captured: dict[tuple, CapturedRound] = {}

    def prepare(self, piece: str, sampler: Sampler | None) -> Callable:
        """The compiled piece "verify", "draft" or "decide", the latter for this kind of sampling.

        Raises:
            Exception: what the compiler says where it cannot.
        """
        address = (piece,) if piece == "verify" else (piece, kind(sampler))
        if address not in self._pieces:
            began = perf_counter()
            module = self._module(piece, sampler)
            if self.device.type == "cpu":
                compiled = self._compile_for_cpu(piece, module, sampler)
            else:
                compiled = torch.compile(module, fullgraph=True, dynamic=False)
            self._pieces[address] = compiled
            self.preparation_seconds += perf_counter() - began
        return self._pieces[address]

    def make_ready(self, run: Generation, slots: int, whole_round: bool) -> None:
        """Have room for `slots` tokens in each cache, and start the run's clock anew.

        Without `whole_round` only the target's pass is compiled, and only its cache is fixed.
        """
        self.reserve(slots, list(self.wrappers) if whole_round else ["target"])
        if whole_round and self.device.type == "cuda":
            self.captured(run.sampler, run.timers.enabled)
        run.start_clock()

    def reserve(self, slots: int, names: list[str]) -> None:
        """Have room for `slots` tokens in the caches of these models."""
        for name in names:
            if name not in self.caches or self.caches[name].slots < slots:
                self.caches[name] = FixedCache(self._sample(name)[1], slots)
                self._captured.clear()  # a graph holds the places of the caches

    def take_over(self, target: Session, draft: Session | None) -> None:
        """Hold what these have read."""
        self.caches["target"].fill(target.cache)
        if draft is not None:
            self.caches["draft"].fill(draft.cache)

    def captured(self, sampler: Sampler, timed: bool) -> CapturedRound:
        """The round as one CUDA graph, over the caches as they are reserved now."""
        address = (kind(sampler), timed)
        if address not in self._captured:
            began = perf_counter()
            pieces = {name: self.prepare(name, sampler) for name in self.piece_names()}
            buffers = {name: cache.first(cache.slots) for name, cache in self.caches.items()}
            slots = self.caches["target"].slots
            self._captured[address] = CapturedRound(
                pieces, buffers, sampler.noise, slots, END_TOKENS, timed
            )
            self.preparation_seconds += perf_counter() - began
        return self._captured[address]

    def piece_names(self) -> list[str]:
        """The pieces of a round, in order."""
        return (["draft"] if "draft" in self.wrappers else []) + ["verify", "decide"]

    def _sample(self, name: str) -> tuple[torch.Tensor, GrowingCache]:
        """Logits `[1, V]` and cache of a pass over one token: their shapes and dtypes."""
        if name not in self._samples:
            wrapper = self.wrappers[name]
            if self.device.type == "cpu":
                lay_out_weights(wrapper.model)
            logits, cache = wrapper.forward(torch.zeros(1, 1, dtype=torch.long))
            self._samples[name] = logits[0], cache
        return self._samples[name]

    def _module(self, piece: str, sampler: Sampler) -> torch.nn.Module:
        """A piece as it is before compilation."""
        size = self.wrappers["target"].vocab_size
        if piece == "verify":
            return TargetPass(self.wrappers["target"].model, size)
        if piece == "decide":
            return Decision(*kind(sampler))
        draft = self.wrappers["draft"]
        return DraftBlock(draft.model, min(draft.vocab_size, size), size, self.k, *kind(sampler))

    def _compile_for_cpu(self, piece: str, module: torch.nn.Module, sampler: Sampler) -> Callable:
        arguments, shapes = self._example(piece, sampler)
        if piece == "decide":
            identity = {"sampler": str(kind(sampler))}
            return compile_ahead(module, arguments, shapes, identity)
        model = self.wrappers["target" if piece == "verify" else "draft"].model
        size = self.wrappers["target"].vocab_size
        config = model.config.to_dict()
        config.pop("_name_or_path", None)  # where the model lies changes no code
        identity = {"model": config, "vocabulary": size}
        if piece == "draft":
            own = self.wrappers["draft"].vocab_size
            identity |= {"sampler": str(kind(sampler)), "k": self.k, "own": own}
        with narrow_operators(model):
            return compile_ahead(module, arguments, shapes, identity)

    def _example(self, piece: str, sampler: Sampler) -> tuple[tuple, tuple]:
        """Arguments of the shapes to come, and which of their sizes vary."""
        slots = torch.export.Dim("slots", min=2, max=2**24)
        places = torch.export.Dim("places", min=2, max=2**24)
        state, block = torch.zeros(STATE_SIZE, dtype=torch.long), torch.zeros(self.k + 1).long()
        if piece == "verify":
            buffers = FixedCache(self._sample("target")[1], SLOTS_STEP).first(SLOTS_STEP)
            return (block, state, buffers), (None, None, [{0: slots}] * len(buffers))
        noise = sampler.noise[:1].expand(SLOTS_STEP, *sampler.noise.shape[1:]).contiguous()
        if piece == "decide":
            logits = self._sample("target")[0][:, : self.wrappers["target"].vocab_size]
            q = torch.zeros(0)
            if "draft" in self.wrappers and sampler.asks_for_q:
                q = torch.zeros(self.k, logits.shape[1], dtype=_warped_dtype(logits))
            logits = logits.expand(self.k + 1, -1).contiguous()
            limits = torch.zeros(1 + END_TOKENS, dtype=torch.long)
            arguments = (logits, block, q, state, limits, noise, torch.ones(()))
            return arguments, (None, None, None, None, None, {0: places}, None)
        buffers = FixedCache(self._sample("draft")[1], SLOTS_STEP).first(SLOTS_STEP)
        grow = [{0: slots}] * len(buffers)
        return (state, noise, torch.ones(()), buffers), (None, {0: places}, None, grow)


class CompiledRounds:
    """The rounds of one run, after its prefill."""

    def __init__(
        self,
        engine: CompiledEngine,
        run: Generation,
        target: Session,
        draft: Session | None,
        tail: list[int],
    ) -> None:
        """Go on after sessions that have read the prompt (the draft all but its last token).

        `tail` is the last token of the prompt as the draft reads it, and the first emitted.
        """
        self._engine, self._run = engine, run
        draft_length = draft.length if draft is not None else 0
        state = torch.tensor([*tail, draft_length, target.length, run.position, 0])
        limits = limits_of(run)
        temperature = torch.tensor(run.sampler.warp.temperature or 1.0)
        self._captured = None
        if engine.device.type == "cuda":
            self._captured = engine.captured(run.sampler, run.timers.enabled)
            self._captured.begin(state, limits, run.sampler.noise, temperature)
        else:
            self._state, self._limits, self._temperature = state, limits, temperature
            self._verify = engine.prepare("verify", run.sampler)
            self._decide = engine.prepare("decide", run.sampler)
            self._draft = engine.prepare("draft", run.sampler) if draft is not None else None
            self._no_q = torch.zeros(0)
            phases = PHASES if draft is not None else PHASES[1:]
            self._times = {name: run.timers.phase(name) for name in phases}
            # Tokens in the caches before the first round: each round adds as many to both.
            self._lengths = {"target": target.length}
            if draft is not None:
                self._lengths["draft"] = draft_length
            self._seen_to = 0  # the place in the output up to which the views of the caches serve

    def next(self) -> Round:
        """One round; its result is the one thing that the host reads."""
        result = self._call() if self._captured is None else self._captured.replay()
        kept, *emitted = result.tolist()
        if self._captured is not None:
            self._captured.read_times(self._run.timers)
        return Round(kept, emitted[: kept + 1], min(self._engine.k, self._run.remaining))

    def _call(self) -> torch.Tensor:
        run, state = self._run, self._state
        noise, temperature = run.sampler.noise, self._temperature
        if run.position > self._seen_to:
            self._look_further()
        if self._draft is None:
            block, q = state[1:2], self._no_q
        else:
            with self._times["draft"]:
                block, q = self._draft(state, noise, temperature, self._views["draft"])
        with self._times["verify"]:
            logits = self._verify(block, state, self._views["target"])
        with self._times["sample"]:
            result, self._state = self._decide(
                logits, block, q, state, self._limits, noise, temperature
            )
        return result

    def _look_further(self) -> None:
        """See as much of the caches as this round can reach, and some more."""
        # What a cache holds after the prefill, and what this round has added when it is done.
        position, k = self._run.position, self._engine.k
        self._views = {
            name: self._engine.caches[name].first(length + position + k)
            for name, length in self._lengths.items()
        }
        self._seen_to = min(
            len(self._views[name][0]) - length - k for name, length in self._lengths.items()
        )


class CompiledSession:
    """The target's compiled pass as a `Session` that reads K + 1 tokens at a time."""

    def __init__(self, engine: CompiledEngine, target: Session) -> None:
        """Take over from a session; the engine has room for what is to come."""
        self._engine = engine
        self._pass = engine.prepare("verify", None)
        engine.take_over(target, None)
        self.length = target.length

    def extend(self, sequence: torch.Tensor, keep: int) -> torch.Tensor:
        """Read what of `sequence` is not yet read; returns as `feed`."""
        return self.feed(sequence[self.length :], keep)

    def feed(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Read tokens `[K+1]` that follow those read before; the logits `[K+1, V]` of all."""
        state = torch.zeros(STATE_SIZE, dtype=torch.long)
        state[TARGET_LENGTH] = self.length
        self.length += len(tokens)
        buffers = self._engine.caches["target"].first(self.length)
        return self._pass(tokens, state.to(tokens.device), buffers)

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length


def kind(sampler: Sampler) -> tuple[type[Sampler], int, float]:
    """What of a sampler is in the code, and not in its noise and temperature."""
    if isinstance(sampler, Greedy):
        return type(sampler), 0, 1.0
    return type(sampler), sampler.warp.top_k, sampler.warp.top_p


def limits_of(run: Generation) -> torch.Tensor:
    """The budget and end tokens of a run, `[1 + END_TOKENS]`; -1 is no token.

    Of more end tokens the first count: the host, which reads every round, looks at all of them.
    """
    ends = sorted(run.end_ids)[:END_TOKENS]
    return torch.tensor([run.max_new_tokens, *ends, *[-1] * (END_TOKENS - len(ends))])


def _warped_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
