"""Passes that the host drives as graphs: padded, moved on, rolled back, they give a pass's logits.

The graphs are stand-ins that run what was captured again: what they read and write stays where it
was, as with CUDA's.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from specdec.decoding.decoder import Decoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine import capture
from specdec.engine.capture import CapturedPass
from specdec.engine.fast_model import FastModel, fast_model
from specdec.engine.session import FastSession
from specdec.models.wrapper import ModelWrapper, Session
from tests.tiny import make_model, make_tokenizer, wrap

PROMPT = [5, 9, 2, 7]
ROWS = (1, 3)

pytestmark = pytest.mark.usefixtures("graphs")


class Graph:
    """A graph that is replayed on a CPU; `replays` counts all."""

    replays = 0

    def replay(self) -> None:
        Graph.replays += 1
        self.step(nullcontext)


@pytest.fixture
def graphs(monkeypatch, uncompiled):
    def record(graph, step, phase, device, pool):
        step(phase)
        graph.step = step

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(capture, "_record", record)
    monkeypatch.setattr(capture, "SHORTEST", 64)
    monkeypatch.setattr(FastModel, "pool", (0, 1))
    monkeypatch.setattr(Graph, "replays", 0)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def wrapper(request):
    return wrap(make_model(request.param, dtype=torch.float64, max_position_embeddings=150))


def session(wrapper: ModelWrapper, slots: int = 192) -> FastSession:
    model = fast_model(wrapper)
    cache = model.take_cache(slots)
    captured = CapturedPass(model.run, cache, ROWS, wrapper.context_length, (0, 1))
    return FastSession(model, cache, captured)


def check(fast: FastSession, plain: Session, tokens: list[int], replays: int) -> None:
    before = Graph.replays
    tokens = torch.tensor(tokens)
    ours, expected = (s.read(tokens, keep=len(tokens)).logits for s in (fast, plain))
    torch.testing.assert_close(ours, expected)
    assert Graph.replays - before == replays


@torch.no_grad()
def test_a_captured_pass_gives_the_logits_of_a_pass(wrapper):
    fast, plain = session(wrapper), Session(wrapper)
    check(fast, plain, PROMPT, 0)
    for tokens in ([3], [8, 1], [4, 4, 6], [1]):  # two are padded to three
        check(fast, plain, tokens, 1)
    check(fast, plain, [7, 7, 2, 9], 0)  # more than there is a graph for
    for reader in (fast, plain):
        reader.roll_back(6)
    check(fast, plain, [2, 3], 1)


@torch.no_grad()
def test_what_it_gave_stays_when_the_next_one_is_launched(wrapper):
    fast = session(wrapper)
    fast.read(torch.tensor(PROMPT), keep=1)
    first = fast.read(torch.tensor([3]), keep=1).logits
    kept = first.clone()
    fast.read(torch.tensor([8]), keep=1)
    assert torch.equal(first, kept)


@torch.no_grad()
def test_it_goes_on_from_graph_to_graph_and_past_the_last(wrapper):
    """64 and 128 slots, then those of the cache, and no padding past the model's positions."""
    fast, plain = session(wrapper, slots=128), Session(wrapper)
    check(fast, plain, PROMPT * 15, 0)  # 60
    for replays in (1, 1, 1):
        check(fast, plain, [3, 4], replays)  # 66: the last one reaches into the second graph
    check(fast, plain, PROMPT * 15, 0)  # 126
    check(fast, plain, [3], 1)
    own = fast.cache
    check(fast, plain, [3, 4], 0)  # 129: past its slots
    check(fast, plain, [3], 0)
    assert fast.cache is not own and own.slots == 128  # another run still has the graphs' own


@torch.no_grad()
def test_near_the_end_of_a_context_nothing_is_padded(wrapper):
    limit = wrapper.context_length
    fast, plain = session(wrapper, slots=1024), Session(wrapper)
    check(fast, plain, [5] * (limit - 2), 0)
    check(fast, plain, [3, 4], 0)


@pytest.mark.parametrize(
    ("method", "request_"),
    [("exact_match", {}), ("intersection", dict(temperature=0.8)), ("intersection", {})],
)
def test_a_pair_of_two_vocabularies_gives_the_references_tokens(monkeypatch, method, request_):
    tokenizers = [make_tokenizer(300), make_tokenizer(384)]
    pair = [
        wrap(make_model("llama", len(tokenizer), dtype=torch.float64), tokenizer)
        for tokenizer in tokenizers
    ]
    asked = dict(max_new_tokens=60, seed=1, eos_token_id=None) | request_
    reference = SpeculativeDecoder(*pair, 3, vocabulary=method, engine="eager")
    expected = reference.generate(PROMPT, **asked)
    monkeypatch.setattr(Decoder, "_is_captured", lambda self, fast: fast.target is not None)
    decoder = SpeculativeDecoder(*pair, 3, vocabulary=method, engine="compiled")
    result = decoder.generate(PROMPT, **asked)
    assert result.generated_ids == expected.generated_ids
    assert result.accepted_per_round == expected.accepted_per_round
    assert result.draft_steps == expected.draft_steps
    assert Graph.replays >= result.draft_steps
