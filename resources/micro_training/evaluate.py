"""What the models are worth: held-out modules only, exported weights, float32."""

import ast
import gzip
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

from micro_training.repetition import repeated
from micro_training.sampler import draw_prefixes, write


@torch.inference_mode()
def bits_per_byte(model, tokenizer, texts: list[str]) -> float:
    """Cross-entropy of whole documents in chunks of the context, each begun by the end of text."""
    context, nats = model.config.n_positions, 0.0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        for start in range(0, len(ids), context - 1):
            chunk = torch.tensor(
                [[tokenizer.eos_token_id, *ids[start : start + context - 1]]], device=model.device
            )
            logits = model(chunk[:, :-1], use_cache=False).logits.float()
            nats += torch.nn.functional.cross_entropy(
                logits[0], chunk[0, 1:], reduction="sum"
            ).item()
    return round(nats / math.log(2) / sum(len(text.encode()) for text in texts), 4)


def function_prompts(texts: list[str], limit: int) -> list[str]:
    """Signature and docstring of functions spread over all with a docstring of several lines."""
    prompts = []
    for text in texts:
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and "\n" in (ast.get_docstring(node) or ""):
                prompts.append("\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]) + "\n")
    return prompts[:: max(1, len(prompts) // limit)][:limit]


def read_prompts(path: Path) -> list[str]:
    """The `prompt` field of a JSONL file like HumanEval's, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines]


def repetition(model, tokenizer, prompts: list[str], length: int) -> float:
    """Share of 4-grams of greedy text that occurred earlier in the same text, over all prompts."""
    seen_before, total, room = 0, 0, model.config.n_positions - length
    for prompt in prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=False)[-room:]
        text = write(model, torch.tensor([ids], device=model.device), length, 0, seed=0)
        written = text[:, len(ids) :].cpu()
        ends = (written[0] == tokenizer.eos_token_id).nonzero()
        written = written[:, : ends[0].item() if len(ends) else length]
        seen_before += repeated(written, 4).sum().item()
        total += max(0, written.shape[1] - 3)
    return round(seen_before / total, 4)


def held_out_text(
    target, stream: np.ndarray, settings: dict, temperature: float, seed: int
) -> torch.Tensor:
    """What the target writes after held-out passages: ids [rows, prefix + length], passages too."""
    prefixes = draw_prefixes(stream, settings["prefix"], settings["rows"], seed).to(target.device)
    return write(target, prefixes, settings["length"], temperature, seed)


@torch.inference_mode()
def agreement(draft, target, text: torch.Tensor, prefix: int) -> dict:
    """Over written positions: how often the likeliest tokens are the same, and mean Σ min(p, q)."""
    same, shared = [], []
    for row in text.split(8):
        p = target(row[:, :-1], use_cache=False).logits[:, prefix - 1 :].float().softmax(-1)
        q = draft(row[:, :-1], use_cache=False).logits[:, prefix - 1 :].float().softmax(-1)
        same.append((p.argmax(-1) == q.argmax(-1)).float().flatten())
        shared.append(torch.minimum(p, q).sum(-1).flatten())
    return {
        "argmax": round(torch.cat(same).mean().item(), 4),
        "sum_min_pq": round(torch.cat(shared).mean().item(), 4),
    }


@torch.inference_mode()
def text_accuracy(draft, tokenizer, passages: list[str], texts: list[str]) -> float:
    """How often the draft's likeliest token is the text's next one (in the draft's own vocabulary).

    Counted after the passage that each text begins with.
    """
    right = total = 0
    for passage, text in zip(passages, texts, strict=True):
        known = len(tokenizer.encode(passage, add_special_tokens=False))
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=draft.device)
        predicted = draft(ids[:, :-1], use_cache=False).logits.argmax(-1)
        right += (predicted == ids[:, 1:])[:, known - 1 :].sum().item()
        total += ids.shape[1] - known
    return round(right / total, 4)


@torch.inference_mode()
def step_milliseconds(model, tokens: int, context: int = 150, repeats: int = 40) -> float:
    """Median time of one pass over `tokens` tokens after `context` cached ones."""
    cache, times = DynamicCache(config=model.config), []
    model(torch.ones(1, context, dtype=torch.long, device=model.device), past_key_values=cache)
    for _ in range(repeats):
        started = time.perf_counter()
        model(
            torch.ones(1, tokens, dtype=torch.long, device=model.device), past_key_values=cache
        ).logits[0, -1, 0].item()
        times.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(times), 3)
