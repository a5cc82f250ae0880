"""Speculative decoding: a drafter proposes K tokens, the target verifies them in one pass."""

from __future__ import annotations

from specdec.decoding.decoder import Decoder
from specdec.decoding.drafters.interface import Drafter
from specdec.decoding.drafters.make import VOCABULARY_METHODS, choose_method, make_drafter
from specdec.decoding.generation import Generation
from specdec.method.sampling import Sampling
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError
from specdec.vocabulary.match import VocabularyMatch, compare


class SpeculativeDecoder(Decoder):
    """Decodes with a target and a draft in front of it; the output's distribution is the target's.

    Args:
        draft, target: the two models.
        num_draft_tokens: K, the number of tokens proposed in a round.
        vocabulary: for a draft whose tokens are not the target's, "intersection" (it proposes
            tokens that both have) or "exact_match" (it proposes text); "auto" takes what measured
            better. Where the vocabularies are the same there is nothing to choose.
        coupled: at a temperature, draft and target share their noise and a draft token is kept
            where it equals the target's own sample: the output equals the baseline's (of a coupled
            `AutoregressiveDecoder`) token for token, at the price of a little acceptance.
        engine: as `Decoder` says.
        synthetic_acceptance: for timing models whose text means nothing: each draft token is
            accepted with this probability, at temperature 0, and both models run in full.

    Raises:
        SpecdecError: for K below 1, an unknown `vocabulary`, or no token in common.
    """

    def __init__(
        self,
        draft: ModelWrapper,
        target: ModelWrapper,
        num_draft_tokens: int = 4,
        vocabulary: str = "auto",
        coupled: bool = False,
        engine: str = "auto",
        synthetic_acceptance: float | None = None,
    ) -> None:
        if num_draft_tokens < 1:
            raise SpecdecError(f"num_draft_tokens (K) is {num_draft_tokens}; give 1 or more")
        if vocabulary not in VOCABULARY_METHODS:
            raise SpecdecError(
                f"vocabulary {vocabulary!r} is not one of {', '.join(VOCABULARY_METHODS)}"
            )
        if synthetic_acceptance is not None and not 0 <= synthetic_acceptance <= 1:
            raise SpecdecError(f"synthetic_acceptance {synthetic_acceptance} is outside [0, 1]")
        super().__init__(target, coupled, engine)
        self.draft, self.num_draft_tokens = draft, num_draft_tokens
        self.vocabulary, self.synthetic_acceptance = vocabulary, synthetic_acceptance
        self.vocabularies = _compare(draft, target)
        self._drafters: dict[str, Drafter] = {}
        if vocabulary == "intersection":
            self.drafter(temperature=1.0)  # says at once where there is no intersection

    def drafter(self, temperature: float) -> Drafter:
        """What proposes at this temperature.

        Raises:
            SpecdecError: where the intersection is asked for and there is none.
        """
        method = choose_method(self.vocabulary, self.vocabularies, temperature)
        if method not in self._drafters:
            self._drafters[method] = make_drafter(
                method, self.draft, self.target, self.vocabularies
            )
        return self._drafters[method]

    def _speculation(self, run: Generation, drafter: Drafter, sampling: Sampling) -> dict:
        times, rounds = run.timers.summary(), run.rounds
        accepted, proposed = [r.kept for r in rounds], [r.proposed for r in rounds]
        return dict(
            drafter=type(drafter).__name__,
            vocabulary_match=self.vocabularies.describe() if self.vocabularies else None,
            verified_by=sampling.kind.__name__.lower(),
            acceptance_rate=sum(accepted) / sum(proposed) if sum(proposed) else 0.0,
            tokens_per_step=(len(run.ids) - 1) / len(rounds) if rounds else 0.0,
            num_speculation_rounds=len(rounds),
            draft_time_total_ms=times.get("draft", 0.0),
            verify_time_total_ms=times.get("verify", 0.0),
            sampling_time_total_ms=times.get("sample", 0.0),
            accepted_per_round=accepted,
            proposed_per_round=proposed,
            draft_steps=sum(r.draft_steps for r in rounds),
        )


def _compare(draft: ModelWrapper, target: ModelWrapper) -> VocabularyMatch | None:
    """How the vocabularies relate; None for models made in memory, without tokenizers."""
    if draft.tokenizer is None or target.tokenizer is None:
        if draft.vocab_size != target.vocab_size:
            raise SpecdecError(
                f"{draft.name} has {draft.vocab_size} tokens, {target.name} {target.vocab_size}, "
                "and without both tokenizers their tokens can't be compared; give both wrappers one"
            )
        return None
    return compare(draft.tokenizer, target.tokenizer, draft.logit_size, target.logit_size)
