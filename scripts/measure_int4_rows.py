"""Measure what differs between one row and K + 1 rows of 4-bit layers, and what it costs.

The draft reads one token a step, verification K + 1 at once. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse

import torch

from specdec.data.sources import load_texts, parse_source
from specdec.decoding.loaded_pair import LoadedPair
from specdec.models.registry import ModelPair, ModelSide
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import cli
from specdec.utils.reproducibility import capture_environment, set_threads

DRAFT_TOKENS = (1, 2, 4, 8)
SEED = 0


def layer_difference(model, ids: torch.Tensor, rows: int) -> tuple[float, float]:
    """Largest difference of any 4-bit layer's output on a text `[1, n]`; the outputs' mean size."""
    inputs = {}
    layers = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, x: inputs.update({layer: x[0]}))
        for layer in layers
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    differences, sizes = [], []
    for layer, x in inputs.items():
        x = x[:, -rows:]
        together = layer(x)
        alone = torch.cat([layer(x[:, i : i + 1]) for i in range(rows)], dim=1)
        differences.append((together - alone).abs().max().item())
        sizes.append(together.abs().mean().item())
    return max(differences), sum(sizes) / len(sizes)


def logit_difference(wrapper: ModelWrapper, ids: torch.Tensor, rows: int) -> float:
    """Largest difference of the logits of the last `rows` tokens, read at once and one by one."""
    _, cache = wrapper.forward(ids[:, :-rows])
    together, _ = wrapper.forward(ids[:, -rows:], wrapper.truncate_cache(cache, cache.length))
    alone = []
    for i in range(ids.shape[1] - rows, ids.shape[1]):
        logits, cache = wrapper.forward(ids[:, i : i + 1], cache)
        alone.append(logits)
    return (together - torch.cat(alone, dim=1)).abs().max().item()


def acceptance(
    pair: LoadedPair, prompts: list[list[int]], k: int, temperature: float, tokens: int
) -> float:
    """α over the prompts."""
    decoder = pair.decoder(k)
    accepted = proposed = 0
    for ids in prompts:
        result = decoder.generate(
            ids, tokens, temperature=temperature, seed=SEED, eos_token_id=None
        )
        accepted += sum(result.accepted_per_round)
        proposed += sum(result.proposed_per_round)
    return accepted / proposed


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resources/micro/target")
    parser.add_argument("--dtype", default="float32", help="of the target beside the 4-bit draft")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--prompts", type=int, default=3, help="built-in prompts of code")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    arguments = parser.parse_args()

    set_threads(1)
    int4, other = (ModelSide(arguments.model, dtype) for dtype in ("int4", arguments.dtype))
    pair = LoadedPair(ModelPair("int4 rows", int4, other), arguments.device).load()
    rough, full = pair
    own = LoadedPair(ModelPair("int4 alone", int4, int4), arguments.device, rough, rough)
    texts = load_texts(parse_source("code", "builtin"), print).texts[: arguments.prompts]
    prompts = [pair.encode(text.prompt).prompt_ids for text in texts]
    ids = torch.tensor(prompts[:1], device=rough.device)

    environment = capture_environment(rough.device)
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "bitsandbytes"))
    held = [f"{wrapper.memory_footprint_mb:.1f} MB" for wrapper in (rough, full)]
    print(f"{arguments.model} on {environment['device']}, {versions}")
    print(f"{held[0]} in int4, {held[1]} in {arguments.dtype}\n")
    print(
        "| K | layer, max | layer, mean size | logits int4, max | "
        f"logits {arguments.dtype}, max | α int4→int4, T 0 | T 1 | "
        f"α int4→{arguments.dtype}, T 0 | T 1 |"
    )
    print("|---" * 9 + "|")
    for k in DRAFT_TOKENS:
        difference, size = layer_difference(rough.model, ids, k + 1)
        cells = [difference, size]
        cells += [logit_difference(wrapper, ids, k + 1) for wrapper in (rough, full)]
        shares = [
            acceptance(drafted, prompts, k, temperature, arguments.max_new_tokens)
            for drafted in (own, pair)
            for temperature in (0.0, 1.0)
        ]
        figures = [f"{value:.1e}" for value in cells] + [f"{share:.3f}" for share in shares]
        print(f"| {k} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    cli(main)
