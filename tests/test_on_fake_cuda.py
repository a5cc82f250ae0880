"""Rounds on GPUs that compute nothing: devices, what the host waits for, what is copied, captured
and compiled, and when."""

from __future__ import annotations

import pytest
import torch

from specdec.decoding import generation, rounds
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine.capture import lengths
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError
from specdec.vocabulary.match import VocabularyMatch
from tests.fake_cuda import fake_cuda, on_fake_device
from tests.tiny import KINDS, make_model, make_tokenizer, wrap

PROMPT = [5, 9, 2, 7]
SAMPLING = {
    "greedy": {},
    "sampled": dict(temperature=0.8),
    "top-k": dict(temperature=0.8, top_k=5),
    "top-p": dict(temperature=0.8, top_p=0.9),
}
FEW, MANY = 2, 6  # tokens; with nothing but ones read, a round of K = 2 keeps one and emits two


@pytest.fixture(autouse=True)
def logits_are_numbers(monkeypatch):
    """What is read is all ones, and may look as if the logits were none, or no token in common."""
    monkeypatch.setattr(rounds, "check_finite", lambda finite: None)
    monkeypatch.setattr(VocabularyMatch, "describe", lambda match: match.kind)


class Pair:
    """Models made on the processor, before the fake GPU is there."""

    def __init__(self, kind: str = "gpt2", other_vocabulary: bool = False) -> None:
        tokenizers, sizes = [None, None], [384, 384]
        if other_vocabulary:
            tokenizers = [make_tokenizer(300), make_tokenizer(384)]
            sizes = [len(tokenizer) for tokenizer in tokenizers]
        self.wrappers = [
            wrap(make_model(kind, layers=1, vocab_size=size), tokenizer)
            for size, tokenizer in zip(sizes, tokenizers, strict=True)
        ]

    def on(self, device: str) -> list[ModelWrapper]:
        """`[draft, target]` on a fake device."""
        for wrapper in self.wrappers:
            on_fake_device(wrapper.model, device)
            wrapper.device = torch.device(device)
        return self.wrappers


def decoders(draft: ModelWrapper, target: ModelWrapper, k: int = 2, **settings) -> list:
    """The baseline and a speculative decoder."""
    shared = {name: value for name, value in settings.items() if name in ("engine", "coupled")}
    return [
        AutoregressiveDecoder(target, **shared),
        SpeculativeDecoder(draft, target, k, **settings),
    ]


def generate(decoder, tokens: int = MANY, **request):
    return decoder.generate(PROMPT, tokens, **dict(seed=1, eos_token_id=None) | request)


def hand_overs(result) -> int:
    return result.num_speculation_rounds or result.num_tokens - 1


def check_rounds(machine, decoder, request: dict) -> None:
    """One read a round, and when captured no copy; the same before the rounds, however many."""
    seen = []
    for tokens in (MANY, FEW, MANY):  # the first captures what there is to
        machine.forget()
        result = generate(decoder, tokens, **request)
        seen.append((hand_overs(result), machine.reads.total(), machine.copies.total()))
    _, (few, few_reads, few_copies), (many, many_reads, many_copies) = seen
    assert many > few
    assert many_reads - few_reads == many - few, machine.reads
    if result.engine == "compiled":
        assert many_copies == few_copies, machine.copies
    else:  # what was read goes back into the sequence
        assert many_copies - few_copies <= many - few, machine.copies


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_round_is_read_once_and_copies_nothing(engine, sampling):
    pair = Pair()
    with fake_cuda() as machine:
        for decoder in decoders(*pair.on("cuda:0"), engine=engine):
            check_rounds(machine, decoder, SAMPLING[sampling])


@pytest.mark.parametrize("settings", [dict(coupled=True), dict(synthetic_acceptance=0.5)], ids=str)
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_so_is_one_that_matches_or_whose_acceptance_is_forced(engine, settings):
    pair = Pair()
    request = SAMPLING["sampled"] if "coupled" in settings else {}
    with fake_cuda() as machine:
        for decoder in decoders(*pair.on("cuda:0"), engine=engine, **settings):
            check_rounds(machine, decoder, request)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])
def test_no_family_of_models_meets_another_device(kind):
    pair = Pair(kind)
    with fake_cuda() as machine:
        check_rounds(machine, decoders(*pair.on("cuda:0"), engine="compiled")[1], {})


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_draft_of_another_vocabulary_meets_no_other_device(engine):
    pair = Pair(other_vocabulary=True)
    with fake_cuda():
        decoder = decoders(*pair.on("cuda:0"), engine=engine, vocabulary="exact_match")[1]
        result = generate(decoder)
        assert result.num_tokens == MANY and result.engine == engine


def test_models_on_the_second_gpu_are_captured_and_timed_there():
    pair = Pair()
    with fake_cuda() as machine:
        for engine in ("eager", "compiled"):
            for decoder in decoders(*pair.on("cuda:1"), engine=engine):
                generate(decoder)
        assert machine.used
        elsewhere = {what for what, device in machine.used if device != 1}
        assert not {what for what in elsewhere if "elapsed" not in what and "sync" not in what}


def test_a_job_captures_once_whatever_its_prompts():
    pair = Pair()
    with fake_cuda() as machine:
        for decoder in decoders(*pair.on("cuda:0"), engine="compiled"):
            decoder.prepare(longest=300)
            assert machine.captures == len(lengths(320))  # a graph for each length of text
            machine.forget()
            for length in (3, 290, 40):
                decoder.generate([5] * length, FEW, seed=1, eos_token_id=None)
            assert machine.captures == 0


class Refusal(RuntimeError):
    pass


def refusing(module, **_):
    """A compiler that says nothing until it is to run, as PyTorch's does."""

    def call(*arguments):
        raise Refusal("Python.h: no such file")

    return call


def test_where_the_compiler_refuses_auto_runs_eagerly_and_says_why():
    pair = Pair()
    with fake_cuda(refusing):
        for decoder in decoders(*pair.on("cuda:0"), engine="auto"):
            decoder.prepare()
            result = generate(decoder)
            assert result.engine == "eager"
            assert "Python.h" in result.engine_reason


def test_where_the_compiler_refuses_compiled_is_one_line_from_prepare():
    pair = Pair()
    with fake_cuda(refusing):
        for decoder in decoders(*pair.on("cuda:0"), engine="compiled"):
            with pytest.raises(SpecdecError, match=r"Python\.h"):
                decoder.prepare()


def test_where_the_capture_fails_auto_runs_eagerly_and_says_why(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory while capturing")

    pair = Pair()
    with fake_cuda():
        monkeypatch.setattr(torch.cuda, "graph", full)
        for decoder in decoders(*pair.on("cuda:0"), engine="auto"):
            decoder.prepare()
            result = generate(decoder)
            assert result.engine == "eager"
            assert "while capturing" in result.engine_reason


@pytest.mark.parametrize("other_vocabulary", [False, True])
def test_nothing_is_compiled_or_captured_while_the_clock_runs(monkeypatch, other_vocabulary):
    """A first call takes 1 000 s of this clock, and so does a capture; all else takes none."""
    clock = [0.0]
    monkeypatch.setattr(generation, "perf_counter", lambda: clock[0])

    def take_long():
        clock[0] += 1000

    def slow(module, **_):
        called = []

        def call(*arguments):
            if not called:
                called.append(True)
                take_long()
            return module(*arguments)

        return call

    pair = Pair(other_vocabulary=other_vocabulary)
    with fake_cuda(slow) as machine:
        machine.on_capture = take_long
        for decoder in decoders(*pair.on("cuda:0"), engine="compiled"):
            for length in (4, 100):  # the second needs longer caches
                result = decoder.generate([5] * length, MANY, seed=1, eos_token_id=None)
                assert result.engine == "compiled"
                assert result.total_time == 0
        assert clock[0] >= 2000  # it is this clock that was looked at
