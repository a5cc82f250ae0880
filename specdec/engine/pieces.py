"""A round in pieces of fixed form: draft passes, target pass, decision.

No piece reads a tensor on the host or branches on one, so each can be compiled as a whole, and all
of them can be captured together. What a sequence has come to is one tensor, `state` `[6]`, which
the decision moves on; the keys and values are buffers that the passes write into.

How many tokens a pass reads and how many slots a cache has are dynamic sizes: one compilation of a
model serves every K. The draft's cache stays one token short: its first pass of a round always
reads two tokens, and both caches advance by the same number, so that no shape depends on what was
accepted. A proposed token of −1 is none: the draft's logits were no numbers there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from specdec.method.rule import finite_rows, first_where
from specdec.method.sampling import Sampling, widened
from specdec.models.cache import fixed_view
from specdec.models.wrapper import asking_for, tapped

# The parts of `state`: the last two decided tokens, tokens in the draft's and the target's cache,
# place in the output of the next token, and whether an end token was emitted.
TAIL, DRAFT_LENGTH, TARGET_LENGTH, POSITION, ENDED = slice(0, 2), 2, 3, 4, 5
STATE_SIZE = 6
END_TOKENS = 8  # that a round looks at, so that one shape serves all models
LIMITS_SIZE = 1 + END_TOKENS
NO_TOKEN = -1


class ModelPass(torch.nn.Module):
    """One pass of a model over `n` tokens that follow what is in its cache."""

    def __init__(self, model: torch.nn.Module, vocab_size: int, taps: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.model = model
        self.vocab_size, self.taps = vocab_size, taps

    def forward(self, tokens, length, buffers) -> tuple[torch.Tensor, ...]:
        """Of tokens `[n]` after `length` `[]` cached ones: logits `[n, vocab_size]`, the most
        likely token after the last, `[1]`, and the hidden states `[n, d]` at each of the taps."""
        cache = fixed_view(buffers, length)
        ids = tokens.clamp(min=0)[None]  # where there is no token, any will do
        output = self.model(ids, past_key_values=cache, use_cache=True, **asking_for(self.taps))
        logits = output.logits[0, :, : self.vocab_size]
        return logits, likeliest(logits[-1:]), *tapped(output, self.taps)


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The first of the largest of each row `[n]` of logits `[n, V]`; none where it is no number.

    An arg max that a compiler can take many at a time.
    """
    largest = logits.amax(-1, keepdim=True)
    places = torch.arange(logits.shape[-1], device=logits.device)
    first = torch.where(logits == largest, places, logits.shape[-1]).amin(-1)
    return torch.where(largest.squeeze(-1).isfinite(), first, NO_TOKEN)


class DraftChoice(torch.nn.Module):
    """The draft's token, where it is not simply the most likely one."""

    def __init__(self, sampling: Sampling, vocab_size: int, target_size: int) -> None:
        super().__init__()
        self.sampling = sampling
        self.vocab_size, self.target_size = min(vocab_size, target_size), target_size

    def forward(self, logits, position, noise, temperature) -> tuple[torch.Tensor, torch.Tensor]:
        """The token `[1]` from the last row of logits `[n, V]`, and q `[1, target_size]` (`[0]`
        where the verification does not ask for it)."""
        logits = logits[-1:, : self.vocab_size]
        sampler = self.sampling.sampler(temperature, noise)
        token, q = sampler.propose(logits[0], position)
        token = torch.where(finite_rows(logits), token, NO_TOKEN)
        if q is None:
            return token, logits.new_zeros(0)
        # A draft whose tokenizer ends earlier gives the target's last tokens nothing.
        return token, pad(q, (0, self.target_size - self.vocab_size))[None]


class Decision(torch.nn.Module):
    """The acceptance rule, and the step of the state; K = 0 is the baseline's draw."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self.sampling = sampling

    def forward(self, logits, block, q, state, limits, noise, temperature):
        """Decide on a block.

        Args:
            logits: `[K+1, V]` of the target.
            block: `[K+1]`, the last decided token and the proposed ones.
            q: `[K, V]` what those were drawn from; anything where it is not asked for.
            state: `[6]`.
            limits: `[LIMITS_SIZE]`, the budget and the end tokens (-1 where there are fewer).
            noise, temperature: of the request's sampler.

        Returns:
            `(result [K+4], state [6])`: how many proposals were kept, how many there were, whether
            the target's logits were numbers (1) or not (0), and the tokens emitted (those that
            count come first); and what the sequence has come to. One that is finished, by its
            budget or an end token, does not advance.
        """
        tokens, position = block[1:], state[POSITION]
        places = torch.arange(block.shape[0], device=block.device)  # [K+1]
        remaining = limits[0] - position
        proposed = torch.minimum(first_where(tokens < 0), remaining)
        sampler = self.sampling.sampler(temperature, noise)
        kept, token = sampler.verify(
            logits,
            tokens.clamp(min=0),
            q if sampler.asks_for_q else None,
            position,
            places[:-1] < proposed,
        )
        emitted = torch.where(places < kept, torch.cat([tokens, token.view(1)]), token)
        counted = torch.minimum(kept + 1, remaining)
        ends = (emitted[:, None] == limits[1:]).any(-1) & (places < counted)
        # An end token is the last one: none before it among those that count.
        counted = torch.minimum(counted, first_where(ends) + 1)
        finite = first_where(~finite_rows(logits)) >= counted  # of the rows that decide a token
        counted = counted * (1 - state[ENDED])
        window = torch.cat([state[TAIL], emitted])  # [K+3]
        tail = window.index_select(0, counted + torch.arange(2, device=block.device))
        ended = torch.maximum(state[ENDED], ends.any().long())
        moved = torch.cat([state[2:5] + counted, ended.view(1)])
        said = torch.stack([kept, proposed, finite.long()])
        return torch.cat([said, emitted]), torch.cat([tail, moved])


class RoundTensors(NamedTuple):
    """What a round works on besides the state."""

    limits: torch.Tensor
    noise: torch.Tensor
    temperature: torch.Tensor  # []
    target: list[torch.Tensor]  # buffers of the target's cache
    draft: list[torch.Tensor]  # and of the draft's; empty for the baseline


@dataclass(frozen=True)
class Round:
    """The whole round, of pieces that are compiled or not; `draft` is None for the baseline.

    `choose` is the draft's `DraftChoice`; None takes its most likely token.
    """

    verify: Callable  # the target's ModelPass
    decide: Callable  # Decision
    draft: Callable | None = None  # the draft's ModelPass
    choose: Callable | None = None

    def __call__(
        self,
        k: int,
        state: torch.Tensor,
        on: RoundTensors,
        phase: Callable[[str], AbstractContextManager],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A round of `k` proposals; returns as `Decision`. `phase(name)` is around each part."""
        block, q = state[1:2], on.temperature
        if k:
            with phase("draft"):
                block, q = self._propose(k, block, state, on)
        with phase("verify"):
            logits, _ = self.verify(block, state[TARGET_LENGTH], on.target)
        if not k and self.choose is not None:
            q = widened(logits[:0])  # a draft that has come to its end
        with phase("sample"):
            return self.decide(logits, block, q, state, on.limits, on.noise, on.temperature)

    def _propose(self, k, last, state, on) -> tuple[torch.Tensor, torch.Tensor]:
        """The block `[K+1]` behind the `last` decided token `[1]`, and q `[K, V]`, of `k` passes of
        the draft."""
        unread, length, q = state[TAIL], state[DRAFT_LENGTH], on.temperature
        block, rows = [last], []
        for i in range(k):
            logits, token = self.draft(unread, length, on.draft)
            if self.choose is not None:
                position = state[POSITION] + i
                token, q = self.choose(logits, position, on.noise, on.temperature)
                rows.append(q)
            block.append(token)
            if i < k - 1:
                length = length + len(unread)
                unread = token
        return torch.cat(block), torch.cat(rows) if len(rows) > 1 else q
