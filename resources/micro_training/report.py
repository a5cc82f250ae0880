"""`training.json`: what was trained, on what, for how long, and what came of it."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from micro_training.evaluate import (
    agreement,
    bits_per_byte,
    function_prompts,
    held_out_text,
    read_prompts,
    repetition,
    step_milliseconds,
    text_accuracy,
)
from micro_training.export import size_mb
from specdec.utils.reproducibility import processor_name

LOSSES_KEPT = 60


def load_exported(folder: Path, device: str):
    """Model in float32 and tokenizer, as the study loads them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def thinned(log: dict) -> dict:
    """The log of a phase with about `LOSSES_KEPT` points of its loss curve."""
    stride = -(-len(log["losses"]) // LOSSES_KEPT)
    return {**log, "losses": log["losses"][stride - 1 :: stride]}


def provenance(shop) -> dict:
    """Where and from what the models were made."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return {
        "seed": shop.recipe["seed"],
        "corpus": {
            "source": "Python standard library, sources and help topics",
            "sha256": shop.corpus.digest,
            "train_documents": len(shop.corpus.train),
            "train_bytes": sum(len(text.encode()) for text in shop.texts("train")),
            "held_out": [name for name, _ in shop.corpus.held_out],
            "held_out_bytes": sum(len(text.encode()) for text in shop.texts("held_out")),
        },
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": processor_name(),
            "device": shop.device,
        },
        "threads": shop.threads,
        "versions": {package: version(package) for package in packages},
    }


def description(folder: Path, model) -> dict:
    """Shape and size of one exported model."""
    config = model.config
    return {
        "layers": config.n_layer,
        "width": config.n_embd,
        "heads": config.n_head,
        "vocabulary": config.vocab_size,
        "context": config.n_positions,
        "parameters": model.num_parameters(),
        "megabytes": size_mb(folder),
        "step_ms": {str(n): step_milliseconds(model, n) for n in (1, 2, 3, 5, 9)},
    }


def repeated_4grams(shop, target, tokenizer, prompts: list[str]) -> dict:
    """How much of the target's greedy text repeats itself, for each length of the recipe."""
    lengths = shop.recipe["evaluation"]["lengths"]
    shares = {str(n): repetition(target, tokenizer, prompts, n) for n in lengths}
    return {"prompts": len(prompts)} | shares


def measure_target(shop, target, tokenizer, prompts_file: Path | None) -> dict:
    """Held-out bits per byte; repetition after held-out functions and after a file's prompts."""
    prompts = function_prompts(shop.python_texts("held_out"), shop.recipe["evaluation"]["prompts"])
    measured = {
        "bits_per_byte_held_out": bits_per_byte(target, tokenizer, shop.texts("held_out")),
        "repeated_4grams": repeated_4grams(shop, target, tokenizer, prompts),
    }
    if prompts_file:
        from_file = read_prompts(prompts_file)
        measured[prompts_file.name] = repeated_4grams(shop, target, tokenizer, from_file)
    return measured


def measure_drafts(shop, target, draft, other, tokenizer, other_tokenizer) -> tuple[dict, dict]:
    """Agreement of both drafts with the target, on text that it writes after held-out passages."""
    settings, prefix = shop.recipe["evaluation"], shop.recipe["evaluation"]["prefix"]
    stream, held_out = shop.stream("held_out"), shop.texts("held_out")
    agreements, accuracies = {}, {}
    for name, temperature in (("greedy", 0), ("temperature_0.8", 0.8), ("temperature_1", 1.0)):
        ids = held_out_text(target, stream, settings, temperature, seed=shop.recipe["seed"])
        agreements[name] = agreement(draft, target, ids, prefix)
        passages, texts = tokenizer.batch_decode(ids[:, :prefix]), tokenizer.batch_decode(ids)
        accuracies[name] = text_accuracy(other, other_tokenizer, passages, texts)
    bits = bits_per_byte(draft, tokenizer, held_out)
    other_bits = bits_per_byte(other, other_tokenizer, held_out)
    return (
        {"bits_per_byte_held_out": bits, "agreement": agreements},
        {"bits_per_byte_held_out": other_bits, "next_token_accuracy": accuracies},
    )


def evaluate(shop, out: Path, prompts_file: Path | None = None) -> dict:
    """Every figure of the exported models in `out`."""
    folders = {
        "target": out / "micro/target",
        "draft": out / "micro/draft",
        "other": out / "micro_other/draft",
    }
    loaded = {name: load_exported(folder, shop.device) for name, folder in folders.items()}
    models = {name: model for name, (model, _) in loaded.items()}
    tokenizer, other_tokenizer = loaded["target"][1], loaded["other"][1]
    shapes = {name: description(folders[name], models[name]) for name in folders}
    on_target = measure_target(shop, models["target"], tokenizer, prompts_file)
    on_draft, on_other = measure_drafts(shop, *models.values(), tokenizer, other_tokenizer)
    common = set(tokenizer.get_vocab()) & set(other_tokenizer.get_vocab())
    return {
        "target": shapes["target"] | on_target,
        "draft": shapes["draft"] | on_draft,
        "other_draft": shapes["other"] | on_other | {"tokens_in_common": len(common)},
    }


def write_reports(shop, out: Path, logs: dict, figures: dict) -> None:
    """One `training.json` beside each folder of models."""
    contents = {
        "micro": {
            "phases": ("target", "deepen", "repetition", "draft"),
            "figures": ("target", "draft"),
        },
        "micro_other": {"phases": ("other_draft",), "figures": ("other_draft",)},
    }
    for name, chosen in contents.items():
        report = provenance(shop) | {
            "recipe": shop.recipe,
            "phases": {phase: thinned(logs[phase]) for phase in chosen["phases"]},
            "figures": {figure: figures[figure] for figure in chosen["figures"]},
        }
        (out / name / "training.json").write_text(json.dumps(report, indent=1) + "\n")
