"""What every decoder does around its loop: check a request, hand tokens over, make the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import NamedTuple

import torch

from specdec.decoding.noise import request_key
from specdec.decoding.sampling import Warp, make_sampler
from specdec.models.wrapper import ModelWrapper
from specdec.profiling.memory import MemoryTracker
from specdec.profiling.metrics import GenerationResult
from specdec.profiling.timer import CUDATimerCollection
from specdec.utils.errors import SpecdecError

MODEL_END = object()  # "the end tokens that the model itself names"


class Round(NamedTuple):
    """What a round gave: how many proposals were kept, the `kept + 1` tokens, how many of the
    proposals were real and within the budget."""

    kept: int
    tokens: list[int]
    proposed: int


class Generation:
    """One request on its way: the sequence so far, what was handed over and when.

    `position` is the place in the output of the next token.
    """

    def __init__(
        self,
        wrapper: ModelWrapper,
        prompt_ids: torch.Tensor | Iterable[int],
        max_new_tokens: int,
        warp: Warp,
        seed: int | None,
        eos_token_id,
        on_tokens: Callable[[list[int]], None] | None,
        draft_tokens: int = 0,
        method: str = "rejection",
        synthetic_acceptance: float | None = None,
        timed_phases: bool = True,
    ) -> None:
        prompt = torch.as_tensor(prompt_ids, dtype=torch.long).reshape(-1)
        _check(wrapper, prompt, max_new_tokens)
        self.max_new_tokens = max_new_tokens
        self.end_ids = _end_ids(wrapper, eos_token_id)
        self.prompt_length = len(prompt)
        self.ids: list[int] = []
        self.latencies: list[float] = []
        self.finish_reason: str | None = None
        self._on_tokens = on_tokens

        slots = max_new_tokens + draft_tokens + 1
        self._sequence = torch.zeros(len(prompt) + slots, dtype=torch.long, device=wrapper.device)
        self._sequence[: len(prompt)] = prompt
        self._written = 0  # of `ids` into `_sequence`
        key = request_key(seed, prompt.tolist())
        self.sampler = make_sampler(warp, key, slots, wrapper.device, method, synthetic_acceptance)
        self.timers = CUDATimerCollection(wrapper.device, enabled=timed_phases)
        self.memory = MemoryTracker(wrapper.device)
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
    def sequence(self) -> torch.Tensor:
        """A buffer `[prompt + max_new_tokens + K + 1]` on the device: `length` tokens are decided.

        It is brought up to date where somebody looks at it: a compiled round never does.
        """
        if self._written < len(self.ids):
            begin = self.prompt_length + self._written
            self._sequence[begin : self.length] = torch.tensor(self.ids[self._written :])
            self._written = len(self.ids)
        return self._sequence

    @property
    def prompt(self) -> torch.Tensor:
        return self._sequence[: self.prompt_length]

    @property
    def decided(self) -> torch.Tensor:
        """The prompt and what was emitted after it, `[length]`."""
        return self.sequence[: self.length]

    @property
    def remaining(self) -> int:
        return self.max_new_tokens - len(self.ids)

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def hand_over(self, tokens: list[int]) -> None:
        """Emit tokens, up to the first end token and the budget.

        The first token carries the time since the last hand-over, the others 0: that is how they
        reach a reader. The caller has read the tokens from the device, so the clock is right.
        """
        elapsed = perf_counter() - self._mark
        tokens = tokens[: self.remaining]
        for i, token in enumerate(tokens):
            if token in self.end_ids:
                tokens = tokens[: i + 1]
                self.finish_reason = "stop"
                break
        self.ids += tokens
        self.latencies += [elapsed] + [0.0] * (len(tokens) - 1)
        if not self.done and not self.remaining:
            self.finish_reason = "length"
        if self._on_tokens is not None:
            self._on_tokens(tokens)
        self._mark = perf_counter()  # what the reader does with the tokens is not decoding

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
    limit = wrapper.context_length
    if limit is not None and tokens > limit:
        raise SpecdecError(
            f"{made_of} is {tokens} tokens, but the context of {wrapper.name} is {limit}; "
            "shorten the prompt or lower max_new_tokens"
        )
    rope = getattr(wrapper.model.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        original = rope.get("original_max_position_embeddings") or limit
        if original is not None and tokens > original:
            raise SpecdecError(
                f"{made_of} is {tokens} tokens, past the {original} at which {wrapper.name} "
                "rescales its rotary positions: a block across that length differs from single "
                "steps, so the output would not be the target's; shorten the prompt or lower "
                "max_new_tokens"
            )


def _check(wrapper: ModelWrapper, prompt: torch.Tensor, max_new_tokens: int) -> None:
    if len(prompt) == 0:
        raise SpecdecError("the prompt is empty; give at least one token to continue from")
    if max_new_tokens < 1:
        raise SpecdecError(f"max_new_tokens {max_new_tokens} is below 1")
    if int(prompt.max()) >= wrapper.logit_size or int(prompt.min()) < 0:
        raise SpecdecError(
            f"the prompt holds a token id outside the vocabulary of {wrapper.name}; "
            "encode it with that model's tokenizer"
        )


def _end_ids(wrapper: ModelWrapper, eos_token_id) -> frozenset[int]:
    if eos_token_id is MODEL_END:
        return wrapper.end_token_ids
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
