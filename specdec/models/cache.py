"""How a model's keys and values are stored: the one place that knows.

Every layer keeps its keys and values in full, `[batch, kv_heads, length, head_dim]`, also where the
model attends to a sliding window only: the window is left to the attention mask, which every model
of transformers applies anyway. A layer that drops what fell out of its window could not be rolled
back over the edge of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import DynamicCache


class GrowingCache(DynamicCache):
    """Keys and values that grow by concatenation: the reference that is easy to reason about.

    `len(cache)` is the number of layers; iterating gives `(keys, values)` of each, both
    `[batch, kv_heads, length, head_dim]`.
    """

    def __init__(self) -> None:
        super().__init__()  # no config, so that every layer is a plain full-length one

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for layer in self.layers:
            yield layer.keys, layer.values

    def __getitem__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[layer].keys, self.layers[layer].values

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return int(self.get_seq_length())

    def roll_back(self, length: int) -> None:
        """Keep the first `length` tokens, in place."""
        surplus = self.length - length
        if surplus > 0:
            self.crop(-surplus)

    def copy_prefix(self, length: int) -> GrowingCache:
        """A second cache of the first `length` tokens, which shares memory with this one.

        Sharing is safe: a growing cache never writes into the tensors that it holds.
        """
        prefix = GrowingCache()
        for index, (keys, values) in enumerate(self):
            prefix.update(keys[..., :length, :], values[..., :length, :], index)
        return prefix
