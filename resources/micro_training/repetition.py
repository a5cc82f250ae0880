"""Unlikelihood training (Welleck et al. 2019, arXiv 1908.04319) against repetition."""

import torch

from micro_training.four_bits import as_rounded
from micro_training.sampler import draw_prefixes, write
from micro_training.target import autocast, corpus_loss


def repeated(tokens: torch.Tensor, n: int) -> torch.Tensor:
    """Where an n-gram ends that the same row held before: bool [B, T] for tokens [B, T]."""
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, ids in enumerate(tokens.tolist()):
        seen = set()
        for end in range(n, len(ids) + 1):
            gram = tuple(ids[end - n : end])
            mask[row, end - 1] = gram in seen
            seen.add(gram)
    return mask


def unlikelihood(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of -log(1 - p(token)) over masked tokens; logits [B, T, V], tokens and mask [B, T]."""
    log_p = logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    penalty = -torch.log1p(-log_p.exp().clamp(max=1 - 1e-4))
    return (penalty * mask).sum() / mask.sum().clamp(min=1)


@torch.no_grad()
def interpolate(model, before: dict, share: float) -> None:
    """Move the weights back to `share` of the way from `before` to where they are."""
    for name, parameter in model.named_parameters():
        parameter.lerp_(before[name], 1 - share)


def repetition_loss(model, stream, phase: dict, recipe: dict, step: int) -> torch.Tensor:
    """Loss on the corpus, plus the unlikelihood of what the model repeats in its greedy text."""
    loss = corpus_loss(model, stream, phase, recipe, step)
    prefixes = draw_prefixes(stream, phase["prefix"], phase["rows"], recipe["seed"] + step)
    writer = as_rounded(model).to(torch.bfloat16)  # writes several times as fast
    tokens = write(writer, prefixes.to(model.device), phase["length"], 0, seed=0).clone()
    with autocast(model.device.type, recipe["autocast"]):
        logits = model(tokens[:, :-1], use_cache=False).logits[:, phase["prefix"] - 1 :]
    written = tokens[:, phase["prefix"] :]
    return loss + phase["weight"] * unlikelihood(logits, written, repeated(written, phase["ngram"]))
