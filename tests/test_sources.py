"""Sources of prompts: what a configuration may say, local files, and a hub that may be away."""

import gzip
import json

import pytest
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Phi3Config

from specdec.data import hub, sources
from specdec.data.hub import HubError, context_length
from specdec.data.sources import load_texts, parse_source
from specdec.utils.errors import SpecdecError

RECORDS = [
    {"id": 1, "turns": ["one", "more"], "note": None},
    {"id": 2, "turns": ["two"], "note": "n"},
]


def no_warning(message):
    raise AssertionError(message)


def load_prompts(spec, warn=no_warning, domain="code"):
    return [text.prompt for text in load_texts(parse_source(domain, spec), warn).texts]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


# Files


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_json_and_json_lines_are_read_gzipped_or_not(tmp_path, lines, zipped):
    text = "\n".join(map(json.dumps, RECORDS)) + "\n\n" if lines else json.dumps(RECORDS, indent=1)
    path = tmp_path / "records"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert load_prompts({"path": str(path), "field": "turns.0"}) == ["one", "two"]


@pytest.mark.parametrize(
    "content", [["one", "two"], {"data": ["one", "two"]}], ids=["list", "data"]
)
def test_a_list_of_texts_is_a_prompt_file(tmp_path, content):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(content, indent=1))
    assert load_prompts({"path": str(path)}) == ["one", "two"]


def test_records_under_data_are_a_prompt_file(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps({"version": 1, "data": RECORDS}))
    assert load_prompts({"path": str(path), "field": "turns.0"}) == ["one", "two"]


def test_a_template_may_use_the_field_others_and_plain_braces(jsonl):
    spec = {"path": str(jsonl), "field": "turns.0", "template": "{{q}} {text}\n\n{note}"}
    assert load_prompts(spec) == ["{q} one", "{q} two\n\nn"]


def test_blank_space_that_belongs_to_the_text_is_kept(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"prompt": "def f():\n    "}))
    assert load_prompts({"path": str(path), "field": "prompt"}) == ["def f():\n    "]


def test_the_data_card_names_a_file_by_its_content(jsonl):
    origin = load_texts(parse_source("code", {"path": str(jsonl), "field": "turns.0"}), no_warning)
    before = origin.origin["sha256"]
    jsonl.write_text(jsonl.read_text().replace("one", "uno"))
    after = load_texts(parse_source("code", {"path": str(jsonl), "field": "turns.0"}), no_warning)
    assert before != after.origin["sha256"]
    assert after.origin["label"] == "records.jsonl"


BROKEN = {
    "empty": (b"", "records.jsonl holds no records"),
    "empty list": (b"[]", "records.jsonl holds no records"),
    "bytes": (b"\xff\xfe\x00", "records.jsonl is no JSON text"),
    "cut gzip": (
        gzip.compress(b'{"turns": ["a"]}' * 99)[:40],
        "records.jsonl is no JSON text",
    ),
    "cut line": (b'{"turns": ["a"]}\n{"turns": [', "records.jsonl, line 2: not JSON"),
    "cut list": (b'[{"turns": ["a"]},', "records.jsonl: not JSON"),
    "number as line": (
        b'{"turns": ["a"]}\n7',
        "records.jsonl, line 2: found '7' where a record is needed",
    ),
    "text as record": (b'["a"]', "record 1: no field 'turns.0'; there are: text"),
    "number as record": (b'{"data": [7]}', "record 1: found '7' where a record is needed"),
    "half a character": (
        b'{"turns": ["a"]}\n{"turns": ["\\ud83d"]}',
        r"records.jsonl, line 2: .ud83d alone is half a character",
    ),
    "field missing": (
        b'{"turns": ["a"]}\n{"id": 2, "more": {"x": 1}}',
        "line 2: no field 'turns.0'; there ",
    ),
    "field empty": (b'{"turns": ["a"]}\n{"turns": []}', "line 2: no field 'turns.0'"),
    "field no text": (b'[{"turns": [["a"]]}]', "record 1: field 'turns.0' is a list, not text"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_the_place(tmp_path, content, message):
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(SpecdecError, match=message) as caught:
        load_prompts({"path": str(path), "field": "turns.0"})
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_answered_with_those_there_are(jsonl):
    with pytest.raises(SpecdecError, match="no field 'prompt'; there are: id, turns.0, note"):
        load_prompts({"path": str(jsonl), "field": "prompt"})


def test_a_file_that_is_not_there_names_the_domain_and_the_path():
    with pytest.raises(SpecdecError, match="sources.code: nowhere.jsonl can't be read"):
        load_prompts({"path": "nowhere.jsonl"})


# Configuration


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nobody/nothing", "sources.code: 'nobody/nothing' is none of builtin, openai/openai_hum"),
        ({}, "sources.code: needs either `hub` or `path`"),
        ({"hub": "a/b", "path": "c"}, "sources.code: needs either `hub` or `path`"),
        (7, "sources.code: needs either `hub` or `path`"),
        ({"path": "a", "fields": "b"}, "sources.code: no key 'fields' here; allowed: field, max_"),
        ({"path": "a", "fallback": "builtin"}, "sources.code: no key 'fallback' here"),
        ({"path": 7}, "sources.code.path: 7 is no str to use here"),
        ({"path": "a", "max_field_tokens": "many"}, "sources.code.max_field_tokens: 'many'"),
        ({"hub": "a/b", "fallback": "none"}, "sources.code.fallback: 'none' is not 'builtin'"),
        ({"path": "a", "template": "Hello"}, "sources.code.template: .* names no field"),
        ({"path": "a", "template": "{text"}, "sources.code.template: .* braces are written twice"),
        ({"path": "a", "template": "{}"}, "sources.code.template: .*write a field as {text}"),
        ({"path": "a", "template": "{text!r}"}, "sources.code.template: .*write a field as"),
    ],
)
def test_a_wrong_source_is_refused_before_anything_is_read(spec, message):
    with pytest.raises(SpecdecError, match=message):
        parse_source("code", spec)


def test_a_mapping_changes_what_is_known_of_a_data_set():
    source = parse_source("news", {"hub": "abisee/cnn_dailymail", "split": "validation"})
    assert (source.split, source.config, source.field) == ("validation", "3.0.0", "article")
    assert source.max_field_tokens == 512


def test_a_domain_without_built_in_prompts_says_which_have_some():
    with pytest.raises(SpecdecError, match="exist for code, conversation, summarization, not for "):
        load_prompts("builtin", domain="poems")


# The hub


def serve(monkeypatch, rows, revision="0" * 40):
    """Stand in for the hub, handing out `rows`."""
    monkeypatch.setattr(sources, "load_dataset", lambda *request: (rows, revision))


def test_the_known_data_sets_are_read_as_their_pages_say(monkeypatch):
    serve(monkeypatch, [{"prompt": "def f():\n", "test": "…"}])
    assert load_prompts("openai/openai_humaneval") == ["def f():\n"]
    serve(
        monkeypatch, [{"instruction": "Sort.", "input": "b a"}, {"instruction": "Hi", "input": ""}]
    )
    assert load_prompts("tatsu-lab/alpaca") == ["Sort.\n\nb a", "Hi"]
    serve(monkeypatch, [{"article": "News.", "highlights": "…"}])
    assert load_prompts("abisee/cnn_dailymail") == ["News.\n\nSummarize the above article:"]


def test_rows_of_the_hub_are_made_into_text_only_when_looked_at(monkeypatch):
    class Rows:
        asked = []

        def __len__(self):
            return 50_000

        def __getitem__(self, index):
            self.asked.append(index)
            return {"prompt": f"row {index}"}

    serve(monkeypatch, Rows())
    loaded = load_texts(parse_source("code", "openai/openai_humaneval"), no_warning)
    assert len(loaded.texts) == 50_000
    assert loaded.texts[7].prompt == "row 7"
    assert Rows.asked == [7]
    assert loaded.origin["revision"] == "0" * 40


def test_a_field_that_the_data_set_lacks_names_set_and_row(monkeypatch):
    serve(monkeypatch, [{"question": "?"}])
    with pytest.raises(SpecdecError, match=r"a/b \(train\), row 0: no field 'text'; there are: q"):
        load_prompts({"hub": "a/b"})


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)


def test_without_the_hub_a_source_with_no_fallback_is_an_error(no_hub):
    with pytest.raises(HubError, match="sources.code: data set openai/openai_humaneval can't be h"):
        load_prompts("openai/openai_humaneval")


def test_without_the_hub_a_fallback_is_taken_loudly_and_said_in_the_card(no_hub):
    spec = {"hub": "openai/openai_humaneval", "fallback": "builtin"}
    warnings = []
    loaded = load_texts(parse_source("code", spec), warnings.append)
    assert any("BUILT-IN prompts take the place" in warning for warning in warnings)
    assert loaded.origin["label"] == "builtin (in place of openai/openai_humaneval)"
    assert loaded.origin["kind"] == "builtin"
    assert len(loaded.texts) == 50


class Builder:
    """Stands in for what `datasets` makes of a name: one row, of the revision in its cache."""

    hash = "a" * 40

    def download_and_prepare(self):
        pass

    def as_dataset(self, split):
        return [{"text": split}]


@pytest.mark.parametrize("revision", [None, "main", "a" * 40])
def test_a_data_set_comes_with_the_revision_that_was_really_loaded(no_hub, monkeypatch, revision):
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *args, **options: Builder())
    assert hub.load_dataset("a/b", None, "test", revision) == ([{"text": "test"}], "a" * 40)


def test_another_revision_than_the_one_asked_for_is_refused(no_hub, monkeypatch):
    """Without a network the library takes whatever revision its cache holds."""
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *args, **options: Builder())
    with pytest.raises(HubError, match="revision b{40} is asked for, a{40} is what the cache"):
        hub.load_dataset("a/b", None, "test", "b" * 40)


def test_a_gated_data_set_says_what_to_accept(monkeypatch):
    def refuse(*args, **options):
        raise FileNotFoundError("Dataset 'a/b' is a gated\ndataset on the Hub.")

    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(HubError, match="data set a/b needs permission: accept its terms"):
        hub.load_dataset("a/b", None, "test", None)


def test_a_hub_that_does_not_answer_is_asked_once_and_its_clients_told(monkeypatch):
    """The clients' own retries take most of a minute for each data set and tokenizer."""
    import huggingface_hub

    asked = []

    class Session:
        def head(self, url, **options):
            asked.append(options["timeout"])
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.hub_is_reachable.cache_clear()
    try:
        assert not hub.hub_is_reachable() and not hub.hub_is_reachable()
        assert huggingface_hub.is_offline_mode()
        assert asked == [hub.PROBE_SECONDS]
    finally:
        hub.hub_is_reachable.cache_clear()


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (GPT2Config(n_positions=128), 128),
        (LlamaConfig(max_position_embeddings=256), 256),
        (GPTNeoXConfig(max_position_embeddings=512), 512),
        (Phi3Config(max_position_embeddings=4096), 4096),
    ],
)
def test_the_context_is_read_from_the_configuration(config, length):
    assert context_length(config) == length


def test_rescaled_rotary_positions_bound_the_context_to_the_original_length():
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=1024,
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 64,
            **factors,
        },
    )
    assert context_length(config) == 64
