"""The drafts: small models that learn to write what the target writes."""

import numpy as np
import torch
import torch.nn.functional as F

from micro_training.target import autocast, corpus_batch, next_token_loss


@torch.no_grad()
def copy_layers(draft, target, layers: list[int]) -> None:
    """Start the draft from the target's positions, final norm and some blocks (same width)."""
    draft.transformer.wpe.load_state_dict(target.transformer.wpe.state_dict())
    draft.transformer.ln_f.load_state_dict(target.transformer.ln_f.state_dict())
    for block, layer in zip(draft.transformer.h, layers, strict=True):
        block.load_state_dict(target.transformer.h[layer].state_dict())


@torch.no_grad()
def copy_embeddings(draft, tokenizer, source, source_tokenizer) -> None:
    """Start each token's embedding from the mean of those that spell it in the source."""
    for token in range(len(tokenizer)):
        spelling = source_tokenizer.encode(tokenizer.decode([token]), add_special_tokens=False)
        draft.transformer.wte.weight[token] = source.transformer.wte.weight[spelling].mean(dim=0)


def rows_batch(
    rows: np.ndarray, phase: dict, context: int, seed: int, step: int
) -> tuple[torch.Tensor, int]:
    """Random rows [B, T + 1] of what the target wrote, and the position of their first token."""
    rng = np.random.default_rng([seed, step])
    chosen = rng.integers(0, len(rows), size=phase["tokens_per_step"] // rows.shape[1])
    offset = int(rng.integers(0, context - rows.shape[1])) if rng.random() < 0.5 else 0
    return torch.from_numpy(rows[chosen].astype(np.int64)), offset


def mixed_batch(
    stream: np.ndarray, rows: np.ndarray, phase: dict, context: int, seed: int, step: int
):
    """A step on the corpus or on what the target wrote, in the proportion of the recipe."""
    if np.random.default_rng([seed, step, 1]).random() < phase["corpus_share"]:
        return corpus_batch(stream, phase, context, seed, step)
    return rows_batch(rows, phase, context, seed, step)


def disagreement(
    draft_logits: torch.Tensor, target_logits: torch.Tensor, temperatures: list[float]
) -> torch.Tensor:
    """KL(p, q) plus the mean total variation 1 - Σ min(p, q) at some temperatures; logits [N, V].

    KL teaches the whole distribution and has a gradient everywhere; total variation is the share of
    draft tokens that are rejected, at a low temperature nearly that of greedy decoding.
    """
    draft_logits, target_logits = draft_logits.float(), target_logits.float()
    log_p, log_q = target_logits.log_softmax(-1), draft_logits.log_softmax(-1)
    loss = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    for temperature in temperatures:
        p, q = (target_logits / temperature).softmax(-1), (draft_logits / temperature).softmax(-1)
        loss = loss + 0.5 * (p - q).abs().sum(-1).mean() / len(temperatures)
    return loss


def distillation_loss(
    draft, target, stream, rows, phase: dict, recipe: dict, step: int
) -> torch.Tensor:
    """Loss of one step against the target's full distribution."""
    windows, offset = mixed_batch(stream, rows, phase, recipe["context"], recipe["seed"] + 1, step)
    tokens = windows[:, :-1].to(draft.device)
    positions = torch.arange(offset, offset + tokens.shape[1], device=draft.device)[None]
    with autocast(draft.device.type, recipe["autocast"]):
        with torch.no_grad():
            p_logits = target(tokens, position_ids=positions, use_cache=False).logits
        q_logits = draft(tokens, position_ids=positions, use_cache=False).logits
    return disagreement(q_logits.flatten(0, 1), p_logits.flatten(0, 1), phase["temperatures"])


def text_loss(
    draft, streams: list[np.ndarray], phase: dict, recipe: dict, step: int
) -> torch.Tensor:
    """Plain cross-entropy: across vocabularies there is no distribution to imitate, only text.

    `streams` are the corpus and what the target wrote, both as ids of the draft's own vocabulary.
    """
    seed = recipe["seed"] + 2
    on_corpus = np.random.default_rng([seed, step, 1]).random() < phase["corpus_share"]
    windows, offset = corpus_batch(
        streams[0 if on_corpus else 1], phase, recipe["context"], seed, step
    )
    windows = windows.to(draft.device)
    positions = torch.arange(offset, offset + windows.shape[1] - 1, device=draft.device)[None]
    with autocast(draft.device.type, recipe["autocast"]):
        logits = draft(windows[:, :-1], position_ids=positions, use_cache=False).logits
    return next_token_loss(logits, windows)
