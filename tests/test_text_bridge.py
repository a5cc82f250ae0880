"""The contexts of two models with different vocabularies spell the same text, after anything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from specdec.vocabulary import text_bridge
from specdec.vocabulary.text_bridge import TextBridge
from specdec.vocabulary.token_bytes import ByteTokenizer
from tests.toy_tokenizers import CORPUS, byte_level, sentencepiece

GPT2, NEOX = ByteTokenizer(byte_level()), ByteTokenizer(byte_level(460, "neox"))
LLAMA3 = ByteTokenizer(byte_level(440, "llama3"))
LLAMA, METASPACE = ByteTokenizer(sentencepiece()), ByteTokenizer(sentencepiece(style="metaspace"))
SMALL = ByteTokenizer(byte_level(300))
ASCII = ByteTokenizer(byte_level(200, "ascii"))
PAIRS = {
    "llama → gpt2": (LLAMA, GPT2),
    "gpt2 → llama": (GPT2, LLAMA),
    "metaspace → neox": (METASPACE, NEOX),
    "neox → metaspace": (NEOX, METASPACE),
    "small → gpt2": (SMALL, GPT2),
    "llama → metaspace": (LLAMA, METASPACE),
    "llama → llama3": (LLAMA, LLAMA3),
    "llama3 → llama": (LLAMA3, LLAMA),
}
PIECES = [
    "the dog", " doesn't", "\n\n    return first", "   ", " ", "\n", "  x", "\t\r\n", "\0", "",
    "日本語の文章と", "привет", "😀", "naïve café", "e\u0301", "▁", "<|endoftext|>", "</s>",
    "first" * 12, "12345",
]  # fmt: skip


def ids_of(tokenizer: ByteTokenizer, text: str) -> list[int]:
    """As a model of it would emit them: in the middle of a text."""
    return [i for i, _ in tokenizer.encode(text.encode())]


def opened(tokenizer: ByteTokenizer, text: str) -> list[int]:
    """As its tokenizer begins a text."""
    return tokenizer.tokenizer.encode(text, split_special_tokens=True)


def reading(tokenizer: ByteTokenizer, ids: list[int]) -> bytes:
    """What a person reads: the text, without special tokens and the space put before it."""
    data = b"".join(tokenizer.bytes[i] or b"" for i in ids)
    return data.removeprefix(b" ") if tokenizer.opens_with_space else data


def skeleton(tokenizer: ByteTokenizer, ids: list[int]) -> list[bytes | int]:
    """The ids as text and special tokens in turn."""
    parts: list[bytes | int] = []
    for i in ids:
        if tokenizer.bytes[i] is None:
            parts.append(i)
        elif parts and isinstance(parts[-1], bytes):
            parts[-1] += tokenizer.bytes[i]
        else:
            parts.append(tokenizer.bytes[i])
    return parts


def check(bridge: TextBridge, draft: ByteTokenizer, target: ByteTokenizer, ids: list[int]) -> None:
    assert bridge.target_length == len(ids)
    assert bridge.unseen == b""
    assert reading(draft, bridge.draft_ids) == reading(target, ids)
    scratch = TextBridge(draft, target)
    scratch.extend(ids)
    assert skeleton(draft, bridge.draft_ids) == skeleton(draft, scratch.draft_ids)


steps = st.one_of(
    st.tuples(st.just("text"), st.lists(st.sampled_from(PIECES), min_size=1, max_size=3)),
    st.tuples(st.just("ids"), st.lists(st.integers(0, 10_000), min_size=1, max_size=5)),
)


@pytest.mark.parametrize("pair", PAIRS)
@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(opening=st.sampled_from(PIECES), script=st.lists(steps, max_size=8))
def test_after_any_extending_both_contexts_spell_the_same(pair, opening, script):
    draft, target = PAIRS[pair]
    bridge = TextBridge(draft, target)
    ids = opened(target, opening)
    bridge.extend(ids)
    check(bridge, draft, target, ids)
    for kind, value in script:
        before = list(bridge.draft_ids)
        more = ids_of(target, "".join(value)) if kind == "text" else value
        more = [i % target.size for i in more]
        ids = ids + more
        kept = bridge.extend(more)
        assert bridge.draft_ids[:kept] == before[:kept]
        check(bridge, draft, target, ids)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_text_fed_token_by_token_gets_the_ids_that_the_drafts_tokenizer_writes(pair):
    draft, target = PAIRS[pair]
    for text in [*CORPUS, "日本語の文章" * 40]:
        bridge = TextBridge(draft, target)
        bridge.extend(opened(target, "x"))
        taken_back = 0
        for byte in text.encode():
            length = len(bridge.draft_ids)
            taken_back = max(taken_back, length - bridge.extend([target.id_of[bytes([byte])]]))
        whole = TextBridge(draft, target)
        whole.extend(opened(target, "x") + ids_of(target, text))
        assert bridge.draft_ids == whole.draft_ids
        assert taken_back <= 12


def test_a_merge_across_the_boundary_takes_back_only_the_merged_tokens():
    bridge = TextBridge(GPT2, LLAMA)
    begun = opened(LLAMA, "the quick brown d")
    bridge.extend(begun)
    unchanged = [GPT2.eos, *opened(GPT2, "the quick brown")]
    assert bridge.extend(ids_of(LLAMA, "og")) == len(unchanged)
    assert bridge.draft_ids == [*unchanged, *opened(GPT2, " dog")]


def test_a_character_in_several_tokens_is_fed_as_bytes_until_it_is_whole():
    bridge = TextBridge(LLAMA, GPT2)
    bridge.extend(opened(GPT2, "a "))
    first, *rest = [GPT2.id_of[bytes([byte])] for byte in "語".encode()]
    bridge.extend([first])
    assert LLAMA.bytes[bridge.draft_ids[-1]] == b"\xe8"
    bridge.extend(rest)
    assert LLAMA.bytes[bridge.draft_ids[-1]].endswith("語".encode())


def test_what_the_draft_cannot_spell_is_held_back_and_left_out():
    bridge = TextBridge(ASCII, GPT2)
    bridge.extend(opened(GPT2, "a") + ids_of(GPT2, "é"))
    assert bridge.unseen == "é".encode()
    assert bridge.to_target(ids_of(ASCII, " b")) == []
    bridge.extend(ids_of(GPT2, " b"))
    assert bridge.unseen == b""
    assert reading(ASCII, bridge.draft_ids) == b"a b"


def test_a_proposal_begins_behind_the_part_of_a_character_that_the_draft_has_not_seen():
    whole_only = Tokenizer.from_str(ASCII.tokenizer.backend_tokenizer.to_str())
    whole_only.add_tokens(["語"])
    draft = ByteTokenizer(PreTrainedTokenizerFast(tokenizer_object=whole_only))
    bridge = TextBridge(draft, GPT2)
    bridge.extend([*opened(GPT2, "a"), GPT2.id_of["語".encode()[:1]]])
    proposal = bridge.to_target([draft.id_of["語".encode()]])
    assert b"".join(GPT2.bytes[i] for i in proposal) == "語".encode()[1:]


def test_a_proposal_ends_where_the_target_cannot_spell_it():
    bridge = TextBridge(GPT2, ASCII)
    bridge.extend(opened(ASCII, "a"))
    assert bridge.to_target(ids_of(GPT2, " dog é b")) == ids_of(ASCII, " dog ")


def test_special_tokens_go_by_content_or_role_and_spelled_ones_stay_text():
    bridge = TextBridge(LLAMA, GPT2)
    assert GPT2.special_ids_in(LLAMA) == {GPT2.eos: LLAMA.eos}
    bridge.extend([GPT2.bos, *ids_of(GPT2, "a <s>"), GPT2.eos, *ids_of(GPT2, "b")])
    assert skeleton(LLAMA, bridge.draft_ids) == [LLAMA.bos, b" a <s>", LLAMA.eos, b"b"]


def test_an_id_beyond_the_tokenizer_is_no_text():
    bridge = TextBridge(LLAMA, GPT2)
    bridge.extend([GPT2.size + 3, *opened(GPT2, "x")])
    assert bridge.target_length == 1 + len(opened(GPT2, "x"))
    assert skeleton(LLAMA, bridge.draft_ids) == [LLAMA.bos, b" x"]


def test_the_opening_space_is_put_at_the_beginning_and_nowhere_else():
    bridge = TextBridge(LLAMA, GPT2)
    bridge.extend(opened(GPT2, "x"))
    assert skeleton(LLAMA, bridge.draft_ids) == [LLAMA.bos, b" x"]
    bridge.extend(ids_of(GPT2, "y"))
    assert skeleton(LLAMA, bridge.draft_ids) == [LLAMA.bos, b" xy"]
    bridge = TextBridge(GPT2, METASPACE)
    bridge.extend(opened(METASPACE, "x"))
    assert skeleton(GPT2, bridge.draft_ids) == [b"x"]


def test_a_prompt_in_the_drafts_own_form_is_never_encoded_again():
    bridge = TextBridge(LLAMA, GPT2)
    prompt = opened(LLAMA, "user: the d")
    bridge.start(prompt, target_length=7)
    bridge.extend(ids_of(GPT2, "og"))
    assert bridge.draft_ids[: len(prompt)] == prompt
    assert skeleton(LLAMA, bridge.draft_ids)[-1] == b" user: the dog"


@pytest.mark.parametrize("text", ["the quick brown dog ", "日本語", "xy", "\n  ", "\x80"])
def test_the_cost_of_a_round_does_not_grow_with_the_text(text, monkeypatch):
    """Counted in bytes encoded, so that no clock is needed; with no window it is the whole text."""
    encoded = []
    encode = ByteTokenizer.encode
    monkeypatch.setattr(
        ByteTokenizer, "encode", lambda self, data: encoded.append(len(data)) or encode(self, data)
    )
    stream = list((text * 400).encode("latin-1") if text == "\x80" else (text * 400).encode())
    bridge = TextBridge(LLAMA, GPT2)
    for byte in stream:
        bridge.extend([GPT2.id_of[bytes([byte])]])
    longest = max(map(len, filter(None, LLAMA.bytes)))
    assert max(encoded) <= (text_bridge.WINDOW + 1) * longest
    assert max(encoded[-100:]) <= max(encoded[:300])


def test_a_proposal_is_encoded_for_the_target_behind_what_it_emitted():
    for draft, target in PAIRS.values():
        for text in [*CORPUS, "a <|endoftext|> b </s> c"]:
            ids = opened(target, "the dog") + ids_of(target, text)
            bridge = TextBridge(draft, target)
            bridge.extend(opened(target, "the dog"))
            proposal = bridge.to_target(ids_of(draft, text))
            assert opened(target, "the dog") + proposal == ids
            assert not set(proposal) & set(target.special)


def test_a_proposal_at_the_beginning_of_a_text_opens_it_as_the_target_does():
    for draft, target in PAIRS.values():
        beginning = [target.bos] if target.adds_bos else []
        bridge = TextBridge(draft, target)
        bridge.extend(beginning)
        proposed = [i for i in opened(draft, "the dog") if i != draft.bos]
        assert beginning + bridge.to_target(proposed) == opened(target, "the dog")


def test_an_empty_proposal_stays_empty_at_the_beginning_of_a_text():
    bridge = TextBridge(GPT2, METASPACE)
    assert bridge.to_target([]) == []
    assert bridge.to_target([GPT2.eos]) == [METASPACE.eos]


def test_a_proposal_ends_at_its_last_whole_character_and_at_its_end_token():
    bridge = TextBridge(LLAMA, GPT2)
    bridge.extend(opened(GPT2, "a"))
    byte_ids = [LLAMA.id_of[bytes([byte])] for byte in "é語😀".encode()]
    for length, text in (
        (1, ""),
        (2, "é"),
        (3, "é"),
        (4, "é"),
        (5, "é語"),
        (8, "é語"),
        (9, "é語😀"),
    ):
        assert bridge.to_target(byte_ids[:length]) == ids_of(GPT2, text)
    ended = ids_of(LLAMA, " dog") + [LLAMA.eos] + ids_of(LLAMA, " dog")
    assert bridge.to_target(ended) == [*ids_of(GPT2, " dog"), GPT2.eos]
    assert bridge.to_target([LLAMA.eos]) == [GPT2.eos]
    assert bridge.to_target([]) == []


def test_a_proposal_continues_a_character_that_the_target_began():
    bridge = TextBridge(LLAMA, GPT2)
    bridge.extend([*opened(GPT2, "a "), GPT2.id_of["語".encode()[:1]]])
    proposal = bridge.to_target([LLAMA.id_of[bytes([byte])] for byte in "語".encode()[1:]])
    assert b"".join(GPT2.bytes[i] for i in proposal) == "語".encode()[1:]
