"""A round in three pieces of fixed shape: draft, target pass, decision.

No piece reads a tensor on the host or branches on one, so each can be compiled as a whole, and all
three can be captured together. What a sequence has come to is one tensor, `state` `[6]`, which the
decision moves on; the keys and values are buffers that the passes write into.

The draft's cache stays one token short: its first step always reads two tokens, and both caches
advance by the same number, so that no shape depends on what was accepted.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from specdec.decoding.rejection import first_where
from specdec.decoding.sampling import Sampler, Warp
from specdec.models.cache import fixed_view

# The parts of `state`: the last two decided tokens, tokens in the draft's and the target's cache,
# place in the output of the next token, and whether an end token was emitted.
TAIL, DRAFT_LENGTH, TARGET_LENGTH, POSITION, ENDED = slice(0, 2), 2, 3, 4, 5
STATE_SIZE = 6


class ModelPass(torch.nn.Module):
    """One pass of a model over `n` tokens that follow what is in its cache."""

    def __init__(self, model: torch.nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size

    def forward(self, tokens, length, buffers) -> torch.Tensor:
        """Logits `[n, vocab_size]` of tokens `[n]` after `length` `[]` cached ones."""
        cache = fixed_view(buffers, length)
        logits = self.model(tokens[None], past_key_values=cache, use_cache=True).logits
        return logits[0, :, : self.vocab_size]


class TargetPass(ModelPass):
    """The target's pass over a block."""

    def forward(self, block, state, buffers) -> torch.Tensor:
        """Logits `[K+1, V]` of `block` `[K+1]`: the last decided token and the proposed ones."""
        return super().forward(block, state[TARGET_LENGTH], buffers)


class _Choosing(torch.nn.Module):
    """What chooses tokens: a kind of sampler, whose temperature and noise come with the request."""

    def __init__(self, kind: type[Sampler], top_k: int, top_p: float) -> None:
        super().__init__()
        self.kind = kind
        self.warp = Warp(1.0, top_k, top_p)  # logits come divided by the temperature

    def sampler(self, noise: torch.Tensor) -> Sampler:
        return self.kind(self.warp, noise)


class DraftBlock(_Choosing):
    """K steps of the draft."""

    def __init__(self, model, vocab_size: int, target_size: int, k: int, *choosing) -> None:
        super().__init__(*choosing)
        self.draft = ModelPass(model, vocab_size)
        self.target_size = target_size
        self.k = k

    def forward(self, state, noise, temperature, buffers) -> tuple[torch.Tensor, torch.Tensor]:
        """The block `[K+1]`, and q `[K, V]` (`[0]` where the verification does not ask for it)."""
        sampler = self.sampler(noise)
        unread, length = state[TAIL], state[DRAFT_LENGTH]
        tokens, rows = [], []
        for i in range(self.k):
            logits = self.draft(unread, length, buffers)[-1] / temperature
            token, q = sampler.propose(logits, state[POSITION] + i)
            length = length + unread.shape[0]
            unread = token.view(1)
            tokens.append(unread)
            if q is not None:
                # A draft whose tokenizer ends earlier gives the target's last tokens nothing.
                rows.append(pad(q, (0, self.target_size - q.shape[-1])))
        block = torch.cat([state[TAIL][1:], *tokens])
        return block, torch.stack(rows) if rows else temperature.new_empty(0)


class Decision(_Choosing):
    """The acceptance rule, and the step of the state; K = 0 is the baseline's draw."""

    def forward(self, logits, block, q, state, limits, noise, temperature):
        """Decide on a block.

        Args:
            logits: `[K+1, V]` of the target.
            block: `[K+1]`, the last decided token and the proposed ones.
            q: `[K, V]` what those were drawn from, or `[0]`.
            state: `[6]`.
            limits: `[1 + E]`, the budget and the end tokens (-1 where there are fewer).
            noise, temperature: of the request's sampler.

        Returns:
            `(result [K+2], state [6])`: how many proposals were kept, and the tokens emitted (those
            that count come first); and what the sequence has come to. One that is finished, by its
            budget or an end token, does not advance.
        """
        tokens, position = block[1:], state[POSITION]
        places = torch.arange(len(block), device=block.device)  # [K+1]
        remaining = limits[0] - position
        kept, token = self.sampler(noise).verify(
            logits / temperature,
            tokens,
            q if q.numel() else None,
            position,
            places[:-1] < remaining,
        )
        emitted = torch.where(places < kept, torch.cat([tokens, token.view(1)]), token)
        counted = torch.minimum(kept + 1, remaining)
        ends = (emitted[:, None] == limits[1:]).any(-1) & (places < counted)
        # An end token is the last one: none before it among those that count.
        counted = torch.minimum(counted, first_where(ends) + 1)
        counted = counted * (1 - state[ENDED])
        window = torch.cat([state[TAIL], emitted])  # [K+3]
        tail = window.index_select(0, counted + torch.arange(2, device=block.device))
        ended = torch.maximum(state[ENDED], ends.any().long())
        moved = torch.cat([state[2:5] + counted, ended.view(1)])
        return torch.cat([kept.view(1), emitted]), torch.cat([tail, moved])
