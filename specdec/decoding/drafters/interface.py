"""What a drafter is. It proposes, the decoder decides; the loop doesn't know which one it has.

A `Drafter` belongs to a decoder and holds nothing of a run, so that generations can overlap; what
it begins for a run, a `Drafting`, holds everything of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from specdec.decoding.generation import Generation
from specdec.models.wrapper import ModelWrapper, Read

NOT_FINITE = "the draft's logits were not finite: there it proposed nothing"


class Proposal(NamedTuple):
    """What is proposed behind the decided tokens of a run."""

    tokens: torch.Tensor  # [k] target ids, padded
    q: torch.Tensor | None  # [k, V] what they were drawn from; None where the round matches
    count: int | torch.Tensor  # real ones, 0..k; a tensor [] where only the device knows
    steps: int  # passes of the draft that it took: what c is the price of


def fell_short(counts: list[tuple[int | torch.Tensor, int]]) -> bool:
    """Whether a round proposed fewer tokens than it was asked for: `counts` are both, of each
    round. Waits for the device once."""
    if not counts:
        return False
    proposed = torch.stack([torch.as_tensor(count) for count, _ in counts]).tolist()
    return any(count < asked for count, (_, asked) in zip(proposed, counts, strict=True))


def nothing_of(run: Generation) -> Proposal:
    """A proposal of no token: the target goes on alone."""
    return Proposal(run.prompt[:0], None, 0, 0)


class Drafter(ABC):
    """A way to draft, of one decoder."""

    #: Whether tokens are drawn from a q that is given; else they are verified by matching at every
    #: temperature. The rule is chosen from this, never from a q that is missing.
    gives_q: bool
    #: The model that drafts, where it is one.
    wrapper: ModelWrapper | None = None
    #: Layers of the target whose outputs it reads: `Read.hidden` holds them, of the whole prompt
    #: and of each block. 0 are the embeddings; the last layer's come normed.
    taps: tuple[int, ...] = ()
    #: Why it can't be part of a whole compiled round, if it can't.
    on_host: str | None = None

    @abstractmethod
    def begin(self, run: Generation, draft_prompt: torch.Tensor | None, read: Read) -> Drafting:
        """Draft for a run whose target has read the prompt, which gave `read`.

        `draft_prompt` `[n]` is another form of the prompt, in the draft's own token ids.
        """


class Drafting(ABC):
    """The drafter's side of one run."""

    @property
    def notes(self) -> list[str]:
        """What a reader of the run's figures must know, a line each: where it stopped, and why."""
        return []

    @abstractmethod
    def propose(self, k: int) -> Proposal:
        """Propose at most `k` tokens behind what the run has decided."""

    @abstractmethod
    def settle(self, kept: int, token: int, read: Read) -> None:
        """Take up a decision: `kept` of the proposed tokens and then `token`.

        `read` is what the target's pass over the block gave, rows 0..k.
        """
