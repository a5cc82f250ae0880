"""No draft: the baseline, which decodes with the target alone."""

from __future__ import annotations

from specdec.decoding.drafters.interface import Drafter, Drafting, nothing_of
from specdec.decoding.generation import Generation


class NoDraft(Drafter):
    """Proposes nothing: each round is one token of the target's."""

    gives_q = False

    def begin(self, run, draft_prompt, read) -> Drafting:
        return _Nothing(run)


class _Nothing(Drafting):
    def __init__(self, run: Generation) -> None:
        self._proposal = nothing_of(run)

    def propose(self, k: int):
        return self._proposal

    def settle(self, kept, token, read) -> None:
        """There is nothing to roll back."""
