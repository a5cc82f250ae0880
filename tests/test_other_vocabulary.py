"""A draft with another vocabulary than its target's: two lossless methods, and contexts in step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec.certification.rule import emitted, joint
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.drafters.bridged import IntersectionDrafting
from specdec.decoding.generation import Generation, make_request
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.method.rule import match
from specdec.method.sampling import Rejection, Sampling
from specdec.models.wrapper import ModelWrapper, Session
from specdec.utils.errors import SpecdecError
from specdec.vocabulary.token_bytes import ByteTokenizer
from tests.distribution import SIGNIFICANCE, assert_lossless, joint_fit
from tests.tiny import TableModel, make_model, make_table
from tests.toy_tokenizers import byte_level, sentencepiece

METHODS = ("intersection", "exact_match")
TEXTS = [
    "def add(first, second):\n    return first + second\n\n\n    # the    end",
    "Привет, мир! The quick brown fox; naïve café 😀 日本語の文章.",
    "<|endoftext|> </s> is spelled out here,\t\tand   then\n\n\nmore",
    "x",
]


def toy(tokens: list[str], merges: list[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of few tokens, which spells them byte by byte or by merges."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def toy_pair():
    """Tables over a, b, c; "ab" is the target's alone, "ca" and "bc" are the draft's."""
    target_tokenizer = toy(["a", "b", "ab", "c"], [("a", "b")])
    draft_tokenizer = toy(["c", "a", "ca", "b", "bc"], [("c", "a"), ("b", "c")])
    target = ModelWrapper(TableModel(make_table(4, seed=0)), target_tokenizer, "cpu")
    draft = ModelWrapper(TableModel(make_table(5, seed=1)), draft_tokenizer, "cpu")
    return draft, target


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("warp", [dict(temperature=1.0), dict(temperature=0.7, top_k=3)], ids=str)
def test_the_joint_distribution_over_two_rounds_is_the_targets(toy_pair, method, warp):
    decoder = SpeculativeDecoder(*toy_pair, 2, vocabulary=method)
    assert_lossless(joint_fit(decoder, [0, 1, 3], 4, **warp))


def test_the_distribution_test_rejects_scores_permuted_against_their_tokens(toy_pair, monkeypatch):
    # What a published implementation does across vocabularies: one permutation of the draft's
    # head to draw from, another to score with.
    right = IntersectionDrafting.propose

    def propose(self, k):
        proposal = right(self, k)
        return proposal._replace(q=proposal.q.roll(1, dims=1))

    monkeypatch.setattr(IntersectionDrafting, "propose", propose)
    decoder = SpeculativeDecoder(*toy_pair, 2, vocabulary="intersection")
    fit = joint_fit(decoder, [0, 1, 3], 4, temperature=1.0)
    assert fit.p_value < SIGNIFICANCE


def conditionals(wrapper, prompt, length):
    """The target's distribution `[V]` after every continuation of up to `length` tokens."""
    size = wrapper.vocab_size
    return {
        prefix: Session(wrapper).read(torch.tensor([*prompt, *prefix]), 1).logits[0].softmax(-1)
        for n in range(length + 1)
        for prefix in itertools.product(range(size), repeat=n)
    }


def draft_distributions(pair, prompt, length):
    """q `[V_target]` of the intersection draft after every continuation that it can propose."""
    draft, target = pair
    decoder = SpeculativeDecoder(draft, target, 1, vocabulary="intersection")
    result = {}
    for n in range(length + 1):
        for prefix in itertools.product(range(target.vocab_size), repeat=n):
            request = make_request(target, [*prompt, *prefix], 2, temperature=1.0, seed=0)
            run = Generation(target, request, Sampling(Rejection), draft_tokens=1)
            drafting = decoder.drafter(temperature=1.0).begin(run, None, None)
            result[prefix] = drafting.propose(1).q[0]
    return result


def test_the_intersection_method_is_exact_by_enumeration(toy_pair):
    prompt, k = [0, 1, 3], 2
    target = conditionals(toy_pair[1], prompt, k + 1)
    draft = draft_distributions(toy_pair, prompt, k)
    assert all(abs(q.sum() - 1) < 1e-12 and q[2] == 0 for q in draft.values())  # never "ab"
    exact = joint(target, 4, k + 1)
    found = emitted(target, draft, 4, k, k + 1)
    assert max(abs(float(found[s]) - float(exact[s])) for s in exact) <= 1e-12


def test_the_exact_match_method_is_exact_by_enumeration(toy_pair):
    prompt, k = [0, 1, 3], 2
    target = conditionals(toy_pair[1], prompt, k + 1)
    exact = joint(target, 4, k + 1)
    valid = torch.ones(k, dtype=torch.bool)
    for proposal in itertools.product(range(4), repeat=k):  # whatever text the draft came up with
        found = dict.fromkeys(exact, 0.0)
        rows = [target[proposal[:i]] for i in range(k + 1)]
        for chosen in itertools.product(range(4), repeat=k + 1):
            weight = math.prod(row[c].item() for row, c in zip(rows, chosen, strict=True))
            count, token = match(torch.tensor(chosen), torch.tensor(proposal), valid)
            head = (*proposal[: int(count)], int(token))
            for tail in itertools.product(range(4), repeat=k + 1 - len(head)):
                chain = weight
                for i, next_token in enumerate(tail):
                    chain *= target[head + tail[:i]][next_token].item()
                found[head + tail] += chain
        assert max(abs(found[s] - float(exact[s])) for s in exact) <= 1e-12


TOKENIZERS = {
    "bytes to bytes": (byte_level(340), byte_level(420)),
    "sentencepiece to bytes": (sentencepiece(), byte_level(420)),
    "bytes to sentencepiece": (byte_level(420), sentencepiece()),
    "bytes to bytes of another style": (byte_level(340), byte_level(420, "neox")),
}


def random_pair(draft_tokenizer, target_tokenizer, dtype=torch.float64):
    def wrapper(tokenizer, seed):
        model = make_model(vocab_size=len(tokenizer), seed=seed, dtype=dtype)
        return ModelWrapper(model, tokenizer, "cpu")

    return wrapper(draft_tokenizer, 1), wrapper(target_tokenizer, 0)


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(request):
    return random_pair(*TOKENIZERS[request.param])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_greedy_output_equals_the_targets_on_any_text(pair, method, k):
    draft, target = pair
    decoder = SpeculativeDecoder(draft, target, k, vocabulary=method)
    baseline = AutoregressiveDecoder(target)
    for text in TEXTS:
        prompt = target.tokenizer(text).input_ids
        expected = baseline.generate(prompt, 16, eos_token_id=None).generated_ids
        assert decoder.generate(prompt, 16, eos_token_id=None).generated_ids == expected


class Echo(torch.nn.Module):
    """A model that knows a text by heart, however what it has read of it was cut into tokens.

    Next comes the longest token that continues the text; shorter ones that do are second best.
    """

    def __init__(self, tokenizer, text: str, end: bool = False) -> None:
        super().__init__()
        like = TableModel(make_table(4, seed=0))
        self.config, self.generation_config = like.config, None
        self.config.vocab_size = len(tokenizer)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.bytes, id_of = ByteTokenizer(tokenizer).bytes, ByteTokenizer(tokenizer).id_of
        # Of two tokens for the same bytes, the one that the tokenizer itself would write.
        self.written = [id_of.get(spelled) == i for i, spelled in enumerate(self.bytes)]
        self.ids = tokenizer(text).input_ids
        self.data = b"".join(self.bytes[i] or b"" for i in self.ids)
        self.end = tokenizer.eos_token_id if end else None
        self.fed = 0

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        n = input_ids.shape[1]
        self.fed += n
        rows = input_ids.view(1, 1, n, 1).double()
        rows, _ = past_key_values.update(rows, rows, 0)
        read = rows.view(-1).long().tolist()
        logits = [self.after(read[:length]) for length in range(len(read) - n + 1, len(read) + 1)]
        return type("Output", (), dict(logits=torch.stack(logits).unsqueeze(0)))

    def after(self, read: list[int]) -> torch.Tensor:
        logits = torch.zeros(self.config.vocab_size)
        known = b"".join(self.bytes[i] or b"" for i in read)
        rest = self.data[len(known) : len(known) + 20]
        if self.data.startswith(known):
            for i, spelled in enumerate(self.bytes):
                if spelled and rest.startswith(spelled):
                    logits[i] = 10 + len(spelled) + 0.5 * self.written[i]
            if not rest and self.end is not None:
                logits[self.end] = 10
        return logits


def echo_pair(draft_tokenizer, target_tokenizer, text, end=False):
    """Draft and target that know the text by heart."""
    return tuple(
        ModelWrapper(Echo(tokenizer, text, end), tokenizer, "cpu")
        for tokenizer in (draft_tokenizer, target_tokenizer)
    )


CODE = (
    "def add(first, second):\n    return first + second\n\n\n"
    "for i in range(10):\n        print(i)\n" * 4
)


def spell(wrapper, ids):
    return b"".join(wrapper.model.bytes[i] or b"" for i in ids)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("names", TOKENIZERS)
def test_a_draft_that_knows_the_text_is_mostly_accepted(names, method):
    # If the two contexts fell out of step, the draft would know nothing any more.
    draft, target = echo_pair(*TOKENIZERS[names], CODE)
    decoder = SpeculativeDecoder(draft, target, 4, vocabulary=method)
    result = decoder.generate(target.model.ids[:12], 80, eos_token_id=None)
    text = spell(target, target.model.ids[:12] + result.generated_ids)
    assert target.model.data.startswith(text) and len(text) > 100
    assert result.acceptance_rate > 0.3
    assert max(result.accepted_per_round[-5:]) > 0  # still in step at the end


@pytest.mark.parametrize("method", METHODS)
def test_the_draft_reads_no_more_per_round_in_a_long_text_than_in_a_short_one(method):
    def tokens_read_per_round(repeats):
        draft, target = echo_pair(byte_level(340), byte_level(420), CODE * repeats)
        decoder = SpeculativeDecoder(draft, target, 4, vocabulary=method)
        prompt = target.model.ids[:-40]
        decoder.generate(prompt, 1, eos_token_id=None)
        read_by_prefill, draft.model.fed = draft.model.fed, 0
        result = decoder.generate(prompt, 30, eos_token_id=None)
        return (draft.model.fed - read_by_prefill) / result.num_speculation_rounds

    short, long = tokens_read_per_round(1), tokens_read_per_round(6)
    assert short < 10 and long < 10


@pytest.mark.parametrize("method", METHODS)
def test_an_end_token_that_the_draft_proposes_ends_the_output(method):
    draft, target = echo_pair(sentencepiece(), byte_level(420), "def add(first, second):", end=True)
    end = target.tokenizer.eos_token_id
    decoder = SpeculativeDecoder(draft, target, 4, vocabulary=method)
    result = decoder.generate(target.model.ids[:3], 60, eos_token_id=end)
    assert result.generated_ids[-1] == end and result.finish_reason == "stop"
    assert spell(target, result.generated_ids[:-1]).endswith(b"second):")
    assert sum(result.accepted_per_round) > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_where_the_text_outgrows_the_drafts_context_the_target_goes_on_alone(method, temperature):
    draft_tokenizer, target_tokenizer = byte_level(340), byte_level(420)
    short = make_model(vocab_size=len(draft_tokenizer), n_positions=40, seed=1)
    target = ModelWrapper(make_model(vocab_size=len(target_tokenizer)), target_tokenizer, "cpu")
    draft = ModelWrapper(short, draft_tokenizer, "cpu")
    decoder = SpeculativeDecoder(draft, target, 4, vocabulary=method)
    prompt = target_tokenizer("def add(a, b):").input_ids
    settings = dict(temperature=temperature, seed=1, eos_token_id=None)
    result = decoder.generate(prompt, 60, **settings)
    assert result.num_tokens == 60 and result.proposed_per_round[-1] == 0
    if temperature == 0 or method == "exact_match":
        expected = AutoregressiveDecoder(target).generate(prompt, 60, **settings)
        assert result.generated_ids == expected.generated_ids
    assert "went on alone" in result.notes[0]
    far = decoder.generate(prompt * 12, 4, **settings)
    assert far.num_tokens == 4 and set(far.proposed_per_round) == {0}
    assert "went on alone" in far.notes[0]


def test_the_exact_match_method_gives_the_baselines_own_sample(pair):
    draft, target = pair
    decoder = SpeculativeDecoder(draft, target, 3, vocabulary="exact_match")
    settings = dict(temperature=0.9, top_p=0.9, seed=5, eos_token_id=None)
    prompt = target.tokenizer(TEXTS[0]).input_ids
    expected = AutoregressiveDecoder(target).generate(prompt, 20, **settings)
    assert decoder.generate(prompt, 20, **settings).generated_ids == expected.generated_ids


def test_the_method_and_the_vocabularies_are_said_in_the_result(pair):
    decoder = SpeculativeDecoder(*pair, 2)
    result = decoder.generate([5, 6, 7], 4)
    assert result.drafter == "ExactMatchDraft"  # what `auto` takes at temperature 0
    assert decoder.generate([5, 6, 7], 4, temperature=0.8).drafter == "IntersectionDraft"
    assert result.vocabulary_match.startswith("different vocabularies: ")


def test_equal_sizes_with_different_tokens_are_different():
    draft = ModelWrapper(make_model(vocab_size=3), toy(["a", "b", "c"]), "cpu")
    target = ModelWrapper(make_model(vocab_size=3), toy(["b", "a", "c"]), "cpu")
    assert SpeculativeDecoder(draft, target, 2).generate([0], 4).drafter == "ExactMatchDraft"


def test_vocabularies_without_a_common_token_are_refused_by_the_intersection_method():
    draft = ModelWrapper(make_model(vocab_size=2), toy(["a", "b"]), "cpu")
    target = ModelWrapper(make_model(vocab_size=2), toy(["c", "d"]), "cpu")
    with pytest.raises(SpecdecError, match="no token in common"):
        SpeculativeDecoder(draft, target, 2, vocabulary="intersection")
    decoder = SpeculativeDecoder(draft, target, 2)
    assert decoder.generate([0], 6, temperature=1.0, eos_token_id=None).num_tokens == 6


def test_an_unknown_method_is_refused(pair):
    with pytest.raises(SpecdecError, match="'guess' is not one of auto, intersection"):
        SpeculativeDecoder(*pair, 2, vocabulary="guess")
