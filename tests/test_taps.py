"""A drafter that reads the target's hidden states: it is given those of the text, of all of it.

It drafts with no model of its own, so its rounds are driven from the host; the target's pass is
compiled as ever, and gives what it is tapped at.
"""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.decoder import Decoder
from specdec.decoding.drafters.interface import Drafter, Drafting, Proposal
from specdec.utils.errors import SpecdecError
from tests.checks import needs_compiler
from tests.test_captured_passes import graphs  # noqa: F401  (graphs that run on a CPU)
from tests.tiny import make_model, wrap

PROMPT = [5, 9, 2, 7]
NEW_TOKENS, K = 20, 3
ENGINES = ["eager", "compiled"]


class Head(Drafter):
    """Knows the text to come, gets half of it wrong, and keeps what it is given."""

    gives_q = False
    on_host = "it is a test"

    def __init__(self, text: list[int], taps: tuple[int, ...]) -> None:
        self.text, self.taps = text, taps
        self.hidden: list[list[torch.Tensor]] = [[] for _ in taps]
        self.kept: list[int] = []

    def begin(self, run, draft_prompt, read) -> Drafting:
        self.take(read, run.prompt_length)
        return HeadDrafting(self, run)

    def take(self, read, rows: int) -> None:
        assert len(read.hidden) == len(self.taps)
        for kept, given in zip(self.hidden, read.hidden, strict=True):
            kept.append(given[:rows])


class HeadDrafting(Drafting):
    def __init__(self, head: Head, run) -> None:
        self._head, self._run = head, run

    def propose(self, k: int) -> Proposal:
        begin = self._run.position
        tokens = [t + (i % 4 > 1) for i, t in enumerate(self._head.text)][begin : begin + k]
        return Proposal(torch.tensor(tokens, dtype=torch.long), None, len(tokens), 0)

    def settle(self, kept, token, read) -> None:
        self._head.kept.append(kept)
        self._head.take(read, kept + 1)


class HeadDecoder(Decoder):
    num_draft_tokens = K

    def __init__(self, target, head: Head, engine: str) -> None:
        super().__init__(target, coupled=False, engine=engine)
        self.head = head

    def drafter(self, temperature: float) -> Drafter:
        return self.head


@pytest.fixture(params=["gpt2", "llama"])
def target(request):
    return wrap(make_model(request.param, layers=3, dtype=torch.float64))


def decode(target, engine: str, taps: tuple[int, ...]):
    """The head, and what a decoder made with it; its text is the baseline's."""
    settings = dict(max_new_tokens=NEW_TOKENS, eos_token_id=None)
    text = AutoregressiveDecoder(target, engine="eager").generate(PROMPT, **settings).generated_ids
    head = Head(text, taps)
    decoder = HeadDecoder(target, head, engine)
    decoder.prepare(longest=len(PROMPT) + NEW_TOKENS)
    result = decoder.generate(PROMPT, **settings)
    assert result.engine == engine and result.generated_ids == text
    assert {0, 1, 2} <= set(head.kept)
    return head, result


def check_hidden(target, head: Head, **tolerance) -> None:
    """What the head was given are the hidden states of the text, read at once."""
    ids = torch.tensor([[*PROMPT, *head.text]])
    with torch.no_grad():
        expected = target.model(ids, output_hidden_states=True).hidden_states
    for tap, given in zip(head.taps, head.hidden, strict=True):
        given = torch.cat(given)
        assert len(given) >= len(PROMPT) + NEW_TOKENS - 1
        torch.testing.assert_close(given, expected[tap][0, : len(given)], **tolerance)


@pytest.mark.parametrize("taps", [(), (2,), (0, 1, 3)], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_drafter_reads_the_hidden_states_of_all_that_is_decided(uncompiled, target, engine, taps):
    head, _ = decode(target, engine, taps)
    check_hidden(target, head)


@needs_compiler
@pytest.mark.slow
def test_the_compiled_pass_gives_them():
    target = wrap(make_model("llama"))
    head, result = decode(target, "compiled", (0, 1, 2))
    check_hidden(target, head, rtol=1e-3, atol=1e-3)
    assert result.engine_reason == "rounds are driven from the host: it is a test"


def test_graphs_give_them(graphs, target, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Decoder, "_is_captured", lambda self, fast: fast.target is not None)
    head, _ = decode(target, "compiled", (1, 3))
    check_hidden(target, head)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_that_the_target_lacks_is_refused_in_one_line(uncompiled, target, engine):
    decoder = HeadDecoder(target, Head([], (1, 4)), engine)
    with pytest.raises(SpecdecError, match=r"hidden states \[4\] .* has 0 to 3"):
        decoder.generate(PROMPT, 3)
