"""Speculative decoding: a drafter proposes K tokens, the target verifies them in one pass."""

from __future__ import annotations

import torch

from specdec.decoding.compiled import CompiledRounds, CompiledSession
from specdec.decoding.decoder import ALL, NOTHING, Decoder, engine_fields
from specdec.decoding.drafters import DraftModel, ExactMatchDraft, IntersectionDraft
from specdec.decoding.eager import EagerRounds
from specdec.decoding.generation import MODEL_END, Generation, check_context
from specdec.decoding.sampling import Warp
from specdec.models.vocabulary import VocabularyMatch, compare
from specdec.models.wrapper import ModelWrapper, Session
from specdec.profiling.metrics import GenerationResult
from specdec.utils.errors import SpecdecError

# How a draft of another vocabulary proposes; "auto" takes what measured better
# (docs/decoding_methods.md): exact match at temperature 0, else the intersection.
VOCABULARY_METHODS = ("auto", "intersection", "exact_match")


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
        super().__init__(target, draft, num_draft_tokens, coupled, engine)
        self.draft, self.num_draft_tokens = draft, num_draft_tokens
        self.vocabulary, self.synthetic_acceptance = vocabulary, synthetic_acceptance
        self.vocabularies = _compare(draft, target)
        self._drafters: dict[str, DraftModel | IntersectionDraft | ExactMatchDraft] = {}
        if vocabulary == "intersection":
            self.drafter(temperature=1.0)  # says at once where there is no intersection

    def generate(
        self,
        prompt_ids,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_token_id=MODEL_END,
        on_tokens=None,
        draft_prompt_ids=None,
        timed_phases: bool = True,
    ) -> GenerationResult:
        """Continue a prompt, as `AutoregressiveDecoder.generate` does, with the same arguments.

        `draft_prompt_ids` shows the draft another form of the prompt, in its own token ids (its own
        chat template): that changes what is accepted, never the output's distribution.

        K is the same in every round, also in the last: what was proposed past the budget is masked
        and what was emitted past it is cut, so that a budget changes nothing before it.
        """
        k = self.num_draft_tokens
        drafter = self.drafter(temperature)
        warp = Warp(temperature, top_k, top_p)
        compiled, reason = self._what_is_compiled(warp)
        run = Generation(
            self.target,
            prompt_ids,
            max_new_tokens,
            warp,
            seed,
            eos_token_id,
            on_tokens,
            draft_tokens=k,
            method=self._method(temperature),
            synthetic_acceptance=self.synthetic_acceptance,
            timed_phases=timed_phases,
        )
        draft_prompt = draft_prompt_ids
        if draft_prompt is not None:
            draft_prompt = torch.as_tensor(draft_prompt, device=self.draft.device).reshape(-1)
        reach = max_new_tokens + k
        check_context(self.target, run.prompt_length + reach, "prompt + max_new_tokens + K")
        shown = run.prompt_length if draft_prompt is None else len(draft_prompt)
        if isinstance(drafter, DraftModel):
            check_context(self.draft, shown + reach, "the draft's prompt + max_new_tokens + K")
        if compiled != NOTHING:
            slots = max(shown, run.prompt_length) + reach + 1
            self.compiled.make_ready(run, slots, whole_round=compiled == ALL)

        target = Session(self.target)
        with run.memory.phase("prefill"), run.timers.phase("prefill"):
            logits = target.extend(run.prompt, keep=1)[0]  # [V]
            token = run.sampler.draw(logits, run.position)
            drafter.start(run, draft_prompt)
            if compiled == ALL:
                self.compiled.take_over(target, drafter.session)
        run.hand_over([token.item()])

        accepted, proposed = [], []
        with run.memory.phase("decode"):
            rounds = self._rounds(compiled, run, target, drafter)
            while not run.done:
                kept, tokens, count = rounds.next()
                accepted.append(kept)
                proposed.append(count)
                run.hand_over(tokens)
        return run.result(
            vocabulary_match=self.vocabularies.describe() if self.vocabularies else None,
            drafter=type(drafter).__name__,
            **_speculation(run, accepted, proposed),
            **engine_fields(compiled, reason),
        )

    def _rounds(self, compiled: str, run: Generation, target: Session, drafter):
        """What goes on after the prefill: by the engine that was chosen."""
        if compiled == ALL:
            tail = [int(drafter.prompt[-1]), run.ids[0]]
            return CompiledRounds(self.compiled, run, target, drafter.session, tail)
        if compiled != NOTHING:
            target = CompiledSession(self.compiled, target)
        return EagerRounds(run, target, drafter, self.num_draft_tokens)

    def drafter(self, temperature: float) -> DraftModel | IntersectionDraft | ExactMatchDraft:
        """What proposes at this temperature.

        Raises:
            SpecdecError: where the intersection is asked for and there is none.
        """
        method = self._vocabulary_method(temperature)
        if method not in self._drafters:
            self._drafters[method] = self._make_drafter(method)
        return self._drafters[method]

    def _vocabulary_method(self, temperature: float) -> str:
        if self.vocabularies is None or self.vocabularies.is_shared:
            return "shared"
        if self.vocabulary != "auto":
            return self.vocabulary
        if temperature == 0 or self.vocabularies.overlap == 0:
            return "exact_match"
        return "intersection"

    def _make_drafter(self, method: str) -> DraftModel | IntersectionDraft | ExactMatchDraft:
        if method == "shared":
            return DraftModel(self.draft, self.target.vocab_size)
        if method == "exact_match":
            return ExactMatchDraft(self.draft, self.vocabularies)
        if self.vocabularies.overlap == 0:
            raise SpecdecError(
                f"{self.draft.name} and {self.target.name} have no token in common, so the "
                "intersection method has nothing to propose; use vocabulary='exact_match'"
            )
        return IntersectionDraft(self.draft, self.vocabularies)

    def _method(self, temperature: float) -> str:
        if not self.coupled and isinstance(self.drafter(temperature), ExactMatchDraft):
            return "matching"
        return super()._method(temperature)

    def _draft_on_host(self, temperature: float) -> str | None:
        if isinstance(self.drafter(temperature), DraftModel):
            if self.draft.device.type == "cpu" and self.draft.is_4bit:
                return "the draft runs eagerly: 4-bit weights can't be compiled for a CPU"
            return None
        return "the draft runs eagerly: it reads the text in its own tokens, cut anew each round"


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


def _speculation(run: Generation, accepted: list[int], proposed: list[int]) -> dict:
    """The counts and times of a result that only a speculative run has."""
    times = run.timers.summary()
    rounds = len(accepted)
    return dict(
        acceptance_rate=sum(accepted) / sum(proposed) if sum(proposed) else 0.0,
        tokens_per_step=(len(run.ids) - 1) / rounds if rounds else 0.0,
        num_speculation_rounds=rounds,
        draft_time_total_ms=times.get("draft", 0.0),
        verify_time_total_ms=times.get("verify", 0.0),
        sampling_time_total_ms=times.get("sample", 0.0),
        accepted_per_round=accepted,
        proposed_per_round=proposed,
    )
