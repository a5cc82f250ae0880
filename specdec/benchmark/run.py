"""A benchmark from beginning to end: load, warm up, card, timed turns, table, one document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter
from typing import Any

from specdec.benchmark import card as cards
from specdec.benchmark import table
from specdec.benchmark.arms import (
    Arm,
    BenchPrompt,
    Run,
    decoder_arm,
    measure,
    timed,
)
from specdec.benchmark.page import format_findings, format_preparation, format_table
from specdec.benchmark.peers import check_peers, peer_arms
from specdec.benchmark.prompts import builtin_prompts, random_prompts
from specdec.benchmark.rows import against, instrumentation, make_rows
from specdec.benchmark.settings import PEERS, Settings
from specdec.decoding.loaded_pair import LoadedPair
from specdec.kernels.build import instruction_set
from specdec.models.loading.loader import describe_weights
from specdec.models.registry import get_pair, needs_synthetic_acceptance
from specdec.profiling.power import PowerSampler
from specdec.utils.errors import SpecdecError, is_out_of_memory, one_line
from specdec.utils.logging import get_logger
from specdec.utils.reproducibility import capture_environment, set_threads

log = get_logger("bench")

VERSIONS = ["specdec", "git_revision", "python", "torch", "transformers"]


def benchmark(settings: Settings, show: Callable[[str], None]) -> dict[str, Any]:
    """Run a benchmark of a registered pair; `show` is handed each part as it is known.

    Raises SpecdecError for an unknown pair, models that cannot be had, or settings that make no
    sense together.
    """
    for name in ("prompts", "repeats", "prompt_tokens"):
        if getattr(settings, name) < 1:
            raise SpecdecError(f"--{name.replace('_', '-')} {getattr(settings, name)} is below 1")
    check_peers(settings)
    set_threads(settings.threads)
    pair = get_pair(settings.pair, settings.registry)
    if needs_synthetic_acceptance(pair) and settings.synthetic_acceptance is None:
        raise SpecdecError(
            f"{pair.name}: its weights are random, so what its draft is right about means nothing; "
            "add --synthetic-acceptance 0.8 to force a rate"
        )
    return compare(LoadedPair(pair, settings.device).load(), settings, show)


def compare(pair: LoadedPair, settings: Settings, show: Callable[[str], None]) -> dict[str, Any]:
    """The benchmark of a pair; returns the document, plain values without NaN."""
    decoders = {
        K: pair.decoder(K, settings.engine, synthetic_acceptance=settings.synthetic_acceptance)
        for K in (0, *settings.k)
    }
    prompts = _prompts(pair, settings)
    request = settings.request
    own = [decoder_arm(K, decoder, request) for K, decoder in decoders.items()]
    bare = []
    if settings.instrumentation:
        bare = [decoder_arm(K, decoder, request, False) for K, decoder in decoders.items()]
    peers, not_run = peer_arms(pair, decoders, prompts, settings)

    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    began = perf_counter()
    # Most first: with a draft there are two models to compile, side by side.
    for decoder in reversed(decoders.values()):
        decoder.prepare(settings.temperature, settings.top_k, settings.top_p)
    with PowerSampler(pair.target.device) as warming:
        first = _warm_up([*own, *bare], longest)
    for peer, arms in peers.items():
        peers[peer], failed = _runnable(arms, longest)
        not_run |= failed
    others = [arm for arms in peers.values() for arm in arms]
    preparation = {
        "warm_up_s": perf_counter() - began,
        "compilation_s": {
            arm.name: decoder.preparation_seconds
            for arm, decoder in zip(own, decoders.values(), strict=True)
        },
    }

    got = {arm.name: first[arm.name] for arm in own}
    card = _card(pair, settings, prompts, got, warming.figures)
    show(cards.format_card(card))
    show(format_preparation(preparation))
    with PowerSampler(pair.target.device) as working:
        runs = measure([*own, *bare, *others], prompts, settings.repeats)

    allowed_ms = {0: 1e3 / card["target"]["tokens_per_s"]}
    allowed_ms |= {K: allowed["ms"] for K, allowed in card["rounds"].items()}
    read_to_copy = card["read_bandwidth"]["bytes_per_s"] / card["copy_bandwidth"]["bytes_per_s"]
    rows = make_rows(own, others, runs, allowed_ms, settings, read_to_copy)
    rows += [{"arm": name, "not_run": reason} for name, reason in not_run.items()]
    told = {arm.name: runs[arm.name] for arm in [*own, *others]}
    equal = settings.temperature == 0 and settings.synthetic_acceptance is None
    document = {
        "card": card,
        "preparation": preparation,
        "rows": rows,
        **{
            f"against_{peer.replace('.', '_')}": against(own, peers[peer], runs, settings)
            if peers.get(peer)
            else None
            for peer in PEERS
        },
        "differences": table.differences(told, [p.prompt_id for p in prompts]) if equal else None,
        "instrumentation": instrumentation(settings, runs) if settings.instrumentation else None,
        "gpu_after": working.figures,
        "settings": asdict(settings),
        "versions": {name: card["environment"][name] for name in VERSIONS},
    }
    show(format_table(document))
    show(format_findings(document))
    return document


def _prompts(pair: LoadedPair, settings: Settings) -> list[BenchPrompt]:
    asked = (settings.prompts, settings.reach, settings.seed)
    if pair.target.tokenizer is None:
        return random_prompts(*pair, settings.prompt_tokens, *asked)
    return builtin_prompts(pair, settings.domain, *asked)


def _warm_up(arms: list[Arm], prompt: BenchPrompt) -> dict[str, Run]:
    """Each arm once, untimed: compilation, allocators and processor caches settle."""
    runs = {}
    for arm in arms:
        log.info("warming up: %s", arm.name)
        runs[arm.name] = timed(arm, prompt)
    return runs


def _runnable(arms: list[Arm], prompt: BenchPrompt) -> tuple[list[Arm], dict[str, str]]:
    """Warm up arms of another library: those that run, and what the others say."""
    runnable, failed = [], {}
    for arm in arms:
        try:
            _warm_up([arm], prompt)
        except Exception as error:  # whatever it raises, its row says so
            if is_out_of_memory(error):
                raise
            failed[arm.name] = one_line(error)
        else:
            runnable.append(arm)
    return runnable, failed


def _card(
    pair: LoadedPair,
    settings: Settings,
    prompts: list[BenchPrompt],
    first: dict[str, Run],
    gpu: dict[str, float] | None,
) -> dict[str, Any]:
    """`first`: a run of each of our arms, which says what engine it got; `gpu`: while it did."""
    copied = cards.copy_bandwidth(pair.target.device)
    bandwidth = copied["bytes_per_s"]
    mean_prompt = sum(len(prompt.ids) for prompt in prompts) / len(prompts)
    context = mean_prompt + settings.max_new_tokens / 2
    entry = pair.entry
    sides = {
        "target": {"model": entry.target_model_id, "dtype": entry.target_dtype}
        | {"weights": describe_weights(entry.target, pair.target.device.type)}
        | cards.model_card(pair.target, context, bandwidth),
        "draft": {"model": entry.draft_model_id, "dtype": entry.draft_dtype}
        | {"weights": describe_weights(entry.draft, pair.draft.device.type)}
        | cards.model_card(pair.draft, context, bandwidth),
    }
    got = {name: {"engine": run.engine, "reason": run.engine_reason} for name, run in first.items()}
    return {
        "pair": entry.name,
        "acceptance": settings.acceptance,
        "environment": capture_environment(pair.target.device),
        "instruction_set": instruction_set() if pair.target.device.type == "cpu" else None,
        "gpu": gpu,
        "engine": {"asked": settings.engine, "got": got},
        "copy_bandwidth": copied,
        "read_bandwidth": cards.read_bandwidth(pair.target.device),
        **sides,
        "rounds": {
            K: cards.round_card(sides["draft"], sides["target"], K, bandwidth) for K in settings.k
        },
        "prompts": len(prompts),
        "mean_prompt_tokens": mean_prompt,
        "context": context,
    }
