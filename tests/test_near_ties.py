"""Where rounding chose between two tokens, outputs may part; anywhere else it is a fault."""

import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.study.near_ties import greedy_near_ties
from tests.tiny import make_model, wrap

PROMPT = [1, 2, 3]


def greedy(wrapper, count=8):
    return AutoregressiveDecoder(wrapper).generate(PROMPT, count, eos_token_id=None).generated_ids


def near_ties(wrapper, alone, together):
    """Of outputs decoded eagerly, by passes over one row and over five."""
    baseline = AutoregressiveDecoder(wrapper, engine="eager")
    pair = SpeculativeDecoder(wrapper, wrapper, 4, engine="eager")
    return greedy_near_ties(baseline, pair, PROMPT, alone, together)


def test_equal_outputs_part_nowhere():
    wrapper = wrap(make_model())
    ids = greedy(wrapper)
    assert near_ties(wrapper, ids, ids) == []


def test_a_token_that_the_target_does_not_want_is_no_near_tie():
    wrapper = wrap(make_model())
    ids = greedy(wrapper)
    wrong = [*ids[:4], (ids[4] + 1) % wrapper.vocab_size, *ids[5:]]
    assert near_ties(wrapper, ids, wrong) == []


def test_two_tokens_of_one_logit_are_a_tie():
    model = make_model()
    ids = greedy(wrap(model))
    other = next(i for i in range(model.config.vocab_size) if i not in ids)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[other] = head[ids[4]]
    wrapper = wrap(model)
    alone = greedy(wrapper)
    twin = {ids[4]: other, other: ids[4]}
    place = next(i for i, token in enumerate(alone) if token in twin)
    together = [*alone[:place], twin[alone[place]], *alone[place + 1 :]]
    assert near_ties(wrapper, alone, together) == [place]


def test_an_output_that_only_ends_earlier_is_no_near_tie():
    wrapper = wrap(make_model())
    ids = greedy(wrapper)
    assert near_ties(wrapper, ids, ids[:5]) == []
