"""Prompts: their way to token ids, their file, and which are chosen."""

import json

import pytest
from tokenizers.processors import TemplateProcessing

from specdec.data import hub, prompts
from specdec.data.prompts import (
    Limit,
    Prompt,
    PromptDataset,
    build_dataset,
    choose_prompts,
    encode_prompt,
    seeded_order,
)
from specdec.data.records import Text
from specdec.data.sources import SourceTexts, load_texts, parse_source
from specdec.utils.errors import SpecdecError
from tests.tiny import make_tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer_with_bos(chat_template=None):
    """A tokenizer that puts the begin-of-text token before every text, as Llama's does."""
    tokenizer = make_tokenizer()
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin[0]} $A", special_tokens=[begin]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def texts(*items, label="made here", max_field_tokens=None):
    return SourceTexts([Text(item, item) for item in items], {"label": label}, max_field_tokens)


def no_warning(message):
    raise AssertionError(message)


def builtin_texts(domain):
    return load_texts(parse_source(domain, "builtin"), no_warning).texts


# Encoding


def test_a_prompt_without_a_chat_template_is_encoded_as_plain_text(tiny_tokenizer):
    assert encode_prompt(tiny_tokenizer, "the fox") == tiny_tokenizer("the fox").input_ids


def test_a_chat_template_wraps_the_prompt_and_opens_the_answer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    text = tokenizer.decode(encode_prompt(tokenizer, "the fox"))
    assert text == f"{tokenizer.bos_token}<user>the fox\n<assistant>"


def test_chat_none_leaves_the_template_out():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    assert tokenizer.decode(encode_prompt(tokenizer, "the fox", "none")) == "the fox"


@pytest.mark.parametrize("chat_template", [None, CHAT_TEMPLATE])
@pytest.mark.parametrize("text", ["the fox", "<|endoftext|>the fox"])
def test_no_prompt_begins_with_two_begin_of_text_tokens(chat_template, text):
    tokenizer = tokenizer_with_bos(chat_template)
    ids = encode_prompt(tokenizer, text)
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id


def test_an_unknown_chat_mode_is_refused(tiny_tokenizer):
    with pytest.raises(SpecdecError, match="'always' is not one of auto, none"):
        encode_prompt(tiny_tokenizer, "the fox", "always")


# The file


def test_a_saved_dataset_is_read_back_as_it_was(tmp_path, tiny_tokenizer):
    path = tmp_path / "new folder" / "prompts.json"
    built = build_dataset({"code": texts("a é", "b\n")}, 2, 0, [Limit("tiny", tiny_tokenizer)])
    built.save(path)
    loaded = PromptDataset.load(path)
    assert loaded.get_all() == built.get_all()
    assert loaded.card == built.card
    assert loaded.source("code") == "made here"
    assert "é" in path.read_text(encoding="utf-8")


def test_the_same_prompts_give_the_same_bytes(tmp_path, tiny_tokenizer):
    for name in ("a.json", "b.json"):
        sources = {"code": SourceTexts(builtin_texts("code"), {"label": "builtin"})}
        build_dataset(sources, 5, 42, [Limit("tiny", tiny_tokenizer)]).save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_prompts_are_found_by_domain():
    dataset = PromptDataset([Prompt("a_000", "a", "x", 1), Prompt("b_000", "b", "y", 1)])
    assert len(dataset) == 2
    assert [prompt.text for prompt in dataset.get_by_domain("b")] == ["y"]
    with pytest.raises(SpecdecError, match="no prompts of domain 'c'; there are: a, b"):
        dataset.get_by_domain("c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON"),
        ('{"prompts": []}', "holds no prompts"),
        ("[]", "holds no prompts"),
        ('{"prompts": [{"prompt_id": "a_000"}]}', "prompt 1: .*missing .* 'domain'"),
        ('{"prompts": [7]}', "prompt 1: "),
    ],
)
def test_a_broken_prompt_file_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(SpecdecError, match=message) as caught:
        PromptDataset.load(path)
    assert str(path) in str(caught.value)
    assert "build the prompt file again" in str(caught.value)


def test_a_prompt_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SpecdecError, match="nothing.json can't be read"):
        PromptDataset.load(tmp_path / "nothing.json")


def test_a_prompt_file_edited_by_hand_is_refused(tmp_path, tiny_tokenizer):
    path = tmp_path / "prompts.json"
    build_dataset({"code": texts("one")}, 1, 0, [Limit("tiny", tiny_tokenizer)]).save(path)
    path.write_text(path.read_text().replace('"one"', '"two"'))
    with pytest.raises(SpecdecError, match="was changed after it was built"):
        PromptDataset.load(path)


# The choice


def test_the_seeded_order_is_a_permutation_that_never_changes():
    assert seeded_order("code", 6, 42) == [1, 4, 5, 2, 3, 0]
    assert sorted(seeded_order("code", 1000, 7)) == list(range(1000))
    assert seeded_order("code", 100, 1) != seeded_order("code", 100, 2)
    assert seeded_order("code", 100, 1) != seeded_order("other", 100, 1)


def test_one_prompt_id_is_one_text_for_every_tokenizer_and_limit(tiny_tokenizer):
    """Ids that counted the chosen prompts would name other texts wherever one didn't fit."""
    source = SourceTexts(builtin_texts("code"), {"label": "builtin"})
    coarse = make_tokenizer(900, [text.prompt for text in source.texts])
    loose, _ = choose_prompts("code", source, 20, 3, [Limit("coarse", coarse)])
    tight, card = choose_prompts("code", source, 20, 3, [Limit("tiny", tiny_tokenizer, 300)])
    text_of = {prompt.prompt_id: prompt.text for prompt in loose}
    shared = [prompt for prompt in tight if prompt.prompt_id in text_of]
    assert card["too_long"] > 0 and len(shared) > 5
    assert all(text_of[prompt.prompt_id] == prompt.text for prompt in shared)


def test_prompts_that_do_not_fit_are_passed_over_whole_and_counted(tiny_tokenizer):
    source = texts("short", "x" * 50, "", "tiny", "y" * 60, "  \n")
    limit = Limit("tiny", tiny_tokenizer, 10)
    chosen, card = choose_prompts("code", source, 2, 1, [limit])
    assert {prompt.text for prompt in chosen} == {"short", "tiny"}
    assert all(prompt.token_count == limit.length(prompt.text) <= 10 for prompt in chosen)
    assert card["examined"] == card["chosen"] + card["empty"] + card["too_long"]
    assert card["examined"] <= card["available"] == 6
    last_place = int(chosen[-1].prompt_id.removeprefix("code_"))
    assert card["examined"] == last_place + 1


def test_a_text_that_comes_twice_is_chosen_once_and_counted(tiny_tokenizer):
    """n counts independent prompts: eight copies of one would narrow every interval for nothing."""
    source = texts(*["same"] * 8, "other", "third")
    chosen, card = choose_prompts("code", source, 3, 1, [Limit("tiny", tiny_tokenizer)])
    assert {prompt.text for prompt in chosen} == {"same", "other", "third"}
    assert card["duplicates"] == card["examined"] - 3 > 0
    with pytest.raises(SpecdecError, match="code: 4 prompts wanted, 3 of 10 .* 7 duplicates"):
        choose_prompts("code", source, 4, 1, [Limit("tiny", tiny_tokenizer)])


def test_a_prompt_must_fit_every_model_in_its_own_tokens(tiny_tokenizer):
    text = "purple elephants dancing"
    by_words = make_tokenizer(1000, [text] * 3)
    long, short = len(tiny_tokenizer(text).input_ids), len(by_words(text).input_ids)
    assert short < long
    limits = [Limit("target", by_words, short), Limit("draft", tiny_tokenizer, long - 1)]
    with pytest.raises(SpecdecError, match=f"{short} tokens of target and {long - 1} tokens of dr"):
        choose_prompts("code", texts(text), 1, 0, limits)
    limits[1] = Limit("draft", tiny_tokenizer, long)
    chosen, _ = choose_prompts("code", texts(text), 1, 0, limits)
    assert chosen[0].token_count == short


def test_a_limit_counts_the_chat_template():
    tokenizer = make_tokenizer()
    plain = Limit("tiny", tokenizer).length("the fox")
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(SpecdecError, match="0 of 1 from made here fit"):
        choose_prompts("code", texts("the fox"), 1, 0, [Limit("tiny", tokenizer, plain)])
    choose_prompts("code", texts("the fox"), 1, 0, [Limit("tiny", tokenizer, plain, "none")])


def test_too_few_prompts_are_an_error_that_counts_them(tiny_tokenizer):
    source = texts("a", "", "x" * 99, label="mine.jsonl")
    expected = r"code: 2 prompts wanted, 1 of 3 from mine.jsonl fit \(1 empty, 1 longer than 9 tok"
    with pytest.raises(SpecdecError, match=expected):
        choose_prompts("code", source, 2, 0, [Limit("tiny", tiny_tokenizer, 9)])


def test_the_bound_on_a_field_leaves_the_template_out(tiny_tokenizer):
    source = SourceTexts([Text("abc", "abc and a long request")], {"label": "made here"}, 3)
    chosen, _ = choose_prompts("news", source, 1, 0, [Limit("tiny", tiny_tokenizer)])
    assert chosen[0].text == "abc and a long request"
    source = SourceTexts([Text("abcd", "abcd")], {"label": "made here"}, 3)
    with pytest.raises(SpecdecError, match="1 longer than 3 tokens"):
        choose_prompts("news", source, 1, 0, [Limit("tiny", tiny_tokenizer)])


def test_the_data_card_says_what_was_chosen_and_for_whom(tiny_tokenizer):
    limits = [Limit("target", tiny_tokenizer, 99), Limit("draft", tiny_tokenizer, 88, "none")]
    card = build_dataset({"code": texts("ab", "the fox")}, 2, 5, limits).card
    assert card["tokenizer"] == "target"
    assert card["seed"] == 5
    assert [limit["max_prompt_tokens"] for limit in card["limits"]] == [99, 88]
    counts = sorted(len(tiny_tokenizer(text).input_ids) for text in ("ab", "the fox"))
    assert card["domains"]["code"]["tokens"] == {
        "min": counts[0],
        "mean": sum(counts) / 2,
        "max": counts[1],
    }


# The command


def test_the_command_falls_back_loudly_and_writes_both_files(
    tmp_path, monkeypatch, capsys, tiny_tokenizer
):
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "data" / "prompts.json"
    prompts.main(["--tokenizer", str(tmp_path / "tokenizer"), "--output", str(output)])

    printed = capsys.readouterr().out
    assert printed.count("BUILT-IN prompts take the place of") == 3
    lines = printed.splitlines()
    head = lines.index("domain                  n    min    mean    max")
    assert lines[head + 1] == "-" * 47
    assert [line.split()[:2] for line in lines[head + 2 : head + 5]] == [
        ["code", "50"],
        ["conversation", "50"],
        ["summarization", "50"],
    ]
    assert all(len(line) == 47 for line in lines[head + 2 : head + 5])
    assert lines[-2] == f"[prompts] saved 150 prompts → {output}"
    assert lines[-1] == f"[prompts] saved  15 prompts → {tmp_path / 'data/prompts_tiny.json'}"

    full = PromptDataset.load(output)
    tiny = PromptDataset.load(tmp_path / "data/prompts_tiny.json")
    assert (len(full), len(tiny)) == (150, 15)
    assert tiny.get_by_domain("code") == full.get_by_domain("code")[:5]
    assert full.source("code") == "builtin (in place of openai/openai_humaneval)"
    assert json.loads(output.read_text())["card"]["seed"] == 42


def test_a_tokenizer_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    with pytest.raises(SpecdecError, match="tokenizer nobody/nothing can't be had: the hub can't"):
        prompts.main(["--tokenizer", "nobody/nothing", "--output", str(tmp_path / "prompts.json")])
    assert not list(tmp_path.iterdir())
