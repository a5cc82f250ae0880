"""The arms of a benchmark: ways to continue one prompt, timed in turns in one process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from specdec.decoding.decoder import Decoder
from specdec.decoding.loaded_pair import Encoded
from specdec.profiling.metrics import GenerationResult

#: What is counted of one timed generation; every figure is a ratio of totals of these.
#: "Decode" and rounds begin after the first hand-over; a round is full where K tokens were drafted.
AMOUNTS = ["tokens", "total_s", "steps", "decode_s", "rounds", "full_rounds", "full_rounds_s"]
AMOUNTS += ["accepted", "proposed", "draft_ms", "verify_ms"]


class BenchPrompt(NamedTuple):
    """A prompt in token ids, with its name."""

    prompt_id: str
    encoded: Encoded

    @property
    def ids(self) -> list[int]:
        """As the target reads it."""
        return self.encoded.prompt_ids


@dataclass(frozen=True)
class Run:
    """One timed generation: its tokens, its AMOUNTS, and what it took."""

    ids: list[int]
    amounts: dict[str, float]
    peak_memory_mb: float  # 2^20 bytes
    engine: str | None = None
    engine_reason: str | None = None


@dataclass(frozen=True)
class Arm:
    """A way to continue a prompt; `K` is its number of draft tokens, 0 for a model alone."""

    name: str
    K: int
    generate: Callable[[BenchPrompt], Run]


@dataclass(frozen=True)
class Request:
    """What is asked of every arm; no arm stops at an end token, so all emit as many."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


def decoder_arm(K: int, decoder: Decoder, request: Request, timed_phases: bool = True) -> Arm:
    """An arm of this package; without `timed_phases` it leaves c, v and h untold."""

    def generate(prompt: BenchPrompt) -> Run:
        result = decoder.generate(
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=request.seed,
            eos_token_id=None,
            timed_phases=timed_phases,
            **prompt.encoded._asdict(),
        )
        return _run_of(result)

    return Arm(arm_name(K, timed_phases), K, generate)


def arm_name(K: int, timed_phases: bool = True) -> str:
    return (f"K = {K}" if K else "baseline") + ("" if timed_phases else ", phases untimed")


def _run_of(result: GenerationResult) -> Run:
    phases = result.phase_times_ms or {}
    steps = result.num_tokens - 1
    rounds = result.num_speculation_rounds if result.is_speculative else steps
    amounts = {
        "tokens": result.num_tokens,
        "total_s": result.total_time,
        "steps": steps,
        "decode_s": result.decode_time,
        "rounds": rounds,
        # K is the same in every round, also in the last.
        "full_rounds": rounds,
        "full_rounds_s": result.decode_time,
        "accepted": sum(result.accepted_per_round or []),
        "proposed": sum(result.proposed_per_round or []),
        "draft_ms": phases.get("draft", 0.0),
        "verify_ms": phases.get("verify", float("nan")),
    }
    return Run(
        result.generated_ids, amounts, result.peak_memory_mb, result.engine, result.engine_reason
    )


def turns(arms: list[Arm], prompts: int, repeats: int) -> Iterator[tuple[int, Arm]]:
    """Whose turn it is: `(place of the prompt, arm)`, each prompt beginning one arm later."""
    for repeat in range(repeats):
        for place in range(prompts):
            start = (repeat + place) % len(arms)
            for arm in [*arms[start:], *arms[:start]]:
                yield place, arm


def measure(arms: list[Arm], prompts: list[BenchPrompt], repeats: int) -> dict[str, list[Run]]:
    """For each arm by name the run of each prompt: of its repeats that of the median decode time.

    A whole run is kept, never a mixture, so that its times add up.
    """
    runs: dict[str, list[list[Run]]] = {arm.name: [[] for _ in prompts] for arm in arms}
    gc.freeze()  # so that collecting between runs looks only at what the runs left
    try:
        for place, arm in turns(arms, len(prompts), repeats):
            runs[arm.name][place].append(timed(arm, prompts[place]))
    finally:
        gc.unfreeze()
    return {name: [_middle(repeated) for repeated in arm] for name, arm in runs.items()}


def timed(arm: Arm, prompt: BenchPrompt) -> Run:
    """One run of an arm, with nothing left over from the one before."""
    gc.collect()  # now rather than in the middle of a timed generation
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return arm.generate(prompt)


def _middle(runs: list[Run]) -> Run:
    return sorted(runs, key=lambda run: run.amounts["decode_s"])[(len(runs) - 1) // 2]
