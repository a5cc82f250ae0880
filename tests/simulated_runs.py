"""Records of runs that never happened, with known α, c, v, h: what the analysis must find again."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from specdec.profiling.metrics import BenchmarkConfig, GenerationResult
from specdec.profiling.records import append_records, make_record

SEED = 42  # of the study; what these runs draw has seeds of its own
ENVIRONMENT = {"device": "Simulated CPU @ 2.50GHz", "threads": 1, "device_type": "cpu"}


@dataclass(frozen=True)
class Truth:
    """One pair on one machine, as it is: times in target steps but `step_ms`."""

    pair: str = "micro"
    alpha: float = 0.8  # of a typical prompt
    alpha_spread: float = 0.0  # standard deviation over prompts
    c: float = 0.1
    v: float = 1.3
    h: float = 0.05
    h0: float = 0.02
    step_ms: float = 10.0
    noise: float = 0.0  # relative, per round and step
    drift: float = 0.0  # relative, per prompt, the same for both of a pair
    prefill_ms: float = 40.0
    prompt_source: str = "builtin"
    draft_dtype: str = "bfloat16"
    target_dtype: str = "float32"
    device: str = ENVIRONMENT["device"]
    synthetic_acceptance: float | None = None
    engine: str = "eager"
    engine_requested: str = "auto"


def baseline_result(truth: Truth, tokens: int, speed: float, rng) -> GenerationResult:
    noise = 1 + truth.noise * rng.standard_normal(tokens - 1)
    verify = truth.step_ms * speed * noise.clip(0.2)
    return result_of(truth, list(range(tokens)), [1] * (tokens - 1), 0 * verify, verify, truth.h0)


def speculative_result(
    truth: Truth, tokens: int, K: int, alpha: float, speed: float, rng
) -> GenerationResult:
    """Rounds as the engine makes them: what is past the budget is neither proposed nor accepted."""
    emitted, accepted, proposed = [], [], []
    while 1 + sum(emitted) < tokens:
        left = tokens - 1 - sum(emitted)
        proposed.append(min(K, left))
        misses = np.flatnonzero(rng.random(proposed[-1]) >= alpha)
        accepted.append(int(misses[0]) if len(misses) else proposed[-1])
        emitted.append(min(accepted[-1] + 1, left))
    steps = truth.step_ms * speed * (1 + truth.noise * rng.standard_normal(len(emitted))).clip(0.2)
    result = result_of(
        truth, list(range(tokens)), emitted, K * truth.c * steps, truth.v * steps, truth.h
    )
    proposals = sum(proposed)
    return replace(
        result,
        acceptance_rate=sum(accepted) / proposals if proposals else 0.0,
        tokens_per_step=sum(emitted) / len(emitted) if emitted else 0.0,
        num_speculation_rounds=len(emitted),
        accepted_per_round=accepted,
        proposed_per_round=proposed,
    )


def result_of(truth, ids, bursts, draft_ms, verify_ms, overhead) -> GenerationResult:
    """`bursts`: tokens of each hand-over after the first; times in ms for each of them."""
    other_ms = overhead * verify_ms / (truth.v if draft_ms.any() else 1)
    latencies = [truth.prefill_ms / 1e3]
    for tokens, seconds in zip(bursts, (draft_ms + verify_ms + other_ms) / 1e3, strict=True):
        latencies += [float(seconds)] + [0.0] * (tokens - 1)
    return GenerationResult(
        generated_ids=ids,
        per_token_latencies=latencies,
        total_time=sum(latencies),
        peak_memory_mb=100.0,
        time_to_first_token=latencies[0],
        phase_times_ms={
            "prefill": truth.prefill_ms,
            "draft": float(draft_ms.sum()),
            "verify": float(verify_ms.sum()),
            "sample": float(other_ms.sum()) / 2,
        },
        finish_reason="length",
        engine=truth.engine,
    )


def simulate_job(
    folder: Path,
    truth: Truth,
    K: int,
    *,
    domain: str = "code",
    temperature: float = 0.0,
    prompts: int = 10,
    tokens: int = 48,
    paired: bool = True,
    seed: int = 0,
) -> Path:
    """Write the run file of one decode job: a baseline per prompt, a speculative run, or both."""
    rng = np.random.default_rng([seed, K])
    records = []
    for i in range(prompts):
        speed = float(np.exp(truth.drift * rng.standard_normal()))
        alpha = float(np.clip(truth.alpha + truth.alpha_spread * rng.standard_normal(), 0, 1))
        arms = [0, K] if paired and K else [K]
        for order, arm in enumerate(arms):
            config = BenchmarkConfig(
                truth.pair,
                arm,
                temperature,
                tokens,
                domain,
                SEED,
                prompt_id=f"{domain}_{i:03d}",
                prompt_source=truth.prompt_source,
                draft_dtype=truth.draft_dtype,
                target_dtype=truth.target_dtype,
                synthetic_acceptance=truth.synthetic_acceptance if arm else None,
                engine=truth.engine_requested,
            )
            result = (
                speculative_result(truth, tokens, arm, alpha, speed, rng)
                if arm
                else baseline_result(truth, tokens, speed, rng)
            )
            record = make_record(
                config,
                result,
                job_K=K,
                paired=paired,
                order_index=order,
                prompt_tokens=20,
                text="",
                code_digest="0" * 16,
                environment={**ENVIRONMENT, "device": truth.device},
            )
            records.append(record | {"job_prompts": prompts})
    path = folder / truth.pair / domain / f"T{temperature}_K{K}_{truth.engine_requested}.jsonl"
    append_records(path, records)
    return path


def simulate_study(folder: Path, truths, domains, Ks, temperatures, **settings) -> list[Path]:
    """Run files of a whole study, the baseline's jobs (K = 0) with it; domains differ in α."""
    paths = []
    for p, truth in enumerate(truths):
        for d, domain in enumerate(domains):
            here = replace(truth, alpha=truth.alpha - 0.08 * d)
            for t, temperature in enumerate(temperatures):
                for K in (0, *Ks):
                    seed = 1000 * p + 100 * d + 10 * t
                    arguments = {"domain": domain, "temperature": temperature, "seed": seed}
                    there = replace(here, v=1 + (here.v - 1) * K / 4)
                    paths.append(simulate_job(folder, there, K, **arguments, **settings))
    return paths
