"""What proposes tokens. The decoder decides; it does not know which drafter it has.

A drafter is asked to `start` on a run's prompt, to `propose` K tokens behind what the run has
decided, and to `roll_back` to what was kept of them. It writes its proposals behind the decided
part of `run.sequence`, where the target reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from specdec.decoding.generation import Generation, check_context
from specdec.models.text_bridge import TextBridge
from specdec.models.vocabulary import VocabularyMatch
from specdec.models.wrapper import ModelWrapper, Session


class Proposal(NamedTuple):
    """`tokens` `[K]` in target ids; `q` `[K, V]` the distributions that they were drawn from (None
    where the verification does not ask for them); `count`, how many are real and not padding."""

    tokens: torch.Tensor
    q: torch.Tensor | None
    count: int


class DraftModel:
    """A draft of the target's vocabulary, whose size is `vocab_size`."""

    def __init__(self, wrapper: ModelWrapper, vocab_size: int) -> None:
        self._wrapper = wrapper
        self._vocab_size = vocab_size

    def start(self, run: Generation, prompt: torch.Tensor | None) -> None:
        """Read the prompt, or another form of it, all but its last token.

        The first step of a round feeds two tokens, then and later: the last proposal of a round is
        never read in it, and after full acceptance it is still missing.
        """
        self.prompt = run.prompt if prompt is None else prompt
        self.session = Session(self._wrapper)
        if len(self.prompt) > 1:
            self.session.feed(self.prompt[:-1], keep=1)

    def propose(self, run: Generation, k: int) -> Proposal:
        decided = torch.cat([self.prompt, run.decided[run.prompt_length :]])
        unread = decided[self.session.length :]
        rows = []
        for i in range(k):
            logits = self.session.feed(unread, keep=1)[0, : self._vocab_size]  # [V]
            token, q = run.sampler.propose(logits, run.position + i)
            run.sequence[run.length + i] = token
            unread = token.view(1)
            rows.append(q)
        tokens = run.sequence[run.length : run.length + k]
        if rows[0] is None:
            return Proposal(tokens, None, k)
        q = torch.stack(rows)
        # A draft whose tokenizer ends earlier gives the target's last tokens no probability.
        return Proposal(tokens, pad(q, (0, self._vocab_size - q.shape[-1])), k)

    def roll_back(self, run: Generation, length: int) -> None:
        """Forget what was read of the run's sequence beyond its first `length` tokens."""
        self.session.roll_back(len(self.prompt) + length - run.prompt_length)


class _BridgedDraft:
    """A draft with a vocabulary of its own, which reads the target's text in its own tokens."""

    def __init__(self, wrapper: ModelWrapper, vocabularies: VocabularyMatch) -> None:
        self._wrapper = wrapper
        self._vocabularies = vocabularies

    def start(self, run: Generation, prompt: torch.Tensor | None) -> None:
        """Read the prompt's text, or another form of it in the draft's tokens, but for the last."""
        self._session = Session(self._wrapper)
        self._read: list[int] = []
        self._bridge = TextBridge(self._vocabularies.draft, self._vocabularies.target)
        if prompt is None:
            self._bridge.extend(run.prompt.tolist())
        else:
            self._bridge.start(prompt.tolist(), run.prompt_length)
        length = len(self._bridge.draft_ids)
        check_context(self._wrapper, length, "the prompt in the draft's tokens")
        if length > 1:
            self._feed(self._bridge.draft_ids[:-1])

    def roll_back(self, run: Generation, length: int) -> None:
        """Nothing yet: the next proposal keeps whatever prefix its text has in common."""

    def _has_room(self, k: int) -> bool:
        """Whether the draft can go on: it can spell some of the text, and has room for `k` more."""
        length, context = len(self._bridge.draft_ids), self._wrapper.context_length
        return length > 0 and (context is None or length + k <= context)

    def _nothing(self, run: Generation, k: int) -> Proposal:
        """A proposal of padding: the target goes on alone."""
        return Proposal(run.sequence[run.length : run.length + k].zero_(), None, 0)

    def _feed(self, ids: list[int]) -> torch.Tensor:
        """Read tokens; the logits `[V]` after the last."""
        self._read += ids
        return self._session.feed(torch.tensor(ids, device=self._wrapper.device), keep=1)[0]

    def _unread(self, run: Generation) -> list[int]:
        """Take up what was decided since, forget what no longer holds; what is left to read.

        The cost depends on what changed, not on the length of the text.
        """
        kept = self._bridge.extend(run.ids[self._bridge.target_length - run.prompt_length :])
        ids = self._bridge.draft_ids
        # The last token is read again, for its logits.
        kept = max(0, min(kept, len(self._read), len(ids) - 1))
        while kept < min(len(self._read), len(ids) - 1) and self._read[kept] == ids[kept]:
            kept += 1
        del self._read[kept:]
        self._session.roll_back(kept)
        return ids[kept:]


class IntersectionDraft(_BridgedDraft):
    """Proposes only tokens that both vocabularies have (Timor et al. 2025, algorithm 4, TLI).

    The draft's probabilities, restricted to the intersection, are added up into target ids before
    they are warped and drawn from, so q is what the token was drawn from, also where two draft ids
    spell the same token, and every way of sampling works as with a shared vocabulary.
    """

    def __init__(self, wrapper: ModelWrapper, vocabularies: VocabularyMatch) -> None:
        super().__init__(wrapper, vocabularies)
        to_target = vocabularies.draft_to_target
        common = (to_target >= 0).nonzero().squeeze(-1)  # draft ids of the intersection
        self._common = common.to(wrapper.device)
        self._common_target = to_target[common].to(wrapper.device)
        draft_id = torch.zeros(vocabularies.target_size, dtype=torch.long)
        draft_id[to_target[common]] = common
        self._draft_id = draft_id.to(wrapper.device)  # [V_target], for targets of the intersection

    def propose(self, run: Generation, k: int) -> Proposal:
        unread = self._unread(run)
        if not self._has_room(k):
            return self._nothing(run, k)
        logits = self._feed(unread)
        rows = []
        for i in range(k):
            token, q = run.sampler.propose(self._in_target_ids(logits), run.position + i)
            run.sequence[run.length + i] = token
            rows.append(q)
            if i < k - 1:
                logits = self._session.feed(self._draft_id[token].view(1), keep=1)[0]
        tokens = run.sequence[run.length : run.length + k]
        self._read += self._draft_id[tokens[:-1]].tolist()
        return Proposal(tokens, None if rows[0] is None else torch.stack(rows), k)

    def _in_target_ids(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[V_draft]` of the draft as logits `[V_target]`, −inf outside the intersection."""
        inside = logits[self._common].double()
        weights = (inside - inside.max()).exp()
        summed = weights.new_zeros(len(self._draft_id)).index_add(0, self._common_target, weights)
        return summed.log()


class ExactMatchDraft(_BridgedDraft):
    """Proposes text, verified by exact match of tokens (Timor et al. 2025, algorithm 2, SLEM).

    The draft's text is written in the target's tokens and compared with what the target itself
    samples. Whatever the draft proposes, the output is the target's; the likeliest text matches
    most often, so the draft takes its most likely tokens at every temperature.
    """

    def propose(self, run: Generation, k: int) -> Proposal:
        unread = self._unread(run)
        if not self._has_room(k):
            return self._nothing(run, k)
        size = self._vocabularies.draft_size
        logits = self._feed(unread)
        drafted = []
        for i in range(k):
            drafted.append(logits[:size].argmax(-1).view(1))
            if i < k - 1:
                logits = self._session.feed(drafted[-1], keep=1)[0]
        draft_ids = torch.cat(drafted).tolist()
        self._read += draft_ids[:-1]
        target_ids = self._bridge.to_target(draft_ids)[:k]
        padded = target_ids + [0] * (k - len(target_ids))
        run.sequence[run.length : run.length + k] = torch.tensor(padded)
        return Proposal(run.sequence[run.length : run.length + k], None, len(target_ids))
