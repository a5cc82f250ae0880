"""What of a run is compiled, and why not all of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from specdec.decoding.drafters.interface import Drafter
from specdec.decoding.drafters.none import NoDraft
from specdec.engine.capture import CapturedPass, CapturedPasses, CapturedRound
from specdec.engine.compiler import compile_by_two
from specdec.engine.fast_model import FastModel, fast_model
from specdec.engine.pieces import Round
from specdec.engine.session import FastSession
from specdec.method.sampling import Sampling
from specdec.models.wrapper import ModelWrapper, Session
from specdec.utils.errors import SpecdecError, is_out_of_memory, one_line
from specdec.utils.logging import get_logger

# Tokens that a draft reads between two rounds of the host's: one a step, some more after a round.
READ_AGAIN = (1, 2, 4, 8)
DRAFT_TOKENS_A_TOKEN = 2  # of a draft's own vocabulary, that there is room for

IN_NO_ROUND = "only a draft model that reads no hidden states is part of a compiled round"

log = get_logger(__name__)


@dataclass(frozen=True)
class Fast:
    """The compiled parts of a run, None where a part runs eagerly; `reason` says why.

    The target's pass gives the hidden states at `taps` too.
    """

    target: FastModel | None = None
    draft: FastModel | None = None
    round: Round | None = None
    reason: str | None = None
    taps: tuple[int, ...] = ()

    @property
    def bitwise(self) -> bool:
        """Whether greedy and coupled output is the compiled baseline's bit for bit, at every K."""
        return self.round is not None and self.target.rows_apart

    def opener(
        self,
        slots: int,
        captured: CapturedRound | CapturedPasses | None,
        until_the_end: ExitStack,
    ) -> Callable[[str, ModelWrapper], Session | FastSession]:
        """`Generation.open`: sessions with room for `slots` tokens, whose caches are given back."""
        models = {"target": self.target, "draft": self.draft}

        def open(role: str, wrapper: ModelWrapper) -> Session | FastSession:
            model = models[role]
            if model is None:
                return Session(wrapper)
            if captured is not None:
                return FastSession(model, captured.caches[role], captured.passes.get(role))
            cache = model.take_cache(slots)
            until_the_end.callback(model.give_back, cache)
            return FastSession(model, cache)

        return open

    def capture(self, k: int, slots: int, noise, timed: bool) -> CapturedRound | CapturedPasses:
        """The round as one CUDA graph, or each pass where the host drives, over caches of their
        own."""
        models = {"target": self.target, "draft": self.draft}
        models = {role: model for role, model in models.items() if model is not None}
        if self.round is None:
            return CapturedPasses(
                {r: self._captured_pass(r, m, k, slots) for r, m in models.items()}
            )
        caches = {role: model.take_cache(slots) for role, model in models.items()}
        return CapturedRound(self.round, k, caches, noise, timed, self.target.pool)

    def _captured_pass(self, role: str, model: FastModel, k: int, slots: int) -> CapturedPass:
        run, rows = model.tapped_at(self.taps), (1, k + 1)
        if role == "draft":
            run, rows, slots = model.run, READ_AGAIN, slots * DRAFT_TOKENS_A_TOKEN
        cache, context = model.take_cache(slots), model.wrapper.context_length
        return CapturedPass(run, cache, rows, context, self.target.pool)


def prepare(target: ModelWrapper, drafter: Drafter, sampling: Sampling, engine: str) -> Fast:
    """Compile what a decoder's rounds need, or find it compiled.

    Raises:
        SpecdecError: with engine "compiled", where the target can't be compiled.
    """
    fast = fast_model(target)
    draft = fast_model(drafter.wrapper, as_draft=True) if drafter.wrapper else None
    alone, taps = isinstance(drafter, NoDraft), drafter.taps
    on_host = drafter.on_host or (IN_NO_ROUND if taps or not (alone or draft) else None)
    pieces = [lambda: fast.tapped_at(taps)]
    if on_host is None:
        pieces.append(lambda: fast.decide(sampling))
    if draft is not None:
        pieces.append(lambda: draft.run)
    if draft is not None and on_host is None:
        pieces.append(lambda: draft.choose(sampling, target.vocab_size))
    if target.device.type == "cpu":
        compile_by_two(pieces)
    try:
        verify = fast.tapped_at(taps)
        # A target's pass is worth something without its decision only where there is a draft.
        baseline = Round(verify, fast.decide(sampling)) if alone else None
    except Exception as error:  # compilers raise anything
        reason = f"{target.name} can't be compiled: {_said(error)}"
        if engine == "compiled":
            raise SpecdecError(f"{reason}; take engine 'auto' or 'eager'") from error
        log.warning("the eager engine it is: %s", reason)
        return Fast(reason=reason)
    if alone:
        return Fast(fast, None, baseline)
    try:
        steps = draft.run if draft else None
    except Exception as error:
        reason = f"the draft runs eagerly, for it can't be compiled: {_said(error)}"
        log.info("%s", reason)
        return Fast(fast, reason=reason, taps=taps)
    reason = on_host
    if reason is None:
        try:
            choose = draft.choose(sampling, target.vocab_size)
            return Fast(fast, draft, Round(verify, fast.decide(sampling), steps, choose))
        except Exception as error:
            reason = f"their decision can't be compiled: {_said(error)}"
    reason = f"rounds are driven from the host: {reason}"
    log.info("%s", reason)
    return Fast(fast, draft, None, reason, taps)


def _said(error: Exception) -> str:
    if is_out_of_memory(error):
        raise error
    return f"{type(error).__name__}: {one_line(error)[:200]}"
