"""Chat models: the tokenizer's template, one begin-of-text token, every end token."""

import logging

import pytest
import torch
import yaml
from transformers import GenerationConfig

from specdec.data.dataset import Prompt, encode_prompt
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.loaded_pair import Encoded, LoadedPair, load_pair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.pair import load_side
from specdec.models.registry import ModelSide, get_pair
from specdec.profiling.records import read_records
from specdec.study.job import Job, run_job
from specdec.utils.errors import SpecdecError
from tests.tiny import make_model, perturbed
from tests.toy_tokenizers import byte_level, sentencepiece

TEXT = "def add(a, b):"
BARE = (
    "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + BARE


def chatty(tokenizer, template):
    """A copy with a chat template."""
    copy = tokenizer.__class__(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    copy.chat_template = template
    return copy


# Of both families, a tokenizer that begins every text with its begin-of-text token, and one that
# does not.
FAMILIES = {
    "byte-level, adds it": lambda: byte_level(style="llama3"),
    "byte-level, does not": lambda: byte_level(),
    "sentencepiece, adds it": lambda: sentencepiece(),
    "sentencepiece, does not": lambda: sentencepiece(style="metaspace"),
}


class TestPrompts:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("template", [BARE, WITH_BOS], ids=["bare", "with bos"])
    @pytest.mark.parametrize("chat", ["auto", "none"])
    def test_no_prompt_has_a_second_begin_of_text_token(self, family, template, chat):
        tokenizer = chatty(FAMILIES[family](), template)
        for text in (TEXT, tokenizer.bos_token + TEXT):
            ids = encode_prompt(tokenizer, text, chat)
            assert ids[:2] != [tokenizer.bos_token_id] * 2
            assert TEXT in tokenizer.decode(ids)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_template_that_writes_the_begin_of_text_token_gives_exactly_one(self, family):
        tokenizer = chatty(FAMILIES[family](), WITH_BOS)
        ids = encode_prompt(tokenizer, TEXT)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id

    def test_the_template_asks_for_the_assistants_turn(self):
        tokenizer = chatty(byte_level(), BARE)
        shown = tokenizer.decode(encode_prompt(tokenizer, TEXT))
        assert shown == f"<user>\n{TEXT}\n<assistant>\n"

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_a_template_or_with_none_asked_for_the_text_is_plain(self, family):
        tokenizer = FAMILIES[family]()
        plain = tokenizer(TEXT).input_ids
        assert encode_prompt(tokenizer, TEXT) == plain
        assert encode_prompt(chatty(tokenizer, WITH_BOS), TEXT, chat="none") == plain

    @pytest.mark.parametrize("family", FAMILIES)
    def test_half_a_character_is_one_line(self, family):
        with pytest.raises(SpecdecError, match="the prompt: .udcff alone is half a character"):
            encode_prompt(FAMILIES[family](), "x\udcff")


@pytest.fixture
def registry(tmp_path):
    """A pair whose draft has the target's tokens and another template, under three entries."""
    model = make_model("llama", len(byte_level()))
    # Named by the generation configuration alone, as Llama-3's and Phi-3's second end tokens are.
    model.generation_config = GenerationConfig(eos_token_id=[0, 7, 9])
    for name, weights, template in (
        ("target", model, BARE),
        ("draft", perturbed(model), "{{ bos_token }}You are asked: {{ messages[0]['content'] }}"),
    ):
        weights.save_pretrained(tmp_path / name)
        chatty(byte_level(), template).save_pretrained(tmp_path / name)

    def side(name: str, **fields) -> dict:
        return {"model": str(tmp_path / name), "dtype": "float32", **fields}

    pair = {"draft": side("draft"), "target": side("target")}
    plain = {"draft": side("draft", chat="none"), "target": side("target", chat="none")}
    entries = {"targets": pair, "own": pair | {"draft_prompt": "own"}, "plain": plain}
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


class TestDraftPrompt:
    def test_by_default_the_draft_reads_what_the_target_reads(self, registry):
        _, target = load_pair("targets", registry)
        encoded = LoadedPair(get_pair("targets", registry)).encode(TEXT)
        assert encoded == Encoded(encode_prompt(target.tokenizer, TEXT), None)

    def test_its_own_template_is_shown_to_the_draft_where_the_entry_says_so(self, registry):
        draft, target = load_pair("own", registry)
        encoded = LoadedPair(get_pair("own", registry)).encode(TEXT)
        own = encode_prompt(draft.tokenizer, TEXT)
        assert encoded == Encoded(encode_prompt(target.tokenizer, TEXT), own)
        assert encoded.prompt_ids != own

    def test_it_changes_what_is_accepted_and_never_the_output(self, registry, tmp_path):
        records = {}
        for name in ("targets", "own"):
            records[name] = decode(get_pair(name, registry), tmp_path / f"{name}.jsonl")
            for baseline, speculative in zip(records[name][::2], records[name][1::2], strict=True):
                assert (baseline["K"], speculative["K"]) == (0, 3)
                assert speculative["generated_ids"] == baseline["generated_ids"]
        accepted = {n: [r["accepted_per_round"] for r in rs[1::2]] for n, rs in records.items()}
        assert accepted["own"] != accepted["targets"]

    def test_an_entry_without_templates_gets_plain_text(self, registry):
        _, target = load_pair("plain", registry)
        encoded = LoadedPair(get_pair("plain", registry)).encode(TEXT)
        assert encoded.prompt_ids == target.tokenizer(TEXT).input_ids

    def test_the_command_shows_the_draft_its_own_template_too(self, registry, monkeypatch, capsys):
        from specdec import __main__ as command

        seen = []
        generate = SpeculativeDecoder.generate

        def spy(self, *arguments, draft_prompt_ids=None, **settings):
            seen.append(draft_prompt_ids)
            return generate(self, *arguments, draft_prompt_ids=draft_prompt_ids, **settings)

        monkeypatch.setattr(SpeculativeDecoder, "generate", spy)
        for name in ("targets", "own"):
            arguments = ["specdec", "generate", "--pair", name, "--registry", str(registry)]
            arguments += ["--prompt", TEXT, "--max-new-tokens", "4", "--device", "cpu"]
            monkeypatch.setattr("sys.argv", arguments)
            command.main()
        assert TEXT in capsys.readouterr().out
        assert seen[0] is None
        assert seen[1] == encode_prompt(load_pair("own", registry).draft.tokenizer, TEXT)


def decode(pair, out) -> list[dict]:
    job = Job(
        pair=pair,
        domain="code",
        K=3,
        temperature=0.0,
        max_new_tokens=24,
        seed=1,
        paired=True,
        device="cpu",
        prompt_source="made",
        engine="eager",
    )
    prompts = [Prompt(f"code_00{n}", "code", f"{TEXT} # {n}", 0) for n in range(3)]
    run_job(job, prompts, out.with_suffix(".progress"), out, lambda: None)
    return sorted(read_records(out), key=lambda record: (record["prompt_id"], record["K"]))


class TestEndTokens:
    def test_a_loaded_model_stops_at_every_end_token_of_its_generation_configuration(
        self, registry
    ):
        draft, target = load_pair("plain", registry)
        assert target.end_token_ids == {0, 7, 9}
        # Tokens of a greedy continuation are made the end, one after the other.
        prompt = target.tokenizer(TEXT).input_ids
        whole = AutoregressiveDecoder(target).generate(prompt, 20, eos_token_id=None).generated_ids
        for place in (3, 8):
            end = whole[place]
            target.model.generation_config.eos_token_id = [0, end]
            expected = whole[: whole.index(end) + 1]
            alone = AutoregressiveDecoder(target).generate(prompt, 20)
            both = SpeculativeDecoder(draft, target, 3).generate(prompt, 20)
            assert alone.generated_ids == both.generated_ids == expected
            assert alone.finish_reason == both.finish_reason == "stop"

    def test_one_end_token_may_be_named_by_the_model_alone(self, tmp_path, caplog):
        model = make_model("llama", len(byte_level()), eos_token_id=5)
        with caplog.at_level(logging.ERROR):
            model.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").unlink()
        byte_level().save_pretrained(tmp_path)
        wrapper = load_side(ModelSide(str(tmp_path), "float32"), "cpu")
        assert wrapper.end_token_ids == {5}
        assert torch.is_tensor(wrapper.forward(torch.tensor([[1]]))[0])
