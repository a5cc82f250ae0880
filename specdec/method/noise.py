"""Randomness with an address: what is drawn depends on (seed, prompt, position, purpose) only.

The numbers of a request are tabulated before it runs by a counter-based generator (Philox: Salmon
et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*), so they do not depend on the order of
the prompts, on what was accepted, on the number of draft tokens, on the budget or on the engine. A
position whose proposal was discarded uses its numbers again: nothing emitted depended on them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

import numpy as np
import torch

DRAFT, ACCEPT, RESIDUAL = 0, 1, 2  # columns of the table, one a purpose
PURPOSES = 3


def request_key(seed: int | None, prompt_ids: Iterable[int]) -> int:
    """The 128-bit key of a request; without a seed, one that nobody can guess."""
    if seed is None:
        return secrets.randbits(128)
    address = f"{seed}:{','.join(map(str, prompt_ids))}"
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:16], "little")


def uniform_table(key: int, positions: int, device) -> torch.Tensor:
    """Uniforms in [0, 1), `[positions, PURPOSES]`, float64.

    Row i is the same however many rows are asked for.
    """
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.random((positions, PURPOSES))).to(device)


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw from a distribution by inverting its cumulative sum, which is taken in float64.

    Args:
        weights: `[..., V]`, at least 0, not necessarily summing to 1.
        uniform: `[...]` in [0, 1).

    Returns:
        `[...]` token ids, never one of weight 0.
    """
    cumulative = weights.double().cumsum(-1)  # [..., V]
    total = cumulative[..., -1]
    # A product that rounds up to the total would point past the last token.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, point.unsqueeze(-1), right=True).squeeze(-1)
    return token.clamp(max=weights.shape[-1] - 1)  # weights that are no numbers pass the last


def key_words(key: int, device) -> torch.Tensor:
    """The low and the high 64 bits of a key, `[2]`, as signed numbers."""
    return torch.tensor([_signed(key), _signed(key >> 64)], device=device)


def gumbel(key: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise `[n, vocab_size]`, float64, of `n` places `positions` in the output.

    The noise of a token at a place is a hash of (key, place, token): SplitMix64 (Steele et al.
    2014, *Fast Splittable Pseudorandom Number Generators*) of their counter. It is computed where
    it is needed, since a table of all tokens would not fit. `key` is that of `key_words`.
    """
    tokens = torch.arange(vocab_size, device=positions.device)
    counter = (positions.unsqueeze(-1) << 32) + tokens  # [n, V]
    state = _splitmix(counter * _GOLDEN + key[0])
    state = _splitmix(state + key[1])
    uniform = (_shift(state, 11).double() + 0.5) * 2.0**-53  # in (0, 1)
    return -(-uniform.log()).log()


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed number: int64 products wrap around


def _splitmix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: torch shifts signed numbers arithmetically."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The low 64 bits of a number as a signed one."""
    return (number + 2**63) % 2**64 - 2**63
