"""A draft model of the target's vocabulary."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from specdec.decoding.drafters.interface import (
    NOT_FINITE,
    Drafter,
    Drafting,
    Proposal,
    fell_short,
    nothing_of,
)
from specdec.decoding.generation import Generation
from specdec.method.rule import finite_rows, first_where
from specdec.models.wrapper import ModelWrapper


class DraftModel(Drafter):
    """Draws each token from its warped distribution, one pass a token.

    `vocab_size` is the target's; a draft with more tokens is cut to it, one with fewer gives the
    others no probability.
    """

    gives_q = True

    def __init__(self, wrapper: ModelWrapper, vocab_size: int) -> None:
        self.wrapper = wrapper
        self.vocab_size = vocab_size

    def begin(self, run, draft_prompt, read) -> ModelDrafting:
        return ModelDrafting(self, run, run.prompt if draft_prompt is None else draft_prompt)


class ModelDrafting(Drafting):
    """A draft model that reads what its run has decided behind `prompt`, its form of the prompt."""

    def __init__(self, drafter: DraftModel, run: Generation, prompt: torch.Tensor) -> None:
        self.prompt = prompt
        self.session = run.open("draft", drafter.wrapper)
        self.broken = False  # whether a compiled round found logits that were no numbers
        self._counts: list[tuple[torch.Tensor, int]] = []  # proposed and asked for, of each round
        self._run, self._vocab_size = run, drafter.vocab_size
        self._context = drafter.wrapper.context_length
        if self.room > 0:
            self.session.read(prompt, keep=1)

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.room <= 0:
            notes.append(
                f"the draft's context of {self._context} tokens is shorter than the text: "
                "behind it the target went on alone"
            )
        if self.broken or fell_short(self._counts):
            notes.append(NOT_FINITE)
        return notes

    @property
    def room(self) -> int:
        """How many tokens the draft can propose before its context ends: the last is not read."""
        if self._context is None:
            return self._run.max_new_tokens
        return self._context + 1 - len(self.prompt) - self._run.position

    def propose(self, k: int) -> Proposal:
        run, steps = self._run, max(0, min(k, self.room))
        if steps == 0:
            return nothing_of(run)
        unread = run.decided[run.prompt_length + self.session.length - len(self.prompt) :]
        tokens, rows, finite = [], [], []
        for i in range(steps):
            logits = self.session.read(unread, keep=1).logits[:, : self._vocab_size]  # [1, V]
            token, q = run.sampler.propose(logits[0], run.position + i)
            unread = token.view(1)
            tokens.append(unread)
            rows.append(q)
            finite.append(finite_rows(logits))
        # Behind a pass whose logits are no numbers nothing is proposed.
        count = first_where(~torch.cat(finite))
        self._counts.append((count, len(finite)))
        return Proposal(torch.cat(tokens), self._stack(rows), count, steps)

    def _stack(self, rows: list[torch.Tensor | None]) -> torch.Tensor | None:
        if rows[0] is None:
            return None
        q = torch.stack(rows)
        # A draft whose tokenizer ends earlier gives the target's last tokens no probability.
        return pad(q, (0, self._vocab_size - q.shape[-1]))

    def settle(self, kept, token, read) -> None:
        length = len(self.prompt) + self._run.position + kept
        self.session.roll_back(min(length, self.session.length))
