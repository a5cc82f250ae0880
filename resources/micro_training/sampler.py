"""Text that a model writes, in batches, with a key-value cache."""

import numpy as np
import torch
from transformers import StaticCache


def choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """One token per row of logits [B, V]: [B, 1]; the most likely one at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)


@torch.inference_mode()
def write(
    model, prefixes: torch.Tensor, length: int, temperature: float, seed: int
) -> torch.Tensor:
    """Continue prefixes [B, P] by `length` tokens each: [B, P + length], prefixes included."""
    generator = torch.Generator(model.device).manual_seed(seed)
    cache = StaticCache(config=model.config, max_cache_len=prefixes.shape[1] + length)
    tokens, new = prefixes, prefixes
    for _ in range(length):
        logits = model(new, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        new = choose(logits, temperature, generator)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def draw_prefixes(stream: np.ndarray, length: int, count: int, seed: int) -> torch.Tensor:
    """`count` passages of `length` tokens from random places of a stream: [count, length]."""
    starts = np.random.default_rng(seed).integers(0, len(stream) - length, size=count)
    return torch.from_numpy(
        np.stack([stream[start : start + length] for start in starts]).astype(np.int64)
    )
