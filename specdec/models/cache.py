"""How a model's keys and values are stored: the one place that knows.

`GrowingCache` is the reference; `FixedCache` is for compiled steps, whose tensors keep their place.

Every layer keeps its keys and values in full, `[batch, kv_heads, length, head_dim]`, also where the
model attends to a sliding window only: the window is left to the attention mask, which every model
of transformers applies anyway. A layer that drops what fell out of its window could not be rolled
back over the edge of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin


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


# How many slots a pass on a CPU sees grows in steps: every change makes new views.
SLOTS_STEP = 64


def _whole_steps(slots: int) -> int:
    return -(-slots // SLOTS_STEP) * SLOTS_STEP


class FixedCache:
    """Keys and values in buffers that are allocated once: `slots` places for tokens.

    How many of them hold tokens is a number that its user keeps on the device, so rolling back is
    setting that number: nothing is copied, and what lies behind it is masked until it is written
    over. Each buffer is `[slots, kv_heads, head_dim]`, so that a shorter cache is its beginning.
    """

    def __init__(self, like: GrowingCache, slots: int) -> None:
        """Room for `slots` tokens, or a few more, of the model that `like` is of.

        `like` holds at least one token.
        """
        self.slots = slots = _whole_steps(slots)
        self._buffers = [
            torch.zeros(slots, part.shape[1], part.shape[3], dtype=part.dtype, device=part.device)
            for layer in like
            for part in layer
        ]
        self._seen = self._buffers

    def reserve(self, slots: int) -> None:
        """Have at least `slots` places; where there are fewer, what is held moves to larger ones.

        Not for a cache that a captured pass works on.
        """
        if slots <= self.slots:
            return
        self.slots = _whole_steps(max(slots, 2 * self.slots))
        larger = [part.new_zeros(self.slots, *part.shape[1:]) for part in self._buffers]
        for buffer, part in zip(larger, self._buffers, strict=True):
            buffer[: len(part)] = part
        self._buffers = self._seen = larger

    def fill(self, cache: GrowingCache) -> None:
        """Take over what a growing cache holds."""
        if cache.length == 0:  # it has no layers yet
            return
        parts = [part for layer in cache for part in layer]
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer[: part.shape[2]] = part[0].transpose(0, 1)

    def first(self, tokens: int) -> list[torch.Tensor]:
        """Keys and values of each layer in turn, as views that hold `tokens` tokens or a few more.

        On a CPU a pass then costs what the text is long. On a GPU they are always whole: a captured
        pass keeps its shape.
        """
        slots = self.slots
        if self._buffers[0].device.type == "cpu":
            slots = min(_whole_steps(tokens), slots)
        if len(self._seen[0]) != slots:
            self._seen = self.beginning(slots)
        return self._seen

    def beginning(self, slots: int) -> list[torch.Tensor]:
        """Keys and values of each layer in turn, as views of the first `slots` (or all) places."""
        return [buffer[:slots] for buffer in self._buffers]


def fixed_view(buffers: list[torch.Tensor], length: torch.Tensor) -> Cache:
    """A cache for one forward pass over buffers of a `FixedCache` that hold `length` `[]` tokens.

    The pass writes its tokens behind them; whoever keeps the length counts them.
    """
    pairs = zip(buffers[0::2], buffers[1::2], strict=True)
    return Cache(layers=[_FixedLayer(keys, values, length) for keys, values in pairs])


class _FixedLayer(CacheLayerMixin):
    """One layer of `fixed_view`, as transformers asks for it."""

    is_compileable = True
    is_sliding = False  # a window is left to the mask

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._length = keys, values, length
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states) -> None:
        """Nothing: the buffers are there."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write `[1, kv_heads, n, head_dim]`; returns all slots, `[1, kv_heads, slots, ...]`."""
        places = self._length + torch.arange(key_states.shape[-2], device=key_states.device)
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            buffer.index_copy_(0, places, new[0].transpose(0, 1))
        return self.keys.transpose(0, 1)[None], self.values.transpose(0, 1)[None]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[0], 0

    def get_seq_length(self) -> torch.Tensor:
        return self._length

    def get_max_length(self) -> int:
        return self.keys.shape[0]
