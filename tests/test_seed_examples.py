"""The examples that the project promised before it was built run as they were written.

`gpt2` is here a small folder of that name in the current one: a model id may be a local folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.tiny import make_model, make_tokenizer

WRAPPER = """
import torch
from specdec.models.loader import load_model
from specdec.models.wrapper import ModelWrapper

model, tokenizer = load_model("gpt2", "float32")
device = next(model.parameters()).device
wrapper = ModelWrapper(model, tokenizer, device)

# --- Prefill ---
prompt_ids = tokenizer.encode("The quick brown fox", return_tensors="pt").to(device)
logits, cache = wrapper.forward(prompt_ids)

print(wrapper.get_cache_length(cache))   # 4  (one entry per prompt token)
# logits shape: [1, 4, 50257]

# --- Decode one token ---
next_token = logits[:, -1, :].argmax(dim=-1, keepdim=True)   # greedy
logits, cache = wrapper.forward(next_token, past_key_values=cache)
print(wrapper.get_cache_length(cache))   # 5

# --- Simulate rejection at position 3: roll back to position 3 ---
cache = wrapper.truncate_cache(cache, keep_length=3)
print(wrapper.get_cache_length(cache))   # 3

# Continue from position 3 with a replacement token
replacement = torch.tensor([[123]]).to(device)
logits, cache = wrapper.forward(replacement, past_key_values=cache)
print(wrapper.get_cache_length(cache))   # 4
"""

TIMERS = """
import torch
from specdec.profiling.timer import CUDATimer, CUDATimerCollection, cuda_sync_time

with CUDATimer() as t:
    result = torch.mm(
        torch.randn(256, 256, device=DEVICE),
        torch.randn(256, 256, device=DEVICE),
    )
print(f"matmul: {t.elapsed_ms:.2f} ms")

timers = CUDATimerCollection()
timers.start("draft")
timers.stop("draft")
timers.start("verify")
timers.stop("verify")
print(timers)
print(timers.summary())
"""

METRICS = """
from specdec.profiling.metrics import GenerationResult, BenchmarkConfig

result = GenerationResult(
    generated_ids=[1, 2, 3, 4, 5],
    per_token_latencies=[0.08, 0.09, 0.08, 0.10, 0.09],   # seconds
    total_time=0.44,
    peak_memory_mb=1823.0,
    time_to_first_token=0.08,
    # Speculative-only fields:
    acceptance_rate=0.78,
    tokens_per_step=4.12,
    num_speculation_rounds=18,
    draft_time_total_ms=120.5,
    verify_time_total_ms=310.2,
    sampling_time_total_ms=9.3,
)

print(result.tokens_per_second)
print(result.latency_p50)
print(result.latency_p95)
print(result.summary())

import os
os.makedirs("results", exist_ok=True)
with open("results/run.jsonl", "a") as f:
    f.write(result.to_json_line())   # one JSON object per line

import json
restored = GenerationResult.from_dict(json.loads(result.to_json_line()))
assert restored == result

config = BenchmarkConfig(
    model_pair_name="gpt2_dev",
    K=4,
    temperature=0.0,
    max_new_tokens=200,
    prompt_domain="code",
    seed=42,
)
print(config.decoder_label)
print(config.config_hash())
"""

DECODER = """
import torch
from specdec.models.loader import load_model
from specdec.models.wrapper import ModelWrapper
from specdec.decoding.autoregressive import AutoregressiveDecoder

model, tokenizer = load_model("gpt2", "float32")
device = next(model.parameters()).device
wrapper = ModelWrapper(model, tokenizer, device)
decoder = AutoregressiveDecoder(wrapper)

prompt_ids = tokenizer.encode("The quick brown fox", return_tensors="pt").to(device)
result = decoder.generate(prompt_ids, max_new_tokens=50, temperature=0.0)

print(result.num_tokens)           # ≤ 50
print(f"{result.tokens_per_second:.1f} tok/s")
print(f"p50={result.latency_p50*1000:.0f}ms  p95={result.latency_p95*1000:.0f}ms")
print(result.summary())

text = decoder.generate_text("The quick brown fox", max_new_tokens=50, temperature=0.0)
print(text)

result_sampled = decoder.generate(prompt_ids, max_new_tokens=50, temperature=0.8)
"""

REGISTRY = """
from specdec.models.registry import list_pairs, get_pair

print(list_pairs())
pair = get_pair("gpt2_dev")
print(pair.draft_model_id)
print(pair.target_model_id)
print(pair.draft_dtype)
"""

DATASET = """
from specdec.data.prompts import PromptDataset

dataset = PromptDataset.load("data/prompts.json")

code_prompts = dataset.get_by_domain("code")       # list[Prompt]
all_prompts  = dataset.get_all()                    # list[Prompt]

print(len(dataset))
print(code_prompts[0].prompt_id)
print(code_prompts[0].token_count)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a `gpt2` of 12 layers and 12 heads, and few weights."""
    folder = tmp_path_factory.mktemp("examples")
    tokenizer = make_tokenizer(2000, ["The quick brown fox"] * 9 + ["def f(a):\n    return a\n"])
    tokenizer.save_pretrained(folder / "gpt2")
    model = make_model(vocab_size=len(tokenizer), layers=12, n_embd=96, n_head=12, n_positions=1024)
    model.save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs an example as it stands and returns the lines that it printed."""
    monkeypatch.chdir(folder)

    def run_example(source):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        exec(compile(source, "example", "exec"), {"DEVICE": device})
        return capsys.readouterr().out.splitlines()

    return run_example


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def test_the_registry_can_be_inspected(run):
    names, draft, target, dtype = run(REGISTRY)
    for name in ("gpt2_dev", "tinyllama_llama3", "phi3_llama3", "llama3_self", "micro"):
        assert f"'{name}'" in names
    assert (draft, target, dtype) == ("gpt2", "gpt2-xl", "float16")


def test_a_cache_can_be_rolled_back_by_hand(run):
    assert [line for line in run(WRAPPER) if line.isdigit()] == ["4", "5", "3", "4"]


def test_operations_can_be_timed(run):
    lines = run(TIMERS)
    assert lines[0].startswith("matmul: ") and lines[0].endswith(" ms")
    assert lines[1] == "CUDATimerCollection:"
    assert lines[2].split()[:2] == ["draft", ":"] and lines[3].split()[:2] == ["verify", ":"]
    assert lines[4].startswith("{'draft': ")


def test_a_result_and_a_configuration_can_be_used(run):
    speed, p50, p95, summary, label, digest = run(METRICS)
    assert float(speed) == pytest.approx(5 / 0.44)
    assert float(p50) == 0.09 and float(p95) == pytest.approx(0.098)
    assert summary.startswith("SD  | 5 tok | 11.4 tok/s | p50=90ms")
    assert summary.endswith("mem=1823MB | accept=0.78 rounds=18")
    assert label == "SD-K4" and len(digest) == 12 and int(digest, 16)


def test_text_can_be_generated(run):
    lines = [line for line in run(DECODER) if not line.startswith("[loader]")]
    assert 0 < int(lines[0]) <= 50
    assert lines[1].endswith(" tok/s")
    assert lines[3].startswith("AR  | ")


def test_a_model_can_be_loaded_and_tried_from_the_command_line(folder):
    done = command(
        folder, "specdec.models.loader", "--model", "gpt2", "--dtype", "float16", "--n-tokens", "5"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[loader] tokenizer  ← gpt2"
    assert lines[1] == "[loader] model      ← gpt2  (dtype=float16)"
    assert lines[2] == "  model      : gpt2"
    assert lines[3].startswith("  parameters : ") and lines[3].endswith(" M")
    assert lines[4].startswith("  memory     : ") and lines[4].endswith(" GB")
    assert "[loader] generating 5 tokens …" in lines
    assert lines[-1] == "[loader] OK"


def test_the_prompt_dataset_can_be_built_and_read(folder, run):
    done = command(
        folder, "specdec.data.prompts", "--tokenizer", "gpt2", "--output", "data/prompts.json"
    )
    assert done.returncode == 0, done.stderr
    assert "[prompts] loading tokenizer: gpt2" in done.stdout
    assert "[prompts] saved 150 prompts → data/prompts.json" in done.stdout
    assert "[prompts] saved  15 prompts → data/prompts_tiny.json" in done.stdout
    size, prompt_id, tokens = run(DATASET)
    assert (size, prompt_id) == ("150", "code_000") and int(tokens) > 0
    tiny = json.loads((folder / "data/prompts_tiny.json").read_text())
    assert len(tiny["prompts"]) == 15


def test_without_an_ollama_server_the_command_says_so(folder, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    done = command(folder, "specdec.models.ollama_loader")
    assert done.returncode != 0
    assert "[ollama] checking server at" in done.stdout
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
