"""What a generation gave (`GenerationResult`) and what was asked for (`BenchmarkConfig`)."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from specdec.utils.errors import SpecdecError

#: Rules that promise the baseline's own tokens: each draft token must be what the target chooses.
SAME_TOKENS = {"greedy", "matching", "coupled"}


@dataclass
class GenerationResult:
    """One generation: its tokens, its times, and for a speculative one how the rounds went.

    Tokens are handed over in bursts: the first alone (prefill), then those of one round, or of
    one step, together. The first token of a burst carries the whole burst's latency and the others
    0, so the latencies add up to `total_time` and nothing is smoothed.
    """

    generated_ids: list[int]
    per_token_latencies: list[float]  # s; the first is the time to the first token
    total_time: float  # s, prefill included
    peak_memory_mb: float
    time_to_first_token: float  # s
    # Speculative runs only; None in an autoregressive one.
    acceptance_rate: float | None = None  # alpha: accepted / proposed draft tokens
    tokens_per_step: float | None = None  # tau: tokens per round, bonus or replacement included
    num_speculation_rounds: int | None = None
    draft_time_total_ms: float | None = None
    verify_time_total_ms: float | None = None
    sampling_time_total_ms: float | None = None
    accepted_per_round: list[int] | None = None
    proposed_per_round: list[int] | None = None
    drafter: str | None = None  # the class that proposed: DraftModel, IntersectionDraft, ...
    vocabulary_match: str | None = None  # how the two vocabularies relate, in a line
    verified_by: str | None = None  # greedy, rejection, matching, coupled or forced
    draft_steps: int | None = None  # passes of the draft after its prefill
    alpha_ceiling: float | None = None  # most that a draft of another vocabulary could reach
    # Of both kinds; phases are prefill, draft, verify and sample.
    phase_times_ms: dict[str, float] | None = None  # the baseline's target steps are its verify
    phase_peak_memory_mb: dict[str, float] | None = None
    near_ties: list[int] | None = None  # places of the output where rounding may choose the token
    peak_reserved_mb: float | None = None  # GPU: what the allocator held, graphs' memory with it
    gpu: dict[str, float] | None = None  # as `profiling.power` tells: clocks, power, energy
    finish_reason: str | None = None  # "stop" (an end token) or "length" (the budget)
    engine: str | None = None  # the path really taken: "eager" or "compiled"
    engine_reason: str | None = None  # why it is not the one asked for
    notes: list[str] | None = None  # what a reader of the figures must know, a line each

    @property
    def num_tokens(self) -> int:
        return len(self.generated_ids)

    @property
    def is_speculative(self) -> bool:
        return self.acceptance_rate is not None

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the whole generation, prefill included."""
        return self.num_tokens / self.total_time if self.total_time > 0 else 0.0

    @property
    def decode_time(self) -> float:
        """Seconds after the first token."""
        return self.total_time - self.time_to_first_token

    @property
    def latency_p50(self) -> float:
        """Median of the per-token latencies (s), bursts as they were: the waits of 0 s count."""
        return self._latency_percentile(50)

    @property
    def latency_p95(self) -> float:
        return self._latency_percentile(95)

    @property
    def latency_p99(self) -> float:
        return self._latency_percentile(99)

    def _latency_percentile(self, percent: float) -> float:
        if not self.per_token_latencies:
            return 0.0
        return float(np.percentile(self.per_token_latencies, percent))

    @property
    def round_times(self) -> list[float]:
        """Seconds of each hand-over after the first."""
        return [latency for latency in self.per_token_latencies[1:] if latency > 0]

    @property
    def round_tokens(self) -> list[int]:
        """Tokens of each hand-over after the first; as long as `round_times`."""
        starts = [i for i, latency in enumerate(self.per_token_latencies) if i and latency > 0]
        return np.diff([*starts, len(self.per_token_latencies)]).tolist()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json_line(self) -> str:
        """One line of JSONL, with the newline."""
        return json.dumps(self.to_dict()) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "GenerationResult":
        """The inverse of `to_dict`; keys that are no field (a record has more) are ignored."""
        names = {f.name for f in fields(cls)}
        try:
            return cls(**{name: value for name, value in data.items() if name in names})
        except TypeError as error:
            raise SpecdecError(f"not a generation result: {error}") from error

    def summary(self) -> str:
        """One line for people, beginning with SD (speculative) or AR (autoregressive)."""
        parts = [
            "SD " if self.is_speculative else "AR ",
            f"{self.num_tokens} tok",
            f"{self.tokens_per_second:.1f} tok/s",
            _waits(self.round_times or self.per_token_latencies),
            f"mem={self.peak_memory_mb:.0f}MB",
        ]
        if self.is_speculative:
            rounds = self.num_speculation_rounds or 0
            parts.append(f"accept={self.acceptance_rate:.2f} rounds={rounds}")
        return " | ".join(parts)


def _waits(hand_overs: list[float]) -> str:
    """What a reader waits from one hand-over to the next: median and 95th percentile."""
    p50, p95 = (
        np.percentile(hand_overs, [50, 95], method="inverted_cdf") if hand_overs else (0.0, 0.0)
    )
    return f"p50={_milliseconds(p50)} p95={_milliseconds(p95)}"


def _milliseconds(seconds: float) -> str:
    """Whole milliseconds from 10 ms on; one decimal below, where a small model's steps lie."""
    milliseconds = seconds * 1e3
    return f"{milliseconds:.0f}ms" if milliseconds >= 10 else f"{milliseconds:.1f}ms"


def first_difference(ids: list[int], others: list[int]) -> int | None:
    """The first place where two outputs differ, one of which may have ended there; else None."""
    if ids == others:
        return None
    pairs = enumerate(zip(ids, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(others)))


@dataclass
class BenchmarkConfig:
    """Everything that one generation was asked for; `config_hash` names the request.

    A field added later needs a default: `config_hash` leaves defaults out, so older hashes stay.
    """

    model_pair_name: str
    K: int  # draft tokens per round; 0 is the autoregressive baseline
    temperature: float
    max_new_tokens: int
    prompt_domain: str
    seed: int
    prompt_id: str | None = None
    prompt_digest: str | None = None  # first 16 hex digits of the SHA-256 of the prompt's text
    prompt_source: str | None = None
    draft_model: str | None = None
    target_model: str | None = None
    draft_dtype: str | None = None
    target_dtype: str | None = None
    draft_revision: str | None = None
    target_revision: str | None = None
    tokenizer: str | None = None
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    engine: str = "auto"
    vocabulary: str = "auto"
    coupled: bool = False
    draft_chat: str = "auto"  # whether each side's chat template is applied, where it has one
    target_chat: str = "auto"
    draft_prompt: str = "target"  # what the draft reads: the target's prompt, or its own form
    device_type: str | None = None
    synthetic_acceptance: float | None = None  # forced acceptance rate; None: really measured

    def __post_init__(self) -> None:
        # A configuration file says `0` or `0.0` for the same request, which must have one hash.
        self.temperature = float(self.temperature)
        if self.synthetic_acceptance is not None:
            self.synthetic_acceptance = float(self.synthetic_acceptance)

    @property
    def decoder_label(self) -> str:
        return f"SD-K{self.K}" if self.K > 0 else "AR"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def config_hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the request, the same on every machine.

        Hashed is the JSON, with sorted keys and no spaces, of the fields that differ from their
        defaults; those without a default always count.
        """
        values = self.to_dict()
        asked = {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}
        canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]
