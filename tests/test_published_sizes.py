"""The published configurations: what docs/pairs.md says of them, what memory entries state."""

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
)

from specdec.models.loading.memory_check import MARGIN, weight_bytes
from specdec.models.registry import load_registry, needs_synthetic_acceptance
from specdec.utils.paths import PROJECT_ROOT

# Configuration class, and: logits, layers, hidden size, inner size, heads, key-value heads, tied.
PUBLISHED = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (LlamaConfig, 32000, 22, 2048, 5632, 32, 4, False),
    "microsoft/Phi-3-mini-4k-instruct": (Phi3Config, 32064, 32, 3072, 8192, 32, 32, False),
    "meta-llama/Meta-Llama-3-8B-Instruct": (LlamaConfig, 128256, 32, 4096, 14336, 32, 8, False),
    "meta-llama/Llama-3.2-1B-Instruct": (LlamaConfig, 128256, 16, 2048, 8192, 32, 8, True),
    "Qwen/Qwen2.5-0.5B": (Qwen2Config, 151936, 24, 896, 4864, 14, 2, True),
    "Qwen/Qwen2.5-7B": (Qwen2Config, 152064, 28, 3584, 18944, 28, 4, False),
    "HuggingFaceTB/SmolLM2-135M": (LlamaConfig, 49152, 30, 576, 1536, 9, 3, True),
    "HuggingFaceTB/SmolLM2-1.7B": (LlamaConfig, 49152, 24, 2048, 8192, 32, 32, True),
    "EleutherAI/pythia-160m": (GPTNeoXConfig, 50304, 12, 768, 3072, 12, 12, False),
    "EleutherAI/pythia-2.8b": (GPTNeoXConfig, 50304, 32, 2560, 10240, 32, 32, False),
    "gpt2": (GPT2Config, 50257, 12, 768, None, 12, 12, True),
    "gpt2-xl": (GPT2Config, 50257, 48, 1600, None, 25, 25, True),
}


def configuration(name: str):
    made_by, logits, layers, hidden, inner, heads, kv_heads, tied = PUBLISHED[name]
    if made_by is GPT2Config:
        return GPT2Config(vocab_size=logits, n_layer=layers, n_embd=hidden, n_head=heads)
    grouped = {} if made_by is GPTNeoXConfig else {"num_key_value_heads": kv_heads}
    return made_by(
        vocab_size=logits,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        tie_word_embeddings=tied,
        **grouped,
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the configurations alone, under the models' names."""
    root = tmp_path_factory.mktemp("published")
    for name in PUBLISHED:
        configuration(name).save_pretrained(root / name)
    return root


def published_pairs() -> list:
    pairs = load_registry().values()
    return [
        pair
        for pair in pairs
        if pair.target.model in PUBLISHED and not needs_synthetic_acceptance(pair)
    ]


@pytest.mark.parametrize("pair", published_pairs(), ids=lambda pair: pair.name)
def test_the_memory_an_entry_states_is_what_its_configurations_tell(pair, here, monkeypatch):
    monkeypatch.chdir(here)
    gpu = torch.device("cuda")
    counted = MARGIN * sum(weight_bytes(side, gpu) for side in (pair.draft, pair.target)) / 1e9
    assert pair.memory_gb == pytest.approx(math.ceil(counted * 10) / 10)


def test_the_documented_sizes_are_those_of_the_configurations():
    lines = (PROJECT_ROOT / "docs/pairs.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "| `" in line
    ]
    documented = {row[0].strip("`"): row for row in rows}
    assert sorted(documented) == sorted(PUBLISHED)
    for name, row in documented.items():
        config = configuration(name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        count = sum(weight.numel() for weight in model.parameters()) / 1e6
        logits, layers, hidden, parameters = (row[i].replace(" ", "") for i in (3, 4, 5, 7))
        assert (int(logits), int(layers), int(hidden)) == (
            config.vocab_size,
            config.num_hidden_layers,
            config.hidden_size,
        )
        assert parameters == f"{count:.1f}M", name
