"""The target: a GPT-2 trained on the corpus."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel


def make_model(
    shape: dict, vocabulary: int, context: int, end_of_text: int, seed: int
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, tied embeddings and no dropout (few passes don't overfit)."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        **shape,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    return GPT2LMHeadModel(config)


@torch.no_grad()
def deepen(model: GPT2LMHeadModel, layers: int) -> GPT2LMHeadModel:
    """A model of `layers` blocks that computes the same (block expansion).

    Wu et al. 2024, arXiv 2401.02415. Some blocks are followed by a copy of themselves that adds
    nothing yet: its output matrices are 0.
    """
    config = copy.deepcopy(model.config)
    config.n_layer = layers
    deeper = GPT2LMHeadModel(config).to(model.device)
    for name in ("wte", "wpe", "ln_f"):
        state = getattr(model.transformer, name).state_dict()
        getattr(deeper.transformer, name).load_state_dict(state)
    previous = None
    for new, block in enumerate(deeper.transformer.h):
        source = new * model.config.n_layer // layers
        block.load_state_dict(model.transformer.h[source].state_dict())
        if source == previous:
            for output in (block.attn.c_proj, block.mlp.c_proj):
                output.weight.zero_()
                output.bias.zero_()
        previous = source
    return deeper


def autocast(device: str, dtype: str):
    """Mixed precision for training on `device`."""
    return torch.autocast(device, dtype=getattr(torch, dtype))


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats; logits [B, T, V] predict tokens [B, T + 1] from the second on."""
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def draw_windows(
    stream: np.ndarray, length: int, count: int, rng: np.random.Generator
) -> torch.Tensor:
    """`count` random windows of `length` + 1 tokens of the stream: [count, length + 1]."""
    starts = rng.integers(0, len(stream) - length, size=count)
    return torch.from_numpy(
        np.stack([stream[start : start + length + 1] for start in starts]).astype(np.int64)
    )


def corpus_batch(
    stream: np.ndarray, phase: dict, context: int, seed: int, step: int
) -> tuple[torch.Tensor, int]:
    """The windows of one step, [B, T + 1], and the position of their first token.

    Long windows cost twice as much per token, so few steps use them; short ones start at position 0
    half of the time and anywhere otherwise, so every position is trained.
    """
    rng = np.random.default_rng([seed, step])
    length = context if rng.random() < phase["long_share"] else phase["window"]
    offset = int(rng.integers(0, context - length + 1)) if rng.random() < 0.5 else 0
    return draw_windows(stream, length, phase["tokens_per_step"] // length, rng), offset


def corpus_loss(model, stream: np.ndarray, phase: dict, recipe: dict, step: int) -> torch.Tensor:
    """Loss of one step on the corpus."""
    seed = recipe["seed"] + phase["seed_offset"]
    windows, offset = corpus_batch(stream, phase, recipe["context"], seed, step)
    windows = windows.to(model.device)
    positions = torch.arange(offset, offset + windows.shape[1] - 1, device=model.device)[None]
    with autocast(model.device.type, recipe["autocast"]):
        logits = model(windows[:, :-1], position_ids=positions, use_cache=False).logits
    return next_token_loss(logits, windows)
