"""Generations with one decoder that overlap: each gives what it gives alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from tests.test_other_vocabulary import random_pair
from tests.tiny import make_model, perturbed, wrap
from tests.toy_tokenizers import byte_level, sentencepiece

PROMPTS = [[5, 9, 2, 7], [11, 3], list(range(20, 50)), [8], [40, 41, 42], [100, 7, 7]]
SETTINGS = [dict(), dict(temperature=0.8)]


def shared_vocabulary():
    target = make_model(dtype=torch.float64)
    return wrap(perturbed(target)), wrap(target)


def other_vocabulary():
    return random_pair(sentencepiece(), byte_level(420))


PAIRS = {"one vocabulary": shared_vocabulary, "two vocabularies": other_vocabulary}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    return PAIRS[request.param]()


def decoders(pair, engine):
    return AutoregressiveDecoder(pair[1], engine=engine), SpeculativeDecoder(
        *pair, 3, engine=engine
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "sampling"])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_run_inside_another_changes_neither(uncompiled, pair, engine, settings):
    for decoder in decoders(pair, engine):
        request = dict(max_new_tokens=20, seed=3, eos_token_id=None, **settings)
        alone = [decoder.generate(prompt, **request).generated_ids for prompt in PROMPTS[:2]]
        inner = []

        def begin_another(tokens, decoder=decoder, inner=inner, request=request):
            if len(inner) < 4:  # between the rounds of the outer one, again and again
                inner.append(decoder.generate(PROMPTS[1], **request).generated_ids)

        outer = decoder.generate(PROMPTS[0], on_tokens=begin_another, **request)
        assert outer.generated_ids == alone[0]
        assert inner == [alone[1]] * len(inner) and len(inner) == 4


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_six_threads_on_one_decoder_are_each_right(uncompiled, pair, engine):
    for decoder in decoders(pair, engine):

        def run(prompt, decoder=decoder):
            result = decoder.generate(prompt, 12, temperature=0.8, seed=3, eos_token_id=None)
            return result.generated_ids

        alone = [run(prompt) for prompt in PROMPTS]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(run, PROMPTS * 3))
        assert together == alone * 3
