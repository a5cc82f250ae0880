"""Each published pair of the registry, on models of its class and vocabulary, made on the spot.

The models have the published configuration class and number of logits, the tokenizers the published
family and number of tokens; layers are few, weights random. They go through registry, prompts,
loader, both decoders and records as the published ones would.
"""

import json

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from scripts import build_prompts
from specdec.data.dataset import Prompt, PromptDataset
from specdec.decoding import loaded_pair
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.loaded_pair import load_pair
from specdec.decoding.speculative import VOCABULARY_METHODS, SpeculativeDecoder
from specdec.models.loading import configuration, memory_check
from specdec.models.loading.hub import resolve_model
from specdec.models.pair import check_pair, load_side
from specdec.models.registry import SCHEMA_PATH, get_pair, load_registry
from specdec.profiling.records import read_records
from specdec.study.job import Job, run_job
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT
from tests.checks import transformers_greedy
from tests.test_int4 import needs_bitsandbytes
from tests.tiny import make_model, perturbed, wrap
from tests.toy_tokenizers import byte_level, sentencepiece

# Templates in the forms of Llama-3, TinyLlama and Phi-3; the first writes the begin-of-text token.
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}<|endoftext|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
ZEPHYR_CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def filled(tokenizer, size: int, special: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with words added, which no text is split into, up to `size` tokens."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = definition["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in definition["added_tokens"]}
    missing = size - len(vocabulary) - (special is not None)
    vocabulary |= {f"zq{n}": len(vocabulary) + n for n in range(missing)}
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(definition)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    if special is not None:
        copy.add_special_tokens({"additional_special_tokens": [special]})
    assert len(copy) == size
    return copy


def llama3(special: str) -> PreTrainedTokenizerFast:
    """Llama-3's tokenizer; the reserved special tokens got other names in later versions."""
    return with_chat(filled(byte_level(style="llama3"), 128256, special), LLAMA3_CHAT)


def with_chat(tokenizer, template: str) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = template
    return tokenizer


# What stands for a published model: its configuration class, its logits, its tokenizer.
MODELS = {
    "gpt2": ("gpt2", 50257, lambda: filled(byte_level(), 50257)),
    "gpt2-xl": ("gpt2", 50257, lambda: filled(byte_level(), 50257)),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        "llama",
        32000,
        lambda: with_chat(filled(sentencepiece(), 32000), ZEPHYR_CHAT),
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        "phi3",
        32064,
        lambda: with_chat(filled(sentencepiece(), 32011), ZEPHYR_CHAT),
    ),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 128256, lambda: llama3("<|pad|>")),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", 128256, lambda: llama3("<|reserved|>")),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 151936, lambda: filled(byte_level(), 151665)),
    "Qwen/Qwen2.5-7B": ("qwen2", 152064, lambda: filled(byte_level(), 151665)),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 49152, lambda: filled(byte_level(), 49152)),
    "HuggingFaceTB/SmolLM2-1.7B": ("llama", 49152, lambda: filled(byte_level(), 49152)),
    "EleutherAI/pythia-160m": ("neox", 50304, lambda: filled(byte_level(style="neox"), 50277)),
    "EleutherAI/pythia-2.8b": ("neox", 50304, lambda: filled(byte_level(style="neox"), 50277)),
}


def published_pairs() -> dict[str, dict]:
    """The entries of the shipped registry whose models are on the hub."""
    entries = yaml.safe_load((PROJECT_ROOT / "config/pairs.yaml").read_text(encoding="utf-8"))
    return {
        name: entry
        for name, entry in entries.items()
        if not entry["target"]["model"].startswith(("resources/", "package:"))
        and "weights" not in entry["target"]
    }


DRAFTS = [e["draft"]["model"] for e in published_pairs().values() if e["draft"]["dtype"] != "int4"]


class Folders:
    """The models that stand for the published ones, saved when they are first asked for."""

    def __init__(self, root) -> None:
        self.root = root

    def __call__(self, name: str) -> str:
        folder = self.root / name.replace("/", "--")
        if not folder.exists():
            model, tokenizer = self._make(name)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return str(folder)

    def _make(self, name: str):
        kind, logits, make = MODELS[name]
        positions = "n_positions" if kind == "gpt2" else "max_position_embeddings"
        room = {positions: 2048}  # so that the built-in prompts fit
        # Of one class, vocabulary and seed: the draft is the target with noise on its weights, and
        # agrees with it now and then.
        model = make_model(kind, 152064 if kind == "qwen2" else logits, **room)
        if name in DRAFTS:
            model = perturbed(model, 0.01)
        model.resize_token_embeddings(logits)
        return model, make()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def registry(folders, tmp_path):
    """A registry file with one published pair, of models in folders, in float32."""

    def write(name: str):
        entry = published_pairs()[name]
        del entry["memory_gb"]  # what the published models need
        for side in (entry["draft"], entry["target"]):
            side["model"] = folders(side["model"])
            side["dtype"] = "int4" if side["dtype"] == "int4" else "float32"
        path = tmp_path / "pairs.yaml"
        path.write_text(yaml.safe_dump({name: entry}))
        return path

    return write


def make_job(pair, K: int, paired: bool) -> Job:
    return Job(
        pair=pair,
        domain="code",
        K=K,
        temperature=0.0,
        max_new_tokens=8,
        seed=1,
        paired=paired,
        device="cpu",
        prompt_source="builtin",
        engine="eager",  # compiling takes longer than all that is decoded here
    )


SAME, PADDED, DIFFERENT = "same vocabulary", "padded vocabulary", "different vocabularies"
OUTCOMES = {
    "gpt2_dev": (SAME, "DraftModel"),
    "tinyllama_llama3": (DIFFERENT, "ExactMatchDraft"),  # what auto takes at temperature 0
    "phi3_llama3": (DIFFERENT, "ExactMatchDraft"),
    "llama3_self": (SAME, "DraftModel"),
    "llama32_llama3": (SAME, "DraftModel"),
    "qwen25": (PADDED, "DraftModel"),
    "smollm2": (SAME, "DraftModel"),
    "pythia": (SAME, "DraftModel"),
}


def test_no_published_pair_is_left_out():
    assert list(OUTCOMES) == list(published_pairs())


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_bitsandbytes if n == "llama3_self" else ()) for n in OUTCOMES],
)
def test_a_published_pair_decodes_and_its_output_is_its_targets(name, registry, tmp_path):
    path = registry(name)
    prompts = tmp_path / "prompts.json"
    settings = dict(
        sources={"code": "builtin"},
        prompts_per_domain=2,
        max_new_tokens=8,
        room_for_drafts=16,
        seed=1,
    )
    build_prompts.main(
        ["--pairs", name, "--registry", str(path), "--out", str(prompts)]
        + ["--settings", json.dumps(settings)]
    )
    job = make_job(get_pair(name, path), K=3, paired=True)
    out = tmp_path / "runs.jsonl"
    run_job(
        job,
        PromptDataset.load(prompts).get_by_domain("code"),
        tmp_path / "progress.jsonl",
        out,
        lambda: None,
    )
    baseline, speculative, *others = read_records(out)
    assert len(others) == 2
    assert (baseline["K"], speculative["K"]) == (0, 3)
    assert speculative["generated_ids"] == baseline["generated_ids"]
    assert others[1]["generated_ids"] == others[0]["generated_ids"]
    assert others[0]["generated_ids"] != baseline["generated_ids"]  # it is the prompt's own
    kind, drafter = OUTCOMES[name]
    assert speculative["vocabulary_match"].startswith(kind)
    assert speculative["drafter"] == drafter
    assert speculative["vocabulary"] == "auto"
    if kind != DIFFERENT:
        accepted = speculative["accepted_per_round"] + others[1]["accepted_per_round"]
        assert 0 < sum(accepted) < 3 * len(accepted) or name == "llama3_self"


@pytest.mark.parametrize("name", ["qwen25", "phi3_llama3"])
def test_coupled_sampling_equals_the_targets_own_samples(name, registry):
    draft, target = load_pair(name, registry(name))
    prompt = target.tokenizer("def add(a, b):").input_ids
    settings = dict(temperature=1.0, seed=5)
    alone = AutoregressiveDecoder(target, coupled=True).generate(prompt, 12, **settings)
    both = SpeculativeDecoder(draft, target, 3, coupled=True).generate(prompt, 12, **settings)
    assert both.generated_ids == alone.generated_ids
    assert max(alone.generated_ids) < len(target.tokenizer) <= target.logit_size


@pytest.mark.parametrize("k", [1, 4])
def test_a_sliding_window_does_not_break_the_rollback_past_it(k):
    """Phi-3's window is 2 047 tokens of 4 096; here it is 12, and the text goes far beyond."""
    target = make_model("phi3", 32064, sliding_window=12)
    prompt = torch.randint(3, 32000, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    decoder = SpeculativeDecoder(wrap(perturbed(target, 0.02)), wrap(target), k)
    result = decoder.generate(prompt, 40, eos_token_id=None)
    assert result.generated_ids == transformers_greedy(target, prompt, 40)
    accepted = sum(result.accepted_per_round)
    assert 0 < accepted < k * result.num_speculation_rounds  # some was rolled back, not all
    # The window is in force: of what lies before two layers' windows nothing is seen any more.
    changed = [*prompt]
    changed[:10] = prompt[10:20]
    again = decoder.generate(changed, 1, eos_token_id=None)
    assert again.generated_ids == result.generated_ids[:1]
    changed[-5:] = prompt[:5]
    assert decoder.generate(changed, 8, eos_token_id=None).generated_ids != result.generated_ids[:8]


def test_schema_and_code_know_the_same_vocabulary_methods():
    schema = yaml.safe_load(SCHEMA_PATH.read_text(encoding="utf-8"))
    assert tuple(schema["$defs"]["pair"]["properties"]["vocabulary"]["enum"]) == VOCABULARY_METHODS


@pytest.mark.parametrize(
    ("vocabulary", "drafter"),
    [("intersection", "IntersectionDraft"), ("exact_match", "ExactMatchDraft")],
)
def test_an_entrys_vocabulary_method_reaches_decoder_and_record(vocabulary, drafter, tmp_path):
    sides = {
        side: {"model": f"resources/{model}", "dtype": "float32"}
        for side, model in {"draft": "micro_other/draft", "target": "micro/target"}.items()
    }
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump({"mine": sides | {"vocabulary": vocabulary}}))
    job = make_job(get_pair("mine", path), K=2, paired=False)
    prompts = [Prompt("code_000", "code", "x = 1", 3)]
    out = tmp_path / "runs.jsonl"
    run_job(job, prompts, tmp_path / "progress.jsonl", out, lambda: None)
    (record,) = read_records(out)
    assert (record["vocabulary"], record["drafter"]) == (vocabulary, drafter)


class TestTooLarge:
    @pytest.fixture
    def memory(self, monkeypatch):
        def have(gigabytes: float) -> None:
            monkeypatch.setattr(memory_check, "available_bytes", lambda _: gigabytes * 1e9)
            monkeypatch.setattr(loaded_pair, "load_side", lambda *_: pytest.fail("loaded"))

        return have

    def test_a_pair_that_states_its_need_is_refused_before_anything_is_loaded(self, memory):
        memory(0.3)
        with pytest.raises(
            SpecdecError, match=r"^pair micro: needs 0.5 GB of memory, and this machine has 0.3 GB"
        ):
            load_pair("micro", device="cpu")

    def test_without_a_statement_the_configurations_tell(self, memory, registry):
        memory(0.01)
        with pytest.raises(
            SpecdecError, match=r"^pair smollm2: needs 0.0 GB of memory, and this .* 0.0 GB"
        ):
            load_pair("smollm2", registry("smollm2"), device="cpu")

    def test_a_job_refuses_too(self, memory, tmp_path):
        memory(0.3)
        job = make_job(get_pair("micro"), K=2, paired=False)
        with pytest.raises(SpecdecError, match="pair micro: needs 0.5 GB"):
            run_job(
                job,
                [Prompt("code_000", "code", "def f(", 3)],
                tmp_path / "progress",
                tmp_path / "out",
                lambda: None,
            )

    def test_the_baseline_needs_its_target_only(self, memory):
        memory(0.05)
        check_pair(get_pair("micro"), "cpu", with_draft=False)  # 40 MB of weights
        with pytest.raises(SpecdecError, match="needs 0.5 GB"):
            check_pair(get_pair("micro"), "cpu")

    def test_a_computed_need_is_the_weights_and_a_tenth(self, folders):
        folder = folders("HuggingFaceTB/SmolLM2-135M")
        side = load_registry()["smollm2"].draft
        side = type(side)(model=folder, dtype="bfloat16")
        loaded = load_side(side, "cpu")
        counted = memory_check.weight_bytes(side, torch.device("cpu"))
        assert counted == sum(2 * weight.numel() for weight in loaded.model.parameters())
        assert memory_check.MARGIN == pytest.approx(1.1)

    def test_memory_that_is_free_is_less_than_a_terabyte_and_more_than_none(self):
        assert 0 < memory_check.available_bytes(torch.device("cpu")) < 1e13

    def test_a_containers_limit_counts(self, monkeypatch):
        monkeypatch.setattr(memory_check, "_container_bytes", lambda: [12345])
        assert memory_check.available_bytes(torch.device("cpu")) == 12345


@pytest.mark.parametrize("missing", ["draft", "target"])
def test_a_gated_side_is_said_before_anything_is_loaded(missing, folders, tmp_path, monkeypatch):
    there = {"model": folders("gpt2-xl"), "dtype": "float32"}
    gated = {"model": "owner/gated", "dtype": "float32"}
    entry = {"draft": there, "target": there} | {missing: gated}
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump({"mine": entry}))

    def check(model, revision, gguf_file):
        if resolve_model(model) == "owner/gated":
            raise SpecdecError("owner/gated: access is gated; accept the conditions at …")

    monkeypatch.setattr(configuration, "check_available", check)
    monkeypatch.setattr(loaded_pair, "load_side", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SpecdecError, match="owner/gated: access is gated"):
        load_pair("mine", path)
