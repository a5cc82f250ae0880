"""What every decoder does around its loop: check a request, hand tokens over, make the result."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from specdec.method.noise import request_key
from specdec.method.sampling import Sampling, Warp, make_noise
from specdec.models.wrapper import ModelWrapper, Session
from specdec.profiling.memory import MemoryTracker
from specdec.profiling.metrics import GenerationResult
from specdec.profiling.timer import CUDATimerCollection
from specdec.utils.errors import SpecdecError

MODEL_END = object()  # "the end tokens that the model itself names"


@dataclass(frozen=True)
class Request:
    """What one generation is asked for; `make_request` checks it."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    warp: Warp = Warp()
    seed: int | None = None  # None draws a fresh one
    end_ids: frozenset[int] = frozenset()
    on_tokens: Callable[[list[int]], None] | None = None
    draft_prompt_ids: tuple[int, ...] | None = None
    timed_phases: bool = True


def make_request(
    target: ModelWrapper,
    prompt_ids,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    eos_token_id=MODEL_END,
    on_tokens=None,
    draft_prompt_ids=None,
    timed_phases: bool = True,
) -> Request:
    """The request that the arguments of `Decoder.generate` describe.

    Raises:
        SpecdecError: for anything that is not what `generate` says, or past the target's context.
    """
    max_new_tokens = _whole(max_new_tokens, "max_new_tokens")
    if max_new_tokens < 1:
        raise SpecdecError(f"max_new_tokens {max_new_tokens} is below 1")
    prompt = _prompt(prompt_ids, "the prompt")
    if max(prompt) >= target.logit_size or min(prompt) < 0:
        raise SpecdecError(
            f"the prompt holds a token id outside the vocabulary of {target.name}; "
            "encode it with that model's tokenizer"
        )
    check_context(target, len(prompt) + max_new_tokens, "prompt + max_new_tokens")
    own = None if draft_prompt_ids is None else _prompt(draft_prompt_ids, "the draft's prompt")
    ends = target.end_token_ids if eos_token_id is MODEL_END else _end_ids(eos_token_id)
    try:
        warp = Warp(float(temperature), _whole(top_k, "top_k"), float(top_p))
    except (TypeError, ValueError) as error:
        raise SpecdecError(
            f"temperature {temperature!r} and top_p {top_p!r} must be numbers"
        ) from error
    return Request(prompt, max_new_tokens, warp, seed, ends, on_tokens, own, timed_phases)


class Round(NamedTuple):
    """What a round gave: how many proposals were kept, the `kept + 1` tokens, how many of the
    proposals were real and within the budget, and how many passes of the draft it took."""

    kept: int
    tokens: list[int]
    proposed: int
    draft_steps: int


class Generation:
    """One request on its way: the sequence so far, what was handed over and when.

    `position` is the place in the output of the next token. `open(role, wrapper)` gives the session
    that reads with a model, "target" or "draft", in this run.
    """

    def __init__(
        self,
        target: ModelWrapper,
        request: Request,
        sampling: Sampling,
        draft_tokens: int = 0,
        synthetic_acceptance: float | None = None,
        open: Callable[[str, ModelWrapper], Session] = lambda role, wrapper: Session(wrapper),
    ) -> None:
        self.open = open
        self.max_new_tokens = request.max_new_tokens
        self.end_ids = request.end_ids
        self.prompt_length = len(request.prompt_ids)
        self._reach = _reach(target)
        self.ids: list[int] = []
        self.latencies: list[float] = []
        self.rounds: list[Round] = []
        self.finish_reason: str | None = None
        self._on_tokens = request.on_tokens

        device, slots = target.device, request.max_new_tokens + draft_tokens + 1
        self._sequence = torch.zeros(self.prompt_length + slots, dtype=torch.long, device=device)
        self._sequence[: self.prompt_length] = torch.tensor(request.prompt_ids)
        self._written = 0  # of `ids` into `_sequence`
        key = request_key(request.seed, request.prompt_ids)
        noise = make_noise(sampling, key, slots, device, synthetic_acceptance)
        temperature = torch.tensor(request.warp.temperature or 1.0, dtype=torch.float64)
        self.sampler = sampling.sampler(temperature.to(device), noise)
        self.timers = CUDATimerCollection(device, enabled=request.timed_phases)
        self.memory = MemoryTracker(device)
        self.start_clock()

    def start_clock(self) -> None:
        """Count latencies from now on."""
        self._mark = perf_counter()

    @property
    def position(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        return self.prompt_length + len(self.ids)

    @property
    def prompt(self) -> torch.Tensor:
        return self._sequence[: self.prompt_length]

    @property
    def decided(self) -> torch.Tensor:
        """The prompt and what was emitted after it, `[length]`, on the device.

        It is brought up to date where somebody looks at it: a compiled round never does.
        """
        if self._written < len(self.ids):
            begin = self.prompt_length + self._written
            self._sequence[begin : self.length] = torch.tensor(self.ids[self._written :])
            self._written = len(self.ids)
        return self._sequence[: self.length]

    @property
    def remaining(self) -> int:
        return self.max_new_tokens - len(self.ids)

    @property
    def room(self) -> int:
        """How many tokens the target's context holds behind the decided ones.

        At least `remaining`, since a request past the context is refused.
        """
        return sys.maxsize if self._reach is None else self._reach - self.length

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def counted(self, tokens: list[int]) -> list[int]:
        """What of tokens that follow is text: up to the first end token and the budget."""
        tokens = tokens[: self.remaining]
        for i, token in enumerate(tokens):
            if token in self.end_ids:
                return tokens[: i + 1]
        return tokens

    def hand_over(self, tokens: list[int]) -> int:
        """Emit tokens, up to the first end token and the budget; how many that are.

        The first token carries the time since the last hand-over, the others 0: that is how they
        reach a reader. The caller has read the tokens from the device, so the clock is right.
        """
        elapsed = perf_counter() - self._mark
        tokens = self.counted(tokens)
        self.ids += tokens
        self.latencies += [elapsed] + [0.0] * (len(tokens) - 1)
        if tokens[-1] in self.end_ids:
            self.finish_reason = "stop"
        elif not self.remaining:
            self.finish_reason = "length"
        if self._on_tokens is not None:
            self._on_tokens(tokens)
        self._mark = perf_counter()  # what the reader does with the tokens is not decoding
        return len(tokens)

    def take(self, round: Round) -> None:
        """Emit what a round gave, and count it as far as the text goes."""
        emitted = self.hand_over(round.tokens)
        if self.finish_reason == "stop":  # what was proposed behind an end token is no text
            round = round._replace(
                kept=min(round.kept, emitted), proposed=min(round.proposed, emitted)
            )
        self.rounds.append(round)

    def result(self, **others) -> GenerationResult:
        """The finished result; `others` are the fields that the run does not know."""
        return GenerationResult(
            generated_ids=self.ids,
            per_token_latencies=self.latencies,
            total_time=sum(self.latencies),
            time_to_first_token=self.latencies[0],
            peak_memory_mb=self.memory.peak_mb,
            phase_times_ms=self.timers.summary(),
            phase_peak_memory_mb=self.memory.peaks_mb,
            peak_reserved_mb=self.memory.peak_reserved_mb,
            finish_reason=self.finish_reason,
            **others,
        )


def check_context(wrapper: ModelWrapper, tokens: int, made_of: str) -> None:
    """Refuse a request that runs past the positions a model has, or across a change of them."""
    limit, original = wrapper.context_length, _rescaled_at(wrapper)
    if limit is not None and tokens > limit:
        raise SpecdecError(
            f"{made_of} is {tokens} tokens, but the context of {wrapper.name} is {limit}; "
            "shorten the prompt or lower max_new_tokens"
        )
    if original is not None and tokens > original:
        raise SpecdecError(
            f"{made_of} is {tokens} tokens, past the {original} at which {wrapper.name} "
            "rescales its rotary positions: a block across that length differs from single "
            "steps, so the output would not be the target's; shorten the prompt or lower "
            "max_new_tokens"
        )


def _reach(wrapper: ModelWrapper) -> int | None:
    """How many tokens a block may reach to; None where nothing says."""
    limits = (wrapper.context_length, _rescaled_at(wrapper))
    return min((limit for limit in limits if limit is not None), default=None)


def _rescaled_at(wrapper: ModelWrapper) -> int | None:
    """The length at which a model changes its rotary positions, if it does."""
    rope = getattr(wrapper.model.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return None
    return rope.get("original_max_position_embeddings") or wrapper.context_length


def _prompt(given, what: str) -> tuple[int, ...]:
    ids = _token_ids(given, what)
    if not ids:
        raise SpecdecError(f"{what} is empty; give at least one token to continue from")
    return ids


def _end_ids(given) -> frozenset[int]:
    if given is None:
        return frozenset()
    if isinstance(given, set | frozenset):
        given = list(given)
    return frozenset(_token_ids(given, "eos_token_id", scalar=True))


def _token_ids(given, what: str, scalar: bool = False) -> tuple[int, ...]:
    """Integers of any kind: a list, an array or a tensor `[n]` or `[1, n]`, or (`scalar`) one."""
    wanted = f"give {'a token id or ' if scalar else ''}token ids, [n] or [1, n]"
    if isinstance(given, str | bytes):
        raise SpecdecError(f"{what} is text; {wanted}, as the target's tokenizer writes them")
    try:
        ids = torch.as_tensor(given if isinstance(given, torch.Tensor) else np.asarray(given))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise SpecdecError(f"{what} is no row of integers; {wanted}") from error
    if ids.numel() == 0:
        return ()
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise SpecdecError(f"{what} holds no integers but {ids.dtype}; {wanted}")
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.dim() != 1 and not (scalar and ids.dim() == 0):
        raise SpecdecError(f"{what} has the shape {list(ids.shape)}; {wanted}")
    return tuple(ids.reshape(-1).tolist())


def _whole(given, what: str) -> int:
    try:
        return operator.index(given)
    except TypeError as error:
        raise SpecdecError(f"{what} {given!r} is not a whole number") from error
