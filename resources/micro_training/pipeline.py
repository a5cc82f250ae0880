"""The stages in order; each leaves files in the work folder and is resumed from them."""

import copy
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from micro_training.corpus import Corpus, load_corpus
from micro_training.distill import copy_embeddings, copy_layers, distillation_loss, text_loss
from micro_training.export import export, rounded
from micro_training.four_bits import as_rounded, round_in_passes
from micro_training.optimise import run_phase
from micro_training.repetition import interpolate, repetition_loss
from micro_training.report import evaluate, write_reports
from micro_training.sampler import draw_prefixes, write
from micro_training.target import corpus_loss, deepen, make_model
from micro_training.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from specdec.utils.yaml_reader import read_yaml

RECIPE = Path(__file__).with_name("recipe.yaml")


class Workshop:
    """The recipe, the work folder, and what several stages share."""

    def __init__(self, work: Path, threads: int, device: str) -> None:
        self.recipe = read_yaml(RECIPE)
        self.work = work
        self.threads = threads
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = device
        torch.set_num_threads(threads)
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def corpus(self) -> Corpus:
        return load_corpus(self.recipe["held_out_percent"])

    def texts(self, part: str) -> list[str]:
        """The documents of `train` or `held_out`."""
        return [text for _, text in getattr(self.corpus, part)]

    def python_texts(self, part: str) -> list[str]:
        """Those documents of a part that are Python source, not help topics."""
        return [text for name, text in getattr(self.corpus, part) if name.endswith(".py")]

    def tokenizer(self, name: str):
        """The tokenizer of `micro` or `micro_other`."""
        folder = self.work / f"tokenizer_{name}"
        if not (folder / "tokenizer.json").exists():
            settings = self.recipe["tokenizers"][name]
            made = train_tokenizer(self.texts("train"), **settings, context=self.recipe["context"])
            made.save_pretrained(folder)
        return load_tokenizer(folder)

    def stream(self, part: str, name: str = "micro") -> np.ndarray:
        """The documents of a part one after the other, as ids (uint16) of the tokenizer `name`."""
        path = self.work / f"{part}_{name}.npy"
        if not path.exists():
            encoded = encode_documents(self.tokenizer(name), self.texts(part))
            np.save(path, np.concatenate(encoded).astype(np.uint16))
        return np.load(path)

    def new_model(self, shape: dict, tokenizer, seed_offset: int):
        """An untrained model on the device."""
        seed = self.recipe["seed"] + seed_offset
        model = make_model(
            shape, len(tokenizer), self.recipe["context"], tokenizer.eos_token_id, seed
        )
        return model.to(self.device)

    def run(self, name: str, model, loss_at) -> dict:
        """Run or resume the phase `name` of the recipe and return its log."""
        return run_phase(
            model,
            loss_at,
            self.recipe[name],
            self.work / f"{name}.pt",
            self.recipe["checkpoint_every"],
        )


def make_target(shop: Workshop):
    """Train the target on the corpus; deepen it, now in 4 bits; then train it against repeats."""
    recipe, stream = shop.recipe, shop.stream("train")
    model = shop.new_model(recipe["target"]["shape"], shop.tokenizer("micro"), seed_offset=0)
    logs = {
        "target": shop.run(
            "target", model, partial(corpus_loss, model, stream, recipe["target"], recipe)
        )
    }
    model = deepen(model, recipe["deepen"]["layers"])
    round_in_passes(model)
    learn = partial(corpus_loss, model, stream, recipe["deepen"], recipe)
    logs["deepen"] = shop.run("deepen", model, learn)
    before = copy.deepcopy(model.state_dict())
    unlearn = partial(repetition_loss, model, stream, recipe["repetition"], recipe)
    logs["repetition"] = shop.run("repetition", model, unlearn)
    interpolate(model, before, recipe["repetition"]["share"])
    return as_rounded(model), logs


def write_texts(shop: Workshop, target) -> np.ndarray:
    """What the target writes after passages of the corpus: ids [rows, prefix + length]."""
    settings, stream = shop.recipe["writing"], shop.stream("train")
    # Twice as fast in bfloat16; near ties may fall either way.
    writer = copy.deepcopy(target).to(torch.bfloat16)
    rows, seed = [], shop.recipe["seed"]
    for temperature, batches in settings["batches"].items():
        for batch in range(batches):
            seed += 1
            path = shop.work / f"written_{temperature}_{batch}.npy"
            if not path.exists():
                prefixes = draw_prefixes(stream, settings["prefix"], settings["rows"], seed)
                text = write(
                    writer, prefixes.to(shop.device), settings["length"], temperature, seed
                )
                np.save(path, text.cpu().numpy().astype(np.uint16))
                print(path.stem, flush=True)
            rows.append(np.load(path))
    return np.concatenate(rows)


def make_draft(shop: Workshop, target, rows: np.ndarray):
    """Distil the draft from the target."""
    phase, tokenizer = shop.recipe["draft"], shop.tokenizer("micro")
    model = shop.new_model(phase["shape"], tokenizer, seed_offset=1)
    copy_layers(model, target, phase["from_layers"])
    copy_embeddings(model, tokenizer, target, tokenizer)
    loss = partial(distillation_loss, model, target, shop.stream("train"), rows, phase, shop.recipe)
    return model, {"draft": shop.run("draft", model, loss)}


def make_other_draft(shop: Workshop, draft, rows: np.ndarray):
    """Train the other vocabulary's draft, from the first draft's blocks, on the target's text."""
    phase, tokenizer = shop.recipe["other_draft"], shop.tokenizer("micro_other")
    model = shop.new_model(phase["shape"], tokenizer, seed_offset=2)
    copy_layers(model, draft, range(phase["shape"]["n_layer"]))
    copy_embeddings(model, tokenizer, draft, shop.tokenizer("micro"))
    written = encode_documents(tokenizer, shop.tokenizer("micro").batch_decode(rows))
    streams = [shop.stream("train", "micro_other"), np.concatenate(written).astype(np.uint16)]
    loss = partial(text_loss, model, streams, phase, shop.recipe)
    return model, {"other_draft": shop.run("other_draft", model, loss)}


def make_all(shop: Workshop, out: Path) -> None:
    """Every stage, from the corpus to the exported folders and their reports."""
    target, logs = make_target(shop)
    export(target, shop.tokenizer("micro"), out / "micro/target")
    target = rounded(target)  # the drafts learn from the target as it is shipped
    rows = write_texts(shop, target)
    draft, draft_log = make_draft(shop, target, rows)
    export(draft, shop.tokenizer("micro"), out / "micro/draft")
    other, other_log = make_other_draft(shop, draft, rows)
    export(other, shop.tokenizer("micro_other"), out / "micro_other/draft")
    write_reports(shop, out, logs | draft_log | other_log, evaluate(shop, out))
