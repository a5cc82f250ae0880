"""The loop: propose, verify, decide, settle.

`HostRounds` is the reference: one operation after the other, driven from the host. A fast session
in place of a plain one makes its passes fast and changes nothing there. `CompiledRounds` drives the
same round in compiled pieces (`specdec.engine.pieces.Round`), for a draft that is a model.
"""

from __future__ import annotations

import torch

from specdec.decoding.drafters.interface import Drafting
from specdec.decoding.drafters.model import ModelDrafting
from specdec.decoding.generation import Generation, Round
from specdec.engine import pieces
from specdec.engine.capture import CapturedRound
from specdec.engine.session import FastSession
from specdec.method.rule import finite_rows, first_where
from specdec.models.wrapper import Read, Session
from specdec.utils.errors import SpecdecError


class HostRounds:
    """Rounds of a drafter and a target after their prefill."""

    def __init__(
        self,
        run: Generation,
        target: Session,
        drafting: Drafting,
        k: int,
        taps: tuple[int, ...],
    ) -> None:
        self._run, self._target, self._drafting, self._k = run, target, drafting, k
        self._taps = taps
        self._places = torch.arange(k, device=run.prompt.device)

    def next(self) -> Round:
        """Propose up to K tokens, verify them in one pass, keep what the rule accepts."""
        run, proposal = self._run, None
        if k := min(self._k, run.room):
            with run.timers.phase("draft"):
                proposal = self._drafting.propose(k)
        if proposal is None or not len(proposal.tokens):
            return self._step()
        tokens, q, count, steps = proposal
        with run.timers.phase("verify"):
            block = torch.cat([run.decided[-1:], tokens])
            read = self._target.read(block, len(block), self._taps)
        with run.timers.phase("sample"):
            proposed = torch.as_tensor(count, device=block.device).clamp(max=run.remaining)
            valid = self._places[: len(tokens)] < proposed
            kept, token = run.sampler.verify(read.logits, tokens, q, run.position, valid)
            broken = first_where(~finite_rows(read.logits))
        # The one wait of a round: what was kept, what follows, what was proposed.
        decided = torch.cat([torch.stack([kept, token, proposed, broken]), tokens]).tolist()
        kept, token, proposed, broken, *tokens = decided
        emitted = [*tokens[:kept], token]
        check_finite(broken >= len(run.counted(emitted)))  # of the rows that decide a token
        self._target.roll_back(run.length + kept)
        self._drafting.settle(kept, token, read)
        return Round(kept, emitted, proposed, steps)

    def _step(self) -> Round:
        """Where nothing is proposed: one token of the target's."""
        run = self._run
        with run.timers.phase("verify"):
            read = self._target.read(run.decided[-1:], 1, self._taps)
        with run.timers.phase("sample"):
            drawn = draw(run, read)
        token = read_token(drawn)
        self._drafting.settle(0, token, read)
        return Round(0, [token], 0, 0)


class CompiledRounds:
    """Rounds in compiled pieces, after the prefill of fast sessions.

    `captured` is the same round as a graph on a GPU, over the sessions' caches.
    """

    def __init__(
        self,
        round: pieces.Round,
        run: Generation,
        target: FastSession,
        drafting: ModelDrafting | None,
        k: int,
        captured: CapturedRound | None,
    ) -> None:
        self._round, self._run, self._drafting, self._k = round, run, drafting, k
        self._captured = captured
        last, draft_length = run.ids[-1:], 0
        self._caches = {"target": (target.cache, target.length)}
        if drafting is not None:
            # The draft's first pass of a round reads two tokens, now the prompt's last one again.
            draft_length = max(0, drafting.session.length - 1)
            last = [int(drafting.prompt[-1]), *last]
            self._caches["draft"] = (drafting.session.cache, draft_length)
        tail = [0, *last][-2:]
        self._state = torch.tensor([*tail, draft_length, target.length, run.position, 0])
        limits, sampler = limits_of(run), run.sampler
        if captured is not None:
            captured.begin(self._state, limits, sampler.noise, sampler.temperature)
            return
        self._on = pieces.RoundTensors(limits, sampler.noise, sampler.temperature, [], [])
        self._seen_to = 0  # the place in the output up to which the views of the caches serve

    def next(self) -> Round:
        """One round; its result is the one thing that the host reads."""
        run, k = self._run, min(self._k, self._run.room)
        if self._drafting is not None:
            k = min(k, max(0, self._drafting.room))
        if self._captured is None:
            result = self._call(k)
        elif k == self._k:
            # What a cache holds after the prefill, what rounds have added, and this one.
            longest = max(length for _, length in self._caches.values())
            result = self._captured.replay(longest + run.position + k + 1)
        else:
            result = self._captured.shorter(k)
        kept, proposed, finite, *emitted = result.tolist()
        check_finite(finite)
        if self._captured is not None and k == self._k:
            self._captured.read_times(run.timers)
        if proposed < min(k, run.remaining):
            self._drafting.broken = True
        return Round(kept, emitted[: kept + 1], proposed, k)

    def _call(self, k: int) -> torch.Tensor:
        run = self._run
        if run.position > self._seen_to:
            self._look_further()
        result, self._state = self._round(k, self._state, self._on, run.timers.phase)
        return result

    def _look_further(self) -> None:
        """See as much of the caches as this round can reach, and some more."""
        # What a cache holds after the prefill, and what this round has added when it is done.
        position, k = self._run.position, self._k
        views = {
            name: cache.first(length + position + k)
            for name, (cache, length) in self._caches.items()
        }
        self._on = self._on._replace(**views)
        self._seen_to = min(
            len(views[name][0]) - length - k for name, (_, length) in self._caches.items()
        )


def limits_of(run: Generation) -> torch.Tensor:
    """The budget and end tokens of a run, `[LIMITS_SIZE]`; -1 is no token.

    Of more end tokens the first count: the host, which reads every round, looks at all of them.
    """
    ends = sorted(run.end_ids)[: pieces.END_TOKENS]
    return torch.tensor([run.max_new_tokens, *ends, *[-1] * (pieces.END_TOKENS - len(ends))])


def draw(run: Generation, read: Read) -> torch.Tensor:
    """The target's own next token, after the last row of what it read; for `read_token`."""
    logits = read.logits[-1]  # [V]
    return torch.stack([run.sampler.draw(logits, run.position), logits.amax().isfinite()])


def read_token(drawn: torch.Tensor) -> int:
    """Wait for a token that was drawn."""
    token, finite = drawn.tolist()
    check_finite(finite)
    return token


def check_finite(finite: bool) -> None:
    """Refuse what a target says whose logits are no numbers."""
    if not finite:
        raise SpecdecError(
            "the target's logits are not finite (NaN or overflow): its weights are broken, or its "
            "dtype is too narrow for them; load it in another dtype, or fetch it anew"
        )
