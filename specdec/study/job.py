"""One decode job of the study: a pair, a domain, a K, a temperature and an engine, over prompts.

A paired job decodes each prompt twice in the same process, with the target alone and
speculatively, in alternating order, so that a machine that speeds up or slows down does not move
the speedup. The records of a prompt are written together: either all of them are on disk or none.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from specdec.data.dataset import Prompt
from specdec.decoding.decoder import Decoder
from specdec.decoding.loaded_pair import Encoded, LoadedPair
from specdec.kernels.build import instruction_set
from specdec.method.sampling import Warp
from specdec.models.loading.loader import describe_weights, resolve_device
from specdec.models.registry import ModelPair
from specdec.profiling.metrics import SAME_TOKENS, BenchmarkConfig, GenerationResult
from specdec.profiling.power import PowerSampler
from specdec.profiling.records import append_records, make_record, read_records
from specdec.study.ceiling import acceptance_ceiling
from specdec.study.near_ties import sampler_of, tie_of_two, ties_of_one
from specdec.utils.logging import get_logger
from specdec.utils.reproducibility import atomic_write, capture_environment, code_digest

log = get_logger(__name__)

WARM_UP_TOKENS = 16  # enough rounds for allocators and caches of the processor to settle


@dataclass(frozen=True)
class Job:
    """What one decode job is asked for; `K` 0 is the baseline alone.

    `synthetic_acceptance` forces the rate at which draft tokens are accepted; None measures it.
    """

    pair: ModelPair
    domain: str
    K: int
    temperature: float
    max_new_tokens: int
    seed: int
    paired: bool
    device: str
    prompt_source: str
    engine: str = "auto"
    synthetic_acceptance: float | None = None

    @property
    def arms(self) -> list[int]:
        """The numbers of draft tokens to decode each prompt with."""
        return [0, self.K] if self.paired and self.K > 0 else [self.K]

    def request(self, prompt: Prompt, k: int, device_type: str) -> BenchmarkConfig:
        """What one generation is asked for: the identity of its record."""
        return BenchmarkConfig(
            model_pair_name=self.pair.name,
            K=k,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            prompt_domain=self.domain,
            seed=self.seed,
            prompt_id=prompt.prompt_id,
            prompt_digest=hashlib.sha256(prompt.text.encode()).hexdigest()[:16],
            prompt_source=self.prompt_source,
            draft_model=self.pair.draft_model_id,
            target_model=self.pair.target_model_id,
            draft_dtype=self.pair.draft_dtype,
            target_dtype=self.pair.target_dtype,
            draft_revision=self.pair.draft.revision,
            target_revision=self.pair.target.revision,
            tokenizer=self.pair.target_model_id,
            engine=self.engine,
            vocabulary=self.pair.vocabulary,
            draft_chat=self.pair.draft.chat,
            target_chat=self.pair.target.chat,
            draft_prompt=self.pair.draft_prompt,
            device_type=device_type,
            synthetic_acceptance=self.synthetic_acceptance if k > 0 else None,
        )


def run_job(
    job: Job, prompts: list[Prompt], progress: Path, out: Path, check_wanted: Callable[[], None]
) -> None:
    """Decode every prompt and write the records, one line a generation.

    Args:
        progress: side file that each prompt's records are appended to when they are done; what it
            already holds of this very job, made by this very code, is not decoded again.
        out: written whole, at the end.
        check_wanted: called before each prompt; raises where nobody waits for the job any more.
    """
    pair = LoadedPair(job.pair, job.device)
    digest = code_digest(__name__)
    device_type = resolve_device(job.device).type
    requests = {
        (prompt.prompt_id, k): job.request(prompt, k, device_type)
        for prompt in prompts
        for k in job.arms
    }
    records = _finished(progress, requests, digest)
    missing = [p for p in prompts if any((p.prompt_id, k) not in records for k in job.arms)]
    if records:
        log.info("%d of %d generations are on disk already", len(records), len(requests))
    if missing:
        pair.load(with_draft=job.K > 0)
        decoders = {k: _decoder(job, pair, k) for k in job.arms}
        _warm_up(job, pair, decoders, missing)
        environment = capture_environment(pair.target.device)
        if device_type == "cpu":
            environment["instruction_set"] = instruction_set()  # of the kernels, now loaded
        weights = {
            f"{side}_weights": describe_weights(getattr(job.pair, side), job.device)
            for side in ("draft", "target")
        }
        for place, prompt in enumerate(prompts):
            if prompt not in missing:
                continue
            check_wanted()
            # The order depends on the prompt's place, so that resuming does not change it.
            arms = job.arms if place % 2 == 0 else job.arms[::-1]
            new = {
                (prompt.prompt_id, k): _decode(
                    job,
                    pair,
                    requests[prompt.prompt_id, k],
                    decoders[k],
                    prompt,
                    order,
                    digest,
                    environment,
                    weights,
                )
                for order, k in enumerate(arms)
            }
            if not all(decoder.is_bitwise(job.temperature) for decoder in decoders.values()):
                arms_of_prompt = [new[prompt.prompt_id, k] for k in job.arms]
                _note_near_ties(job, pair, prompt, decoders, arms_of_prompt)
            append_records(progress, new.values())
            records |= new
            log.info("%s: %d of %d prompts", prompt.prompt_id, place + 1, len(prompts))
    with atomic_write(out) as file:
        for address in requests:
            # How many prompts there are to be, so that a file that isn't whole can be told.
            whole = records[address] | {"job_prompts": len(prompts)}
            file.write(json.dumps(whole) + "\n")


def _finished(progress: Path, requests: dict, digest: str) -> dict:
    """Records of the side file that answer these requests and were made by this code."""
    if not progress.exists():
        return {}
    wanted = {request.config_hash(): address for address, request in requests.items()}
    return {
        wanted[record["config_hash"]]: record
        for record in read_records(progress, tolerate_torn_tail=True)
        if record["config_hash"] in wanted and record["code_digest"] == digest
    }


def _decoder(job: Job, pair: LoadedPair, k: int) -> Decoder:
    return pair.decoder(k, job.engine, synthetic_acceptance=job.synthetic_acceptance)


def _warm_up(
    job: Job, pair: LoadedPair, decoders: dict[int, Decoder], prompts: list[Prompt]
) -> None:
    """Compile what there is to, capture for the longest prompt, generate once with each decoder."""
    encoded, budget = pair.encode(prompts[0].text), min(WARM_UP_TOKENS, job.max_new_tokens)
    longest = pair.longest(prompt.text for prompt in prompts) + job.max_new_tokens
    # Most first: with a draft there are two models to compile, side by side.
    for k, decoder in sorted(decoders.items(), reverse=True):
        decoder.prepare(job.temperature, longest=longest)
        result = _generate(job, decoder, encoded, budget)
        reason = f" ({result.engine_reason})" if result.engine_reason else ""
        seconds = decoder.preparation_seconds
        log.info("K = %d: engine %s%s, prepared in %.1f s", k, result.engine, reason, seconds)


def _generate(job: Job, decoder: Decoder, prompt: Encoded, budget: int) -> GenerationResult:
    return decoder.generate(
        max_new_tokens=budget, temperature=job.temperature, seed=job.seed, **prompt._asdict()
    )


def _note_near_ties(
    job: Job, pair: LoadedPair, prompt: Prompt, decoders: dict[int, Decoder], arms: list[dict]
) -> None:
    """Note in a record that promises the baseline's tokens where rounding may give it another.

    Of a paired one, only the place where the two part. It takes passes of the target, untimed.
    """
    speculative = arms[-1]
    if speculative["verified_by"] not in SAME_TOKENS:
        return
    outputs = [arm["generated_ids"] for arm in arms]
    if len(outputs) == 2 and outputs[0] == outputs[1]:
        return
    ids, warp = pair.encode(prompt.text).prompt_ids, Warp(job.temperature)
    sampler = sampler_of(speculative["verified_by"], warp, job.seed, ids, job.max_new_tokens)
    find = tie_of_two if len(outputs) == 2 else ties_of_one
    by = [decoders[arm["K"]] for arm in arms]
    speculative["near_ties"] = find(*by, sampler, ids, *outputs)


def _decode(job, pair, request, decoder, prompt, order, digest, environment, weights) -> dict:
    gc.collect()  # now rather than in the middle of a timed generation
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    encoded = pair.encode(prompt.text)
    with PowerSampler(pair.target.device) as power:
        result = _generate(job, decoder, encoded, job.max_new_tokens)
    result.gpu = power.figures
    if request.K > 0 and job.synthetic_acceptance is None:
        result.alpha_ceiling = acceptance_ceiling(
            decoder, encoded.prompt_ids, result.generated_ids, Warp(job.temperature)
        )
    return make_record(
        request,
        result,
        job_K=job.K,
        paired=len(job.arms) > 1,
        order_index=order,
        prompt_tokens=len(encoded.prompt_ids),
        text=pair.decode(result.generated_ids),
        code_digest=digest,
        environment=environment,
        ignored_settings=pair.target.ignored_settings,
        weights=weights,
    )
