"""Sampled output: does the joint distribution of what a pair emits equal its target's?

**All ways of being wrong.** A vocabulary has too many continuations to count, so they are counted
in cells whose probability is known exactly. At each place the words are put in an order, and the
emitted word is turned into the probability of the words before it, plus a random share of its own
(the randomised probability integral transform: Rosenblatt 1952, *Remarks on a Multivariate
Transformation*; Brockwell 2007, *Universal Residuals*). If the words follow the target, these
numbers are independent and uniform. Bins of equal width at each place make cells of equal
probability, for a chi-square test of the joint distribution. The order decides on what is seen
best: words that the draft prefers come first.

**Known ways of being wrong.** Each mistake in `specdec.certification.mistakes` says what it would
emit instead of the target's p. The score (other − p) / (other + p) of the emitted word has an
exactly known mean and variance under p, so its sum over all places tells whether the output leans
that way, more sharply than any cells.

**Words that top-k or top-p cut.** They have probability 0, so emitting them is no matter of chance,
but on the edge of what is kept rounding decides: one token in a thousand is allowed for.

The significance is shared among the tests. The probabilities come from one pass without a cache and
from transformers' own warpers: from nothing of what is examined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch.nn.functional import pad
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specdec.analysis.goodness_of_fit import goodness_of_fit
from specdec.certification.mistakes import emitted_by_mistake
from specdec.decoding.drafters.bridged import IntersectionDraft
from specdec.decoding.generation import Generation, make_request
from specdec.decoding.loaded_pair import Encoded
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine.compiler import compiling_beside
from specdec.method.sampling import Greedy, Sampling, Warp
from specdec.utils.logging import get_logger
from specdec.utils.machine import available_cores

log = get_logger(__name__)


class Setting(NamedTuple):
    """How generations are made: draft tokens, and what is done to logits before a draw."""

    draft_tokens: int
    warp: Warp


DRAFT_TOKENS = 3
SETTINGS = (
    Setting(DRAFT_TOKENS, Warp(1.0)),
    Setting(DRAFT_TOKENS, Warp(0.7)),  # a target that is not warped shows below 1 only
    # One top-k and top-p, since each is compiled by itself; either is the tighter one somewhere.
    Setting(1, Warp(0.7, top_k=10, top_p=0.9)),
    Setting(2, Warp(1.0, top_k=10, top_p=0.9)),
    Setting(8, Warp(1.0, top_k=10, top_p=0.9)),
)
TOKENS = 5  # of a draw: more than DRAFT_TOKENS + 1, so that it spans two rounds or more
BLOCKS = 8  # draws in a generation, one behind the other: independent, given what came before
GENERATIONS = 64  # at each setting
BINS = 2  # at each place: 32 cells, 16 draws in each
CELLS = BINS**TOKENS
LENGTH = BLOCKS * TOKENS  # tokens of a generation
SIGNIFICANCE = 1e-4  # of all tests together; the draws are seeded, so a certificate repeats itself
POWER = 0.99
AT_THE_EDGE = 1e-3  # share of tokens that rounding may put on the other side of a cut
SCORED_AT_ONCE = 8


@contextmanager
def compiled_beside(decoder_of: Callable[[int], SpeculativeDecoder]) -> Iterator[None]:
    """During this block another process compiles what the settings need, in their order: one whose
    turn comes finds it, or waits."""
    decoder = decoder_of(DRAFT_TOKENS)
    if decoder.engine == "eager" or decoder.target.device.type != "cpu" or available_cores() < 2:
        yield
        return
    with compiling_beside([lambda s=s: _prepare(decoder_of, s, 0) for s in SETTINGS]):
        yield


def draw(
    decoder_of: Callable[[int], SpeculativeDecoder],
    contexts: list[Encoded],
    setting: Setting,
    generations: int = GENERATIONS,
) -> Sample:
    """What a pair emits at a setting.

    Args:
        decoder_of: the pair's decoder of a number of draft tokens.
        contexts: the generations are divided evenly among them.
        generations: of `BLOCKS` draws each; below 20 the cells are too rare.
    """
    log.info("sampled output: K = %d, %s", *setting)
    longest = max(len(ids) for context in contexts for ids in context if ids is not None) + LENGTH
    decoder = _prepare(decoder_of, setting, longest)
    sample = Sample(setting, generations)
    for number, context in enumerate(contexts):
        seeds = range(number, generations, len(contexts))
        for emitted, p, q in _scored(decoder, context, setting.warp, seeds):
            sample.add(emitted, p, q)
    return sample


def check_samples(samples: list[Sample], contexts: int) -> dict:
    """The `sampling` part of a certificate: of samples at all settings, from so many contexts."""
    tests, caught = [], []
    for sample in samples:
        setting = sample.setting
        fit = goodness_of_fit(sample.counts, np.full(CELLS, 1 / CELLS))
        caught.append(fit)
        tests.append(_describe(setting, "joint", fit.statistic, fit.degrees, fit.p_value))
        for mistake, (deviation, variance) in sample.scores.items():
            statistic = deviation**2 / variance if variance else 0.0
            p_value = float(stats.chi2.sf(statistic, 1))
            tests.append(_describe(setting, mistake, statistic, 1, p_value))
        if setting.warp.top_k or setting.warp.top_p < 1:
            allowed = AT_THE_EDGE * sample.generations * LENGTH
            p_value = float(stats.poisson.sf(sample.cut_words - 1, allowed))
            tests.append(_describe(setting, "words that are cut", sample.cut_words, None, p_value))
    distances = [distance for sample in samples for distance in sample.distances]
    share = SIGNIFICANCE / len(tests)
    p_value = min(1.0, len(tests) * min(test["p_value"] for test in tests))
    return {
        "verdict": "pass" if p_value >= SIGNIFICANCE else "defect",
        "draws": sum(fit.draws for fit in caught),
        "p_value": p_value,
        "significance": SIGNIFICANCE,
        "detectable_total_variation": max(
            fit.detectable_total_variation(share, POWER) for fit in caught
        ),
        "power": POWER,
        "draft_total_variation": float(np.mean(distances)) if distances else None,
        "draft_tokens": DRAFT_TOKENS,
        "settings": [_settings(sample.setting) for sample in samples],
        "tokens": TOKENS,
        "cells": CELLS,
        "contexts": contexts,
        "tests": tests,
    }


def _prepare(
    decoder_of: Callable[[int], SpeculativeDecoder], setting: Setting, longest: int
) -> SpeculativeDecoder:
    decoder = decoder_of(setting.draft_tokens)
    decoder.prepare(**asdict(setting.warp), longest=longest)
    return decoder


def _settings(setting: Setting) -> dict:
    return {"draft_tokens": setting.draft_tokens, **asdict(setting.warp)}


def _describe(
    setting: Setting, name: str, statistic: float, degrees: int | None, p_value: float
) -> dict:
    """A test's outcome; without degrees of freedom the statistic is a count."""
    return _settings(setting) | {
        "test": name,
        "statistic": float(statistic),
        "degrees": degrees,
        "p_value": p_value,
    }


class Sample:
    """What is kept of some generations at one setting.

    `counts` `[CELLS]` are draws; `scores` holds, for each mistake, how far the sum of its scores is
    from its mean and the variance of that sum; `cut_words` were emitted though the target's p of
    them is 0; `distances` are total variations of the draft from the target.
    """

    def __init__(self, setting: Setting, generations: int) -> None:
        self.setting, self.generations = setting, generations
        self.counts = np.zeros(CELLS, dtype=int)
        self.scores: dict[str, np.ndarray] = defaultdict(partial(np.zeros, 2))
        self.cut_words = 0
        self.distances: list[float] = []
        self._random = np.random.default_rng(0)

    def add(self, emitted: torch.Tensor, p: torch.Tensor, q: torch.Tensor | None) -> None:
        """Take up a generation `[n]` and what its tokens should be drawn from: p, q `[n, V]`."""
        shares = torch.from_numpy(self._random.random(len(emitted))).to(p.device)
        uniforms = _transform(p, p if q is None else q / p, emitted, shares).cpu().numpy()
        bins = np.minimum((uniforms * BINS).astype(int), BINS - 1)
        np.add.at(self.counts, bins.reshape(BLOCKS, TOKENS) @ BINS ** np.arange(TOKENS), 1)
        self.cut_words += int((p.gather(-1, emitted.unsqueeze(-1)) == 0).sum())
        for mistake, other in emitted_by_mistake(p, q, self.setting.warp.temperature).items():
            self.scores[mistake] += _score(p, other, emitted)
        if q is not None:
            self.distances.append(float((p - q).abs().sum(-1).mean() / 2))


def _score(p: torch.Tensor, other: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    """How far the scores of emitted tokens `[n]` lie above their mean, summed; and the variance."""
    score = ((other - p) / (other + p)).nan_to_num(0)  # 0 / 0: a word that neither emits
    mean = (p * score).sum(-1)
    deviation = score.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - mean
    variance = (p * score**2).sum(-1) - mean**2
    return np.array([float(deviation.sum()), float(variance.clamp(min=0).sum())])


def _scored(decoder, context, warp, seeds) -> Iterator[tuple]:
    """`(tokens [n], p [n, V], q [n, V] or None)` of each generation: p target, q draft."""
    for start in range(0, len(seeds), SCORED_AT_ONCE):
        results = [
            decoder.generate(
                context.prompt_ids,
                LENGTH,
                **asdict(warp),
                seed=seed,
                eos_token_id=None,
                draft_prompt_ids=context.draft_prompt_ids,
            )
            for seed in seeds[start : start + SCORED_AT_ONCE]
        ]
        emitted = torch.tensor([result.generated_ids for result in results])  # [generations, n]
        p = _probabilities(decoder.target, context.prompt_ids, emitted, warp)
        if decoder.vocabularies is None or decoder.vocabularies.is_shared:
            shown = context.draft_prompt_ids or context.prompt_ids
            q = _probabilities(decoder.draft, shown, emitted, warp)
            size = min(q.shape[-1], p.shape[-1])
            q = pad(q[..., :size], (0, p.shape[-1] - size)).to(p.device)
        elif results[0].drafter == IntersectionDraft.__name__:
            rows = [_intersection_rows(decoder, context, ids, warp) for ids in emitted.tolist()]
            q = torch.stack(rows).to(p.device)
        else:
            q = [None] * len(results)  # a draft that proposes text has no probabilities of words
        yield from zip(emitted.to(p.device), p, q, strict=True)


def _probabilities(wrapper, prompt, emitted, warp) -> torch.Tensor:
    """What a model draws emitted tokens from, `[generations, n, V]`, by a pass without a cache."""
    sequences = torch.cat([torch.tensor(prompt).expand(len(emitted), -1), emitted[:, :-1]], dim=1)
    logits, _ = wrapper.forward(sequences, use_cache=False, logits_to_keep=LENGTH)
    return _warped(logits[..., : wrapper.vocab_size], warp)


def _warped(logits: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Probabilities `[n, V]` or `[V]` by transformers' own warpers, in float64."""
    scores = logits.double().reshape(-1, logits.shape[-1])
    warpers = [TemperatureLogitsWarper(warp.temperature)]
    if warp.top_k:
        warpers.append(TopKLogitsWarper(warp.top_k))
    if warp.top_p < 1:
        warpers.append(TopPLogitsWarper(warp.top_p))
    for warper in warpers:
        scores = warper(None, scores)
    return scores.softmax(-1).reshape(logits.shape)


class _Scores:
    """In place of a run's sampler: keeps what a drafter would draw from, `rows` of `[V]`."""

    def __init__(self, warp: Warp) -> None:
        self._warp = warp
        self.rows: list[torch.Tensor] = []

    def propose(self, logits: torch.Tensor, position) -> tuple[torch.Tensor, torch.Tensor]:
        self.rows.append(_warped(logits, self._warp))
        return logits.argmax(-1), self.rows[-1]


def _intersection_rows(decoder, context, emitted: list[int], warp) -> torch.Tensor:
    """What a draft of another vocabulary draws each emitted token from, `[n, V]`."""
    request = make_request(decoder.target, context.prompt_ids, LENGTH)
    run = Generation(decoder.target, request, Sampling(Greedy))
    run.sampler = _Scores(warp)
    shown = context.draft_prompt_ids
    drafter = IntersectionDraft(decoder.draft, decoder.vocabularies)
    drafting = drafter.begin(run, None if shown is None else torch.tensor(shown), None)
    for token in emitted:
        drafting.propose(1)
        drafting.settle(0, token, None)
        run.hand_over([token])
    return torch.stack(run.sampler.rows)


def _transform(
    p: torch.Tensor, key: torch.Tensor, tokens: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Uniforms `[n]` of emitted tokens `[n]`: words of larger `key` first, equal ones together."""
    own = key.gather(-1, tokens.unsqueeze(-1))
    before = (p * (key > own)).sum(-1)
    return before + shares * (p * (key == own)).sum(-1)
