"""The reference engine: growing caches, one operation after the other."""

from __future__ import annotations

import torch

from specdec.decoding.compiled import CompiledSession
from specdec.decoding.generation import Generation, Round
from specdec.models.wrapper import Session


class EagerSteps:
    """The baseline's steps after the prefill."""

    def __init__(self, run: Generation, target: Session) -> None:
        self._run, self._target = run, target

    def next(self) -> Round:
        """One token."""
        run = self._run
        with run.timers.phase("verify"):
            logits = self._target.extend(run.decided, keep=1)[0]  # [V]
        with run.timers.phase("sample"):
            token = run.sampler.draw(logits, run.position)
        return Round(0, [token.item()], 0)


class EagerRounds:
    """Rounds of a drafter and a target after their prefill, driven from the host."""

    def __init__(self, run: Generation, target: Session | CompiledSession, drafter, k: int) -> None:
        self._run, self._target, self._drafter, self._k = run, target, drafter, k
        self._places = torch.arange(k, device=run.prompt.device)

    def next(self) -> Round:
        """Propose K tokens, verify them in one pass, keep what the rule accepts."""
        run, k = self._run, self._k
        with run.timers.phase("draft"):
            tokens, q, count = self._drafter.propose(run, k)
        with run.timers.phase("verify"):
            logits = self._target.extend(run.sequence[: run.length + k], keep=k + 1)  # [K+1, V]
        with run.timers.phase("sample"):
            proposed = min(count, run.remaining)
            valid = self._places < proposed
            kept, token = run.sampler.verify(logits, tokens, q, run.position, valid)
        # The one wait of a round: what was kept, what follows, what was proposed.
        kept, token, *tokens = torch.stack([kept, token, *tokens]).tolist()
        self._target.roll_back(run.length + kept)
        self._drafter.roll_back(run, run.length + kept)
        return Round(kept, [*tokens[:kept], token], proposed)
