"""Rounds on GPUs that compute nothing: devices, what the host waits for, what is copied, captured
and compiled, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from specdec.certification import greedy, sampling
from specdec.certification.greedy import check_greedy
from specdec.data.dataset import Prompt
from specdec.decoding import generation, rounds
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.decoder import Decoder
from specdec.decoding.loaded_pair import LoadedPair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine.capture import lengths
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelPair, ModelSide
from specdec.models.wrapper import ModelWrapper
from specdec.planning.measure import reader, time_pass
from specdec.utils.errors import SpecdecError
from specdec.vocabulary.match import VocabularyMatch
from tests.fake_cuda import fake_cuda, on_fake_device, place
from tests.test_int4 import needs_bitsandbytes
from tests.tiny import KINDS, make_model, make_tokenizer, wrap

PROMPT = [5, 9, 2, 7]
SAMPLING = {
    "greedy": {},
    "sampled": dict(temperature=0.8),
    "top-k": dict(temperature=0.8, top_k=5),
    "top-p": dict(temperature=0.8, top_p=0.9),
}
SHAPE = dict(
    vocab_size=384,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
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


def bridged(
    pair: Pair, method: str, k: int = 2, engine: str = "compiled"
) -> Callable[[str], SpeculativeDecoder]:
    """A decoder of two vocabularies, which are compared before the fake GPU is there: what it
    returns puts models and tables on a fake device."""
    made = SpeculativeDecoder(*pair.wrappers, k, vocabulary=method, engine=engine)
    drafters = [made.drafter(temperature) for temperature in (0.0, 0.8)]

    def on(device: str) -> SpeculativeDecoder:
        pair.on(device)
        for drafter in drafters:
            for name, table in vars(drafter).items():
                if isinstance(table, torch.Tensor):
                    empty = torch.empty(table.shape, dtype=table.dtype, device=device)
                    setattr(drafter, name, empty)
        return made

    return on


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


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(("method", "reads"), [("exact_match", 2), ("intersection", 1)])
def test_of_a_draft_of_another_vocabulary_each_pass_is_one_launch(method, reads, k):
    """The host drives them, and nothing of what it copies and waits for is a matter of K. A text
    that is proposed is read before it is known what the target is to verify."""
    on = bridged(Pair(other_vocabulary=True), method, k)
    with fake_cuda() as machine:
        decoder = on("cuda:0")
        request = {} if method == "exact_match" else SAMPLING["sampled"]
        seen = []
        for tokens in (MANY, FEW, MANY):  # the first captures
            machine.forget()
            result = generate(decoder, tokens, **request)
            launched = sum(what == "CUDAGraph.replay" for what, _ in machine.used)
            passes = result.draft_steps + result.num_speculation_rounds
            assert launched == passes, machine.used
            rounds = result.num_speculation_rounds
            seen.append((rounds, machine.reads.total(), machine.copies.total()))
        _, (few, few_reads, few_copies), (many, many_reads, many_copies) = seen
        assert machine.captures == 0 and many > few
        assert many_reads - few_reads == reads * (many - few), machine.reads
        # The text so far, what of it the draft reads, and of a text that is proposed its tokens and
        # how many there are.
        assert many_copies - few_copies <= 4 * (many - few), machine.copies


@needs_bitsandbytes
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_draft_in_4_bits_meets_no_other_device(engine):
    llama = {**SHAPE, "model_type": "llama"}
    sides = [ModelSide("tiny", form, weights="random", shape=llama) for form in ("int4", "float32")]
    pair = Pair()
    pair.wrappers = [load_random_weights(side, "cpu") for side in sides]
    with fake_cuda() as machine:
        for decoder in decoders(*pair.on("cuda:0"), engine=engine):
            check_rounds(machine, decoder, {})


def test_plan_times_the_passes_that_decode(monkeypatch):
    """Each of those that are timed is one launch."""
    pair = Pair()
    with fake_cuda() as machine:
        _, target = pair.on("cuda:0")
        session = reader(target, 300, [1, 3, 5], "compiled")
        assert machine.captures
        for count in (1, 3, 5, 5):
            machine.forget()
            time_pass(target, session, count)
            assert [what for what, _ in machine.used] == ["CUDAGraph.replay"]
            assert machine.captures == 0


def test_passes_are_captured_once_whatever_the_prompts_and_the_sampling():
    on = bridged(Pair(other_vocabulary=True), "intersection")
    with fake_cuda() as machine:
        decoder = on("cuda:0")
        decoder.prepare(longest=150)
        assert machine.captures > 0
        machine.forget()
        decoder.prepare(temperature=0.8, longest=150)
        for length in (3, 140, 40):
            request = SAMPLING["sampled"] if length == 40 else {}
            decoder.generate([5] * length, MANY, seed=1, eos_token_id=None, **request)
        assert machine.captures == 0


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


def test_a_first_call_that_nobody_prepared_captures_once():
    pair = Pair()
    with fake_cuda() as machine:
        for decoder in decoders(*pair.on("cuda:0"), engine="compiled"):
            machine.forget()
            decoder.generate([5] * 300, FEW, seed=1, eos_token_id=None)
            assert machine.captures == len(lengths(320))


def test_a_certificate_captures_for_its_longest_text_at_once(monkeypatch):
    """Of each decoder's rounds; no prompt after that captures anew."""
    asked = []
    prepare = Decoder.prepare

    def spy(self, *settings, longest=0, **others):
        asked.append(longest)
        return prepare(self, *settings, longest=longest, **others)

    monkeypatch.setattr(Decoder, "prepare", spy)
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    models = [wrap(make_model(layers=1, vocab_size=size, seed=i), tokenizer) for i in range(2)]
    texts = ["a fox", "def add(a, b):\n    return a + b\n" * 3]
    prompts = [Prompt(str(i), "code", text, 1) for i, text in enumerate(texts)]
    entry = ModelPair("tiny", ModelSide("draft", "float32"), ModelSide("target", "float32"))
    pair = LoadedPair(entry, "cpu", *models)
    lengths_of = [len(pair.encode(text).prompt_ids) for text in texts]
    check_greedy(pair, prompts, "eager")
    assert asked == [max(lengths_of) + greedy.NEW_TOKENS] * 5
    asked.clear()
    contexts = [pair.encode(text) for text in texts]
    sampling.draw(lambda k: pair.decoder(k, "eager"), contexts, sampling.SETTINGS[0], 20)
    assert asked == [max(lengths_of) + sampling.LENGTH]


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


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("method", "sampling"),
    [
        ("shared", "greedy"),
        ("shared", "sampled"),
        ("exact_match", "greedy"),
        ("intersection", "sampled"),
    ],
)
def test_nothing_is_compiled_or_captured_while_the_clock_runs(
    monkeypatch, method, sampling, engine
):
    """A first call takes 1 000 s of this clock, and so does a capture; all else takes none."""
    clock = [0.0]
    monkeypatch.setattr(generation, "perf_counter", lambda: clock[0])
    seen = Counter()  # first calls and captures by their place

    def take_long():
        seen[place()] += 1
        clock[0] += 1000

    def slow(module, **_):
        called = []

        def call(*arguments):
            if not called:
                called.append(True)
                take_long()
            return module(*arguments)

        return call

    pair = Pair(other_vocabulary=method != "shared")
    on = bridged(pair, "auto" if method == "shared" else method, engine=engine)
    request = SAMPLING[sampling]
    with fake_cuda(slow) as machine:
        machine.on_capture = take_long
        for decoder in (on("cuda:0"), AutoregressiveDecoder(pair.wrappers[1], engine=engine)):
            for length in (4, 100):  # the second needs longer caches
                before = seen.copy()
                result = decoder.generate([5] * length, MANY, seed=1, eos_token_id=None, **request)
                assert result.engine == engine
                assert result.total_time == 0, seen - before
    if engine == "compiled":
        assert clock[0] >= 2000  # it is this clock that was looked at
    else:
        assert not seen
