"""c, v(K) and h of a pair's shapes on this machine, each with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import numpy as np
import torch
from scipy.stats import bootstrap

from specdec.analysis.statistics import LEVEL
from specdec.decoding.generation import check_context
from specdec.decoding.loaded_pair import LoadedPair
from specdec.models.loading.memory_check import available_bytes, check_memory, needed_bytes
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelPair, ModelSide, with_random_weights
from specdec.models.shared_weights import share_weights
from specdec.models.wrapper import ModelWrapper
from specdec.planning.measure import (
    ROUNDS,
    STEPS,
    interleave,
    reader,
    time_pass,
    time_round_rest,
    time_rule,
    time_step_rest,
)
from specdec.utils.logging import get_logger

log = get_logger("plan")

ACCEPTANCE = 0.8  # forced in the rounds that are timed; what a round costs hardly depends on it
FEWEST_PASSES, FEWEST_ROUNDS = 7, 2  # samples of each kind, however long they take
DRAWS = 2000  # of the bootstrap
ESSENTIAL = 3  # measures: a draft step, a target step, a pass of the smallest K
NOT_MEASURED = "nothing: interrupted before it was measured, so S is without it"


@dataclass(frozen=True)
class Request:
    """What a plan is asked for; both sides have random weights."""

    pair: str
    draft: ModelSide
    target: ModelSide
    draft_tokens: list[int]  # the K
    context: int  # tokens in the cache
    device: torch.device
    seconds: float  # how long to measure, about
    engine: str = "eager"  # or compiled
    budget: float = math.inf  # seconds that it may take at most, about

    @cached_property
    def needed(self) -> float:
        """Bytes that both models need together."""
        return needed_bytes([self.draft, self.target], self.device)

    @property
    def both_fit(self) -> bool:
        return self.needed <= available_bytes(self.device)


@dataclass(frozen=True)
class Estimate:
    """A ratio of medians, with its 95 % interval (NaN where it was measured once)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Costs:
    """What was measured; ratios count in target steps."""

    c: Estimate
    v: dict[int, Estimate]  # by K
    h: dict[int, Estimate]
    h0: Estimate
    draft_step: float  # seconds
    target_step: float
    overhead_of: str  # what h was measured on
    interrupted: bool = False  # before all was measured


def make_request(
    pair: ModelPair,
    draft_tokens: list[int],
    context: int,
    device: torch.device,
    seconds: float,
    dtype: str | None = None,
    engine: str = "eager",
    budget: float = math.inf,
) -> Request:
    """A plan for the shapes of a registered pair; `dtype` replaces that of both sides."""
    sides = [with_random_weights(side) for side in (pair.draft, pair.target)]
    if dtype is not None:
        sides = [replace(side, dtype=dtype) for side in sides]
    return Request(pair.name, *sides, draft_tokens, context, device, seconds, engine, budget)


def measure_costs(request: Request) -> Costs:
    """Measure a pair's shapes, together where they fit, else one after the other.

    Each quantity is told when it is first measured. However small the budget, one sample is taken
    of what the smallest K needs; a K that it leaves no time for is left out. Of an interruption
    (Ctrl-C) what was measured before comes back.

    Raises:
        SpecdecError: where not even one of them fits, or the context is too short.
    """
    return _measure_together(request) if request.both_fit else _measure_apart(request)


def ratio(numerator: np.ndarray, denominator: np.ndarray, paired: bool) -> Estimate:
    """Median ÷ median of times `[n]` and `[m]`; paired ones were taken in turn, and n is m."""

    def statistic(above, below, axis):
        return np.median(above, axis=axis) / np.median(below, axis=axis)

    value = float(statistic(numerator, denominator, 0))
    if min(len(numerator), len(denominator)) < 2:
        return Estimate(value, float("nan"), float("nan"))
    interval = bootstrap(
        (numerator, denominator),
        statistic,
        paired=paired,
        n_resamples=DRAWS,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _measure_together(request: Request) -> Costs:
    clock, times = Clock(request), {}
    draft, target = (_load(side, request) for side in (request.draft, request.target))
    if draft.is_4bit:
        share_weights(draft.model, target.model, random=True)
    overhead_of = NOT_MEASURED
    try:
        passes = _passes("draft", draft, [1], request) | _target_passes(target, request)
        clock.measure(passes, 1 / 2, FEWEST_PASSES, times, ESSENTIAL)
        request = _measured(request, times)
        if draft.vocab_size != target.vocab_size:
            rests, fewest = _rule_rests(target, request), FEWEST_PASSES
            overhead_of = "the acceptance rule alone (two vocabulary sizes)"
        elif _rounds_would_take(times, request) > clock.remaining:
            rests, fewest = _rule_rests(target, request), FEWEST_PASSES
            overhead_of = "the acceptance rule alone (--budget leaves no time for whole rounds)"
        else:
            rests, fewest = _round_rests(draft, target, request), FEWEST_ROUNDS
            overhead_of = f"rounds with acceptance forced at {ACCEPTANCE}"
        clock.measure(rests, 1 / 2, fewest, times)
        return _costs(times, request, overhead_of, paired=True)
    except KeyboardInterrupt:
        return _what_is_known(times, request, overhead_of, paired=True)


def _measure_apart(request: Request) -> Costs:
    for side in (request.draft, request.target):
        check_memory(f"pair {request.pair}, {side.label} alone", [side], request.device)
    clock, times = Clock(request), {}
    overhead_of = "the acceptance rule alone (one model at a time fits)"
    try:
        _time_target_alone(request, clock, times)
        request = _measured(request, times)
        _time_draft_alone(request, clock, times)
        return _costs(times, request, overhead_of, paired=False)
    except KeyboardInterrupt:
        return _what_is_known(times, request, overhead_of, paired=False)


def _time_target_alone(request: Request, clock: Clock, times: dict) -> None:
    target = _load(request.target, request)
    passes = _rule_rests(target, request) | _target_passes(target, request)
    # The rule's measures take next to nothing; of the passes, one token and one K.
    clock.measure(passes, 3 / 4, FEWEST_PASSES, times, len(passes) - len(request.draft_tokens) + 1)


def _time_draft_alone(request: Request, clock: Clock, times: dict) -> None:
    draft = _load(request.draft, request)
    clock.measure(_passes("draft", draft, [1], request), 1 / 4, FEWEST_PASSES, times)


class Clock:
    """The time that a plan may take, from now on."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._deadline = perf_counter() + request.budget

    @property
    def remaining(self) -> float:
        """Seconds of the budget."""
        return max(0.0, self._deadline - perf_counter())

    def measure(
        self,
        measures: dict,
        share: float,
        at_least: int,
        times: dict,
        essential: int | None = None,
    ) -> None:
        """Sample measures into `times` for a share of the request's seconds, within the budget.

        `essential` is as in `interleave`.
        """
        seconds = share * self._request.seconds
        left = len(measures)

        def show(name: str, taken: float) -> None:
            nonlocal left
            left -= 1
            log.info(
                "%-12s %8.2f ms, %d more to measure; at most %.0f s remain",
                name,
                taken * 1e3,
                left,
                self.remaining,
            )

        interleave(measures, seconds, at_least, self._deadline, show, times, essential)


def _measured(request: Request, times: dict) -> Request:
    """The request with the K that there was time for."""
    ks = [k for k in request.draft_tokens if f"target {k + 1}" in times]
    if left_out := [str(k) for k in request.draft_tokens if k not in ks]:
        log.warning("no time for K = %s within --budget", ", ".join(left_out))
    return replace(request, draft_tokens=ks)


def _rounds_would_take(times: dict, request: Request) -> float:
    """Seconds, about: each sample of a round reads the context anew, with both models.

    A context is taken to be read as fast as the longest pass that was timed.
    """
    draft, step = (float(np.median(times[name])) for name in ("draft 1", "target 1"))
    most = max(request.draft_tokens) + 1
    block = float(np.median(times[f"target {most}"])) * request.context / most
    reading = block * (1 + draft / step)
    samples = FEWEST_ROUNDS + 1  # the first is a warm-up
    one = [
        ROUNDS * (k * draft + float(np.median(times[f"target {k + 1}"])))
        for k in request.draft_tokens
    ]
    return samples * (sum(one) + STEPS * step + (len(one) + 1) * reading)


def _load(side: ModelSide, request: Request) -> ModelWrapper:
    log.info("random weights ← %s", side.label)
    wrapper = load_random_weights(side, str(request.device))
    longest = request.context + 1 + ROUNDS * (max(request.draft_tokens) + 1)
    longest += max(request.draft_tokens)
    check_context(wrapper, longest, "--context and what is decoded behind it")
    return wrapper


def _passes(name: str, wrapper: ModelWrapper, counts: list[int], request: Request) -> dict:
    """Measures `name 1`, `name 5`, … of passes over as many tokens."""
    session = reader(wrapper, request.context, counts, request.engine, as_draft=name == "draft")
    return {f"{name} {n}": lambda n=n: time_pass(wrapper, session, n) for n in counts}


def _target_passes(target: ModelWrapper, request: Request) -> dict:
    return _passes("target", target, [1, *(k + 1 for k in request.draft_tokens)], request)


def _round_rests(draft: ModelWrapper, target: ModelWrapper, request: Request) -> dict:
    """Measures `rest K` of real rounds, and `rest 0` of the baseline's steps."""
    entry = ModelPair(request.pair, request.draft, request.target)
    pair = LoadedPair(entry, str(request.device), draft, target)
    alone = pair.decoder(0, request.engine)
    rests = {"rest 0": lambda: time_step_rest(alone, request.context)}
    for k in request.draft_tokens:
        both = pair.decoder(k, request.engine, synthetic_acceptance=ACCEPTANCE)
        rests[f"rest {k}"] = lambda both=both: time_round_rest(both, request.context)
    return rests


def _rule_rests(target: ModelWrapper, request: Request) -> dict:
    """Measures `rest K` of the acceptance rule, on logits of the target's size."""
    most = max(request.draft_tokens) + 1
    logits = torch.randn(most, target.vocab_size).to(target.device, target.model.dtype)
    counts = [0, *request.draft_tokens]
    return {f"rest {k}": lambda k=k: time_rule(logits[: k + 1]) for k in counts}


def _what_is_known(times: dict, request: Request, overhead_of: str, paired: bool) -> Costs:
    """The costs of what was measured before an interruption; that goes on where it is too little.

    What a round costs besides its passes counts nothing where it was not measured.
    """
    ks = [k for k in request.draft_tokens if f"target {k + 1}" in times]
    if "draft 1" not in times or "target 1" not in times or not ks:
        raise KeyboardInterrupt
    rests = [f"rest {k}" for k in (0, *ks)]
    if not times.keys() >= set(rests):
        times = times | {name: np.zeros(1) for name in rests}
        overhead_of = NOT_MEASURED
    known = _costs(times, replace(request, draft_tokens=ks), overhead_of, paired)
    return replace(known, interrupted=True)


def _costs(times: dict, request: Request, overhead_of: str, paired: bool) -> Costs:
    step, ks = times["target 1"], request.draft_tokens
    return Costs(
        c=ratio(times["draft 1"], step, paired),
        v={k: ratio(times[f"target {k + 1}"], step, paired=True) for k in ks},
        h={k: ratio(times[f"rest {k}"], step, paired=False) for k in ks},
        h0=ratio(times["rest 0"], step, paired=False),
        draft_step=float(np.median(times["draft 1"])),
        target_step=float(np.median(step)),
        overhead_of=overhead_of,
    )
