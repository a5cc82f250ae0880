"""Where rounding chose between two tokens, outputs may part; anywhere else it is a fault."""

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine.session import FastSession
from specdec.method.sampling import Warp
from specdec.study import near_ties
from specdec.study.near_ties import sampler_of, tie_of_two, ties_of_one
from tests.tiny import make_model, wrap

PROMPT = [1, 2, 3]
SEED = 5
GREEDY = sampler_of("greedy", Warp(), SEED, PROMPT, 8)
WARP = Warp(0.8)


def greedy(wrapper, count=8):
    return AutoregressiveDecoder(wrapper).generate(PROMPT, count, eos_token_id=None).generated_ids


def decoders(wrapper):
    """Eager ones, which pass over one row and over five."""
    baseline = AutoregressiveDecoder(wrapper, engine="eager")
    return baseline, SpeculativeDecoder(wrapper, wrapper, 4, engine="eager")


def test_equal_outputs_part_nowhere():
    wrapper = wrap(make_model())
    ids = greedy(wrapper)
    assert tie_of_two(*decoders(wrapper), GREEDY, PROMPT, ids, ids) == []


def test_a_token_that_the_target_does_not_want_is_no_near_tie():
    wrapper = wrap(make_model())
    ids = greedy(wrapper)
    wrong = [*ids[:4], (ids[4] + 1) % wrapper.vocab_size, *ids[5:]]
    assert tie_of_two(*decoders(wrapper), GREEDY, PROMPT, ids, wrong) == []


def test_two_tokens_of_one_logit_are_a_tie():
    model = make_model()
    ids = greedy(wrap(model))
    other = next(i for i in range(model.config.vocab_size) if i not in ids)
    twin_of(model, ids[4], other)
    wrapper = wrap(model)
    alone = greedy(wrapper)
    twin = {ids[4]: other, other: ids[4]}
    place = next(i for i, token in enumerate(alone) if token in twin)
    together = [*alone[:place], twin[alone[place]], *alone[place + 1 :]]
    assert tie_of_two(*decoders(wrapper), GREEDY, PROMPT, alone, together) == [place]


def test_an_output_that_only_ends_earlier_is_no_near_tie():
    wrapper = wrap(make_model())
    ids = greedy(wrapper)
    assert tie_of_two(*decoders(wrapper), GREEDY, PROMPT, ids, ids[:5]) == []


def twin_of(model, token: int, other: int) -> None:
    """From now on the model gives two tokens the same logit."""
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[other] = head[token]


def sampled(wrapper, rule, count=8):
    """What the target alone draws as the rule has it."""
    decoder = AutoregressiveDecoder(wrapper, coupled=rule == "coupled")
    settings = {"temperature": WARP.temperature, "seed": SEED, "eos_token_id": None}
    return decoder.generate(PROMPT, count, **settings).generated_ids


@pytest.mark.parametrize("rule", ["coupled", "matching"])
class TestSampled:
    """Greedy records alone held near ties: other half-precision runs were called wrong."""

    def test_a_token_that_the_target_would_not_draw_is_no_near_tie(self, rule):
        wrapper = wrap(make_model())
        ids, sampler = sampled(wrapper, rule), sampler_of(rule, WARP, SEED, PROMPT, 8)
        wrong = [*ids[:4], (ids[4] + 7) % wrapper.vocab_size, *ids[5:]]
        assert tie_of_two(*decoders(wrapper), sampler, PROMPT, ids, wrong) == []

    def test_where_rounding_moves_as_much_as_the_noise_leaves_it_is_one(self, rule, monkeypatch):
        """The noise of a place is set to lie between two tokens, as if by a rare chance."""
        wrapper = wrap(make_model())
        ids, sampler = sampled(wrapper, rule), sampler_of(rule, WARP, SEED, PROMPT, 8)
        logits = near_ties.replay(decoders(wrapper)[0], PROMPT, ids)[4]
        if rule == "matching":
            other = ids[4] + 1 if ids[4] + 1 < wrapper.vocab_size else ids[4] - 1
            edge = sampler.warp(logits).cumsum(-1)[min(other, ids[4])]
            sampler.noise[4] = edge - 1e-9
        else:
            scores = logits / WARP.temperature + near_ties.gumbel(
                sampler.noise, torch.tensor([4]), wrapper.vocab_size
            )
            other = int(scores[0].topk(2).indices[1])
            lead = float(scores[0, ids[4]] - scores[0, other])
            gumbel = near_ties.gumbel

            def raised(*arguments):
                noise = gumbel(*arguments)
                noise[4, other] += lead - 1e-9
                return noise

            monkeypatch.setattr(near_ties, "gumbel", raised)
        parted = [*ids[:4], other, *ids[5:]]
        assert tie_of_two(*decoders(wrapper), sampler, PROMPT, ids, parted) == [4]
        assert 4 in ties_of_one(decoders(wrapper)[1], sampler, PROMPT, ids)
        assert len(ties_of_one(decoders(wrapper)[1], sampler, PROMPT, ids)) < 4


def test_an_output_alone_has_near_ties_only_where_another_token_is_as_likely():
    model = make_model()
    ids = greedy(wrap(model))
    assert ties_of_one(decoders(wrap(model))[1], GREEDY, PROMPT, ids) == []
    other = next(i for i in range(model.config.vocab_size) if i not in ids)
    twin_of(model, ids[4], other)
    wrapper = wrap(model)
    ids = greedy(wrapper)
    pair = {ids[4], other}
    places = [i for i, token in enumerate(ids) if token in pair]
    assert places and ties_of_one(decoders(wrapper)[1], GREEDY, PROMPT, ids) == places


def test_an_output_that_the_target_does_not_want_is_excused_by_no_near_tie():
    wrapper = wrap(make_model())
    ids = greedy(wrapper)
    wrong = [*ids[:4], (ids[4] + 1) % wrapper.vocab_size, *ids[5:]]
    assert 4 not in ties_of_one(decoders(wrapper)[1], GREEDY, PROMPT, wrong)


def test_it_is_read_by_the_passes_that_decoded_whatever_the_sampling(uncompiled):
    wrapper = wrap(make_model())
    decoder = SpeculativeDecoder(wrapper, wrapper, 4, coupled=True)
    decoder.prepare(temperature=0.8)
    with decoder.target_session(20) as session:
        assert isinstance(session, FastSession)
