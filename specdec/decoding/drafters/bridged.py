"""Drafts with a vocabulary of their own, which read the target's text in their own tokens."""

from __future__ import annotations

import torch

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
from specdec.vocabulary.match import VocabularyMatch
from specdec.vocabulary.text_bridge import TextBridge


class BridgedDraft(Drafter):
    """What both methods have in common."""

    on_host = "the draft reads the text in its own tokens, cut anew each round"

    def __init__(self, wrapper: ModelWrapper, vocabularies: VocabularyMatch) -> None:
        self.wrapper = wrapper
        self.vocabularies = vocabularies


class BridgedDrafting(Drafting):
    """A draft in step with the text of its run.

    `prompt` is another form of the prompt in the draft's tokens, where it is to read one.
    """

    def __init__(self, drafter: BridgedDraft, run: Generation, prompt: torch.Tensor | None) -> None:
        self._drafter, self._run = drafter, run
        self._device = drafter.wrapper.device
        self._context = drafter.wrapper.context_length
        self._session = run.open("draft", drafter.wrapper)
        self._read: list[int] = []
        self._bridge = TextBridge(drafter.vocabularies.draft, drafter.vocabularies.target)
        self._outgrown = False
        self._counts: list[tuple[torch.Tensor | int, int]] = []  # of each round, of how many asked
        if prompt is None:
            self._bridge.extend(run.prompt.tolist())
        else:
            self._bridge.start(prompt.tolist(), run.prompt_length)
        # The last token is read with what follows it, for its logits.
        if len(self._bridge.draft_ids) > 1 and self._has_room(1):
            self._feed(self._bridge.draft_ids[:-1])

    @property
    def notes(self) -> list[str]:
        notes = []
        if self._outgrown:
            notes.append(
                f"the draft's context of {self._context} tokens is shorter than the text: "
                "behind it the target went on alone"
            )
        if fell_short(self._counts):
            notes.append(NOT_FINITE)
        return notes

    def settle(self, kept, token, read) -> None:
        """Nothing yet: the next proposal keeps whatever prefix its text has in common."""

    def _has_room(self, k: int) -> bool:
        """Whether the draft can go on: it can spell some of the text, and has room for `k` more."""
        length = len(self._bridge.draft_ids)
        self._outgrown = self._context is not None and length + k > self._context
        return length > 0 and not self._outgrown

    def _feed(self, ids: list[int]) -> torch.Tensor:
        """Read tokens; the logits `[V]` after the last."""
        self._read += ids
        return self._session.read(torch.tensor(ids, device=self._device), keep=1).logits[0]

    def _unread(self) -> list[int]:
        """Take up what was decided since, forget what no longer holds; what is left to read.

        The cost depends on what changed, not on the length of the text.
        """
        run = self._run
        kept = self._bridge.extend(run.ids[self._bridge.target_length - run.prompt_length :])
        ids = self._bridge.draft_ids
        # The last token is read again, for its logits.
        kept = max(0, min(kept, len(self._read), len(ids) - 1))
        while kept < min(len(self._read), len(ids) - 1) and self._read[kept] == ids[kept]:
            kept += 1
        del self._read[kept:]
        self._session.roll_back(kept)
        return ids[kept:]


class IntersectionDraft(BridgedDraft):
    """Proposes only tokens that both vocabularies have (Timor et al. 2025, algorithm 4, TLI).

    The draft's probabilities, restricted to the intersection, are added up into target ids before
    they are warped and drawn from, so q is what the token was drawn from, also where two draft ids
    spell the same token, and every way of sampling works as with a shared vocabulary.
    """

    gives_q = True

    def __init__(self, wrapper: ModelWrapper, vocabularies: VocabularyMatch) -> None:
        super().__init__(wrapper, vocabularies)
        to_target = vocabularies.draft_to_target
        common = (to_target >= 0).nonzero().squeeze(-1)  # draft ids of the intersection
        self._common = common.to(wrapper.device)
        self._common_target = to_target[common].to(wrapper.device)
        draft_id = torch.zeros(vocabularies.target_size, dtype=torch.long)
        draft_id[to_target[common]] = common
        self.draft_id = draft_id.to(wrapper.device)  # [V_target], for targets of the intersection
        self.draft_id_on_host = draft_id.tolist()

    def begin(self, run, draft_prompt, read) -> IntersectionDrafting:
        return IntersectionDrafting(self, run, draft_prompt)

    def in_target_ids(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[V_draft]` of the draft as logits `[V_target]`, −inf outside the intersection."""
        inside = logits[self._common].double()
        weights = (inside - inside.max()).exp()
        summed = weights.new_zeros(len(self.draft_id)).index_add(0, self._common_target, weights)
        return summed.log()


class IntersectionDrafting(BridgedDrafting):
    def __init__(self, drafter: IntersectionDraft, run: Generation, prompt) -> None:
        super().__init__(drafter, run, prompt)
        self._began, self._steps, self._kept = 0, 0, 0  # place, passes, what held of the last round

    def settle(self, kept, token, read) -> None:
        self._kept = kept

    def _take_up(self) -> None:
        """Count as read what the last round proposed and kept: the host knows it from the text."""
        held = self._run.ids[self._began :][: min(self._kept, max(0, self._steps - 1))]
        self._read += [self._drafter.draft_id_on_host[token] for token in held]
        self._began, self._steps, self._kept = self._run.position, 0, 0

    def propose(self, k: int) -> Proposal:
        self._take_up()
        unread = self._unread()
        if not self._has_room(k):
            return nothing_of(self._run)
        run, drafter = self._run, self._drafter
        logits = self._feed(unread)
        tokens, rows, finite = [], [], []
        for i in range(k):
            in_target = drafter.in_target_ids(logits)
            token, q = run.sampler.propose(in_target, run.position + i)
            tokens.append(token.view(1))
            rows.append(q)
            finite.append(finite_rows(in_target.unsqueeze(0)))
            if i < k - 1:
                logits = self._session.read(drafter.draft_id[tokens[-1]], keep=1).logits[0]
        tokens = torch.cat(tokens)
        self._steps = k
        # Behind a pass whose logits are no numbers nothing is proposed.
        count = first_where(~torch.cat(finite))
        self._counts.append((count, len(finite)))
        return Proposal(tokens, None if rows[0] is None else torch.stack(rows), count, k)


class ExactMatchDraft(BridgedDraft):
    """Proposes text, verified by exact match of tokens (Timor et al. 2025, algorithm 2, SLEM).

    The draft's text is written in the target's tokens and compared with what the target itself
    samples. Whatever the draft proposes, the output is the target's; the likeliest text matches
    most often, so the draft takes its most likely tokens at every temperature.
    """

    gives_q = False

    def begin(self, run, draft_prompt, read) -> ExactMatchDrafting:
        return ExactMatchDrafting(self, run, draft_prompt)


class ExactMatchDrafting(BridgedDrafting):
    def propose(self, k: int) -> Proposal:
        unread = self._unread()
        if not self._has_room(k):
            return nothing_of(self._run)
        size = self._drafter.vocabularies.draft_size
        logits = self._feed(unread)
        drafted, finite = [], []
        for i in range(k):
            drafted.append(logits[:size].argmax(-1).view(1))
            finite.append(finite_rows(logits[None, :size]))
            if i < k - 1:
                logits = self._session.read(drafted[-1], keep=1).logits[0]
        *draft_ids, count = torch.cat([*drafted, first_where(~torch.cat(finite)).view(1)]).tolist()
        self._read += draft_ids[:-1]
        self._counts.append((count, k))
        target_ids = self._bridge.to_target(draft_ids[:count])[:k]
        tokens = torch.tensor(target_ids, dtype=torch.long, device=self._device)
        return Proposal(tokens, None, len(target_ids), k)
