"""Two vocabularies are compared by what their tokens are, and mapped by their bytes."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec.utils.errors import SpecdecError
from specdec.vocabulary.match import compare, coverage
from specdec.vocabulary.token_bytes import ByteTokenizer, token_bytes
from tests.toy_tokenizers import CORPUS, byte_level, sentencepiece

WHOLE = {  # tokenizers that can spell every byte
    "gpt2": ByteTokenizer(byte_level()),
    "neox": ByteTokenizer(byte_level(460, "neox")),
    "llama3": ByteTokenizer(byte_level(440, "llama3")),
    "llama": ByteTokenizer(sentencepiece()),
    "metaspace": ByteTokenizer(sentencepiece(style="metaspace")),
}
ODD_TEXTS = [
    "<|endoftext|> is text, and so are <s>, </s> and <unk>",
    "a literal ▁, a literal <0x0A>, a literal Ġ",
    "e\u0301 stays two code points, and ﬁ stays one",
    " one space before", "  two before", "\n\n   \n\t x", "", " ",
]  # fmt: skip


def permuted(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokens under other ids: two tokens of one length swapped."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = definition["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return rebuilt(definition)


def with_more(tokenizer: PreTrainedTokenizerFast, *contents: str) -> PreTrainedTokenizerFast:
    longer = rebuilt(json.loads(tokenizer.backend_tokenizer.to_str()))
    longer.add_special_tokens({"additional_special_tokens": list(contents)})
    return longer


def rebuilt(definition: dict) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def words(*tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer of neither family."""
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


def spelled(tokenizer: ByteTokenizer, ids: list[int]) -> bytes:
    return b"".join(tokenizer.bytes[i] for i in ids)


@pytest.mark.parametrize("name", WHOLE)
def test_the_bytes_of_a_texts_tokens_are_the_texts_bytes(name):
    tokenizer = WHOLE[name]
    for text in [text for text in CORPUS if "e\u0301" not in text]:
        ids = tokenizer.tokenizer.encode(text, add_special_tokens=False)
        space = b" " if tokenizer.opens_with_space else b""
        assert spelled(tokenizer, ids) == space + text.encode()


def test_special_tokens_have_no_bytes_and_byte_tokens_have_one():
    tokenizer = sentencepiece()
    table = token_bytes(tokenizer)
    assert len(table) == len(tokenizer)
    assert table[:3] == [None] * 3
    assert table[3:259] == [bytes([byte]) for byte in range(256)]
    assert table[tokenizer.convert_tokens_to_ids("▁")] == b" "


def test_an_added_token_is_its_content_and_no_byte_spelling():
    tokenizer = rebuilt(json.loads(byte_level(460, "neox").backend_tokenizer.to_str()))
    tokenizer.backend_tokenizer.add_tokens(["é"])  # as a byte spelling, é would be byte 0xE9
    table = token_bytes(tokenizer)
    assert table[tokenizer.convert_tokens_to_ids(" " * 8)] == b" " * 8
    assert table[tokenizer.convert_tokens_to_ids("é")] == "é".encode()


def test_a_tokenizer_of_an_unknown_family_is_refused_by_name():
    with pytest.raises(SpecdecError, match="neither byte-level nor sentencepiece"):
        token_bytes(words("?", "a"))


@pytest.mark.parametrize("name", WHOLE)
def test_encoding_odd_text_spells_it_exactly_and_without_special_tokens(name):
    tokenizer = WHOLE[name]
    for text in ODD_TEXTS:
        pieces = tokenizer.encode(text.encode())
        assert not {i for i, _ in pieces} & set(tokenizer.special)
        assert spelled(tokenizer, [i for i, _ in pieces]) == text.encode()


@settings(derandomize=True, deadline=None, database=None)
@given(data=st.one_of(st.binary(max_size=30), st.text(max_size=30).map(str.encode)))
def test_encoding_any_bytes_spells_them_and_says_where_each_token_ends(data):
    for tokenizer in WHOLE.values():
        start = 0
        for i, end in tokenizer.encode(data):
            assert tokenizer.bytes[i] == data[start:end]
            start = end
        assert start == len(data)


def test_bytes_that_no_token_spells_are_left_out_and_the_ends_show_it():
    tokenizer = ByteTokenizer(byte_level(200, "ascii"))
    pieces = tokenizer.encode("aé b".encode())
    assert spelled(tokenizer, [i for i, _ in pieces]) == b"a b"
    assert pieces[0][1] == 1 and pieces[-1][1] == 5


@pytest.mark.parametrize("name", WHOLE)
def test_text_is_encoded_as_the_tokenizer_itself_would_with_special_tokens_split(name):
    tokenizer = WHOLE[name]
    for text in [*CORPUS, ODD_TEXTS[0]]:
        text = text.replace("e\u0301", "")
        space = b" " if tokenizer.opens_with_space else b""
        own = tokenizer.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert [i for i, _ in tokenizer.encode(space + text.encode())] == own


@pytest.mark.parametrize("name", WHOLE)
def test_only_what_the_tokenizer_cannot_read_is_spelled_by_longest_tokens(name, monkeypatch):
    """The fallback makes up for nearly every fault of the encoder, but with other ids."""
    tokenizer, fallen_back = WHOLE[name], []
    monkeypatch.setattr(tokenizer, "_spell", lambda raw: fallen_back.append(raw) or [])
    for text in [*CORPUS, "dog", ODD_TEXTS[0], "the <0x0A> e\u0301"]:
        tokenizer.encode(text.encode())
    assert fallen_back == []
    tokenizer.encode(b"the dog\xff" + "the ▁ dog".encode())
    expected = [b"\xff", "▁".encode()] if tokenizer.opens_with_space else [b"\xff"]
    assert fallen_back == expected


def test_a_tokenizer_and_itself_are_the_same():
    match = compare(byte_level(), byte_level(), 420, 420)
    assert match.kind == "same"
    assert match.describe() == "same vocabulary: 420 tokens"
    assert match.draft_to_target.tolist() == list(range(420))


def test_logits_of_two_widths_are_padded_and_cut_to_the_tokenizer():
    match = compare(byte_level(), byte_level(), 512, 448)
    assert match.kind == "padded"
    assert (match.draft_size, match.target_size) == (420, 420)


def test_more_tokens_at_the_end_of_one_side_are_padded():
    longer = with_more(byte_level(), "<|user|>", "<|end|>")
    in_draft = compare(longer, byte_level(), 512, 512)
    assert in_draft.kind == "padded"
    assert in_draft.draft_to_target.tolist() == [*range(420), -1, -1]
    in_target = compare(byte_level(), longer, 512, 512)
    assert in_target.kind == "padded"
    assert (in_target.draft_size, in_target.target_size) == (420, 422)
    assert in_target.overlap == 420


def test_a_target_token_that_the_draft_has_no_embedding_for_makes_them_different():
    longer = with_more(byte_level(), "<|user|>")
    match = compare(byte_level(), longer, 420, 421)
    assert match.kind == "different"
    cut = compare(longer, longer, 420, 421)  # the draft's tokenizer has it, its embedding has not
    assert cut.kind == "different"


def test_special_tokens_of_equal_content_belong_together():
    longer = with_more(byte_level(300), "<|user|>")
    match = compare(with_more(byte_level(), "<|user|>"), longer, 421, 301)
    assert match.kind == "different"
    assert match.draft_to_target[420] == 300


def test_equal_sizes_with_different_tokens_are_different():
    match = compare(permuted(byte_level()), byte_level(), 420, 420)
    assert match.kind == "different"
    assert match.overlap == 420
    a, b = (byte_level().convert_tokens_to_ids(token) for token in "ab")
    assert match.draft_to_target[[a, b]].tolist() == [b, a]


def test_special_tokens_of_other_names_are_counted_and_change_nothing():
    first, second = (with_more(byte_level(), name) for name in ("<|reserved|>", "<|end|>"))
    match = compare(first, second, 421, 421)
    assert match.kind == "same"
    assert match.describe() == "same vocabulary: 421 tokens (1 special tokens respelled)"


def test_a_text_token_against_a_special_one_is_different():
    first, second = (with_more(byte_level(), name) for name in ("<|reserved|>", "<|end|>"))
    second.backend_tokenizer.add_tokens(["word"])
    first.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    assert compare(first, second, 422, 422).kind == "different"


def test_tokens_of_one_spelling_in_two_families_are_different():
    definition = json.loads(byte_level().backend_tokenizer.to_str())
    definition["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True
    }  # fmt: skip
    definition["decoder"] = dict(definition["pre_tokenizer"])
    assert compare(rebuilt(definition), byte_level(), 420, 420).kind == "different"


def test_equal_tokenizers_of_an_unknown_family_are_the_same():
    assert compare(words("?", "a"), words("?", "a"), 2, 2).kind == "same"
    with pytest.raises(SpecdecError):
        compare(words("?", "a"), words("?", "b"), 2, 2)


def test_several_draft_ids_of_one_byte_string_have_one_target_id():
    match = compare(sentencepiece(), byte_level(), 493, 420)
    draft, target = match.draft.tokenizer, match.target.tokenizer
    twice = draft.convert_tokens_to_ids(["<0x61>", "a"])
    assert len(set(twice)) == 2
    assert match.draft_to_target[twice].tolist() == [target.convert_tokens_to_ids("a")] * 2
    q = torch.rand(493, dtype=torch.float64).masked_fill(match.draft_to_target < 0, 0)
    q /= q.sum()
    added = torch.zeros(420, dtype=torch.float64)
    added.index_add_(0, match.draft_to_target.clamp(min=0), q)
    assert added.sum().item() == pytest.approx(1)
    assert (added > 0).equal((added > 0) & match.in_draft)


def test_of_several_target_ids_it_is_the_one_that_the_target_writes():
    match = compare(byte_level(), sentencepiece(), 420, 493)
    draft, target = match.draft.tokenizer, match.target.tokenizer
    for ours, theirs in (("a", "a"), ("Ġ", "▁"), ("Ċ", "<0x0A>")):
        found = match.draft_to_target[draft.convert_tokens_to_ids(ours)].item()
        assert target.convert_ids_to_tokens(found) in (theirs, theirs.replace("<0x0A>", "\n"))
        assert [i for i, _ in match.target.encode(match.target.bytes[found])] == [found]


def test_every_map_entry_joins_equal_bytes_or_end_to_end():
    for draft, target in ((byte_level(), sentencepiece()), (sentencepiece(), byte_level(460))):
        match = compare(draft, target, len(draft), len(target))
        for i, j in enumerate(match.draft_to_target.tolist()):
            if j >= 0 and match.draft.bytes[i] is not None:
                assert match.draft.bytes[i] == match.target.bytes[j]
        assert match.draft_to_target[draft.eos_token_id] == target.eos_token_id
        assert match.in_draft.sum() == len(set(match.draft_to_target.tolist()) - {-1})


def test_a_target_id_beyond_the_targets_logits_is_no_target():
    match = compare(byte_level(), sentencepiece(), 420, 300)
    assert match.target_size == 300
    assert match.draft_to_target.max() < 300


def test_coverage_is_the_targets_mass_inside_the_draft():
    match = compare(byte_level(), sentencepiece(), 420, 493)
    probs = torch.zeros(2, 512)  # padded logits: what lies beyond the tokenizer is not looked at
    inside, outside = match.in_draft.nonzero()[0], (~match.in_draft).nonzero()[0]
    probs[0, inside], probs[0, outside] = 0.75, 0.25
    probs[1, outside] = 1.0
    assert coverage(match, probs) == pytest.approx(0.375)
    assert coverage(
        compare(byte_level(), byte_level(), 420, 420), torch.full((1, 420), 1 / 420)
    ) == (pytest.approx(1))
