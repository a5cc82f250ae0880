"""Both decoders: a request in, a result out. What they differ in is the drafter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from time import perf_counter

import torch

from specdec.data.dataset import encode_prompt
from specdec.decoding.drafters.interface import Drafter
from specdec.decoding.fast import Fast, prepare
from specdec.decoding.generation import MODEL_END, Generation, Request, make_request
from specdec.decoding.rounds import CompiledRounds, HostRounds, draw, read_token
from specdec.engine.capture import CapturedPasses, CapturedRound, on_device
from specdec.engine.compiler import NotKept, kept_only
from specdec.engine.session import FastSession
from specdec.method.sampling import Sampling, Warp, choose_sampling, make_noise
from specdec.models.wrapper import ModelWrapper, Session
from specdec.profiling.metrics import GenerationResult
from specdec.utils.errors import SpecdecError, one_line
from specdec.utils.logging import get_logger

ENGINES = ("auto", "eager", "compiled")

NOT_PREPARED = "not prepared: compiling takes a while, so engine 'auto' leaves it to prepare()"

log = get_logger(__name__)


class Decoder(ABC):
    """Decodes with a target, and with whatever `drafter` names in front of it.

    `engine` is "eager" (the reference), "compiled" (compiled at the first use, an error where that
    can't be) or "auto": compiled after `prepare`, where that can be, else eager; a result says
    which it was, and why.
    """

    num_draft_tokens = 0  # K
    synthetic_acceptance: float | None = None

    def __init__(self, target: ModelWrapper, coupled: bool, engine: str) -> None:
        if engine not in ENGINES:
            raise SpecdecError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
        self.target, self.coupled, self.engine = target, coupled, engine
        self._prepared: dict[Sampling, Fast] = {}
        # Those that no run has, by what they depend on.
        self._captured: dict[tuple, list[CapturedRound | CapturedPasses]] = {}
        self._preparation_seconds = 0.0
        self._one_at_a_time = RLock()
        self._said: set[str] = set()  # the notes that the log has

    @abstractmethod
    def drafter(self, temperature: float) -> Drafter:
        """What proposes at this temperature."""

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
        """Continue a prompt.

        K is the same in every round, also in the last: what was proposed past the budget is masked
        and what was emitted past it is cut, so that a budget changes nothing before it.

        Args:
            prompt_ids: `[n]` or `[1, n]` token ids: a list, an array or a tensor of integers.
            max_new_tokens: budget, never exceeded.
            temperature: 0 (and anything below 1e-6) takes the most likely token.
            top_k: 0 keeps every token.
            top_p: in (0, 1]; 1 keeps every token.
            seed: the same request with the same seed gives the same tokens; None draws a fresh one.
            eos_token_id: id or ids to stop at (kept, as the last token); by default those that the
                model names; None never stops.
            on_tokens: called with each list of tokens as it is handed over.
            draft_prompt_ids: shows the draft another form of the prompt, in its own token ids (its
                own chat template): that changes what is accepted, never the output's distribution.
            timed_phases: whether phases are timed; without, nothing of it is in the loop.

        Raises:
            SpecdecError: for an empty prompt, a bad setting, a request past the target's context,
                or a target whose logits are not finite.
        """
        return self._run(
            make_request(
                self.target,
                prompt_ids,
                max_new_tokens,
                temperature,
                top_k,
                top_p,
                seed,
                eos_token_id,
                on_tokens,
                draft_prompt_ids,
                timed_phases,
            )
        )

    def generate_text(self, text: str, max_new_tokens: int = 50, **settings) -> str:
        """Continue a text; `settings` are those of `generate`. Returns the continuation only."""
        prompt_ids = encode_prompt(self.target.tokenizer, text)
        result = self.generate(prompt_ids, max_new_tokens, **settings)
        return self.target.tokenizer.decode(result.generated_ids, skip_special_tokens=True)

    @property
    def preparation_seconds(self) -> float:
        """What compiling and capturing took so far; no timing of a generation holds any of it."""
        return self._preparation_seconds

    def prepare(
        self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, longest: int = 0
    ) -> None:
        """Compile what `generate` with these settings needs; with engine "eager", nothing.

        On a GPU the rounds are captured too, for texts of up to `longest` tokens, prompt and output
        together; a longer one is captured anew when it comes.

        Raises:
            SpecdecError: with engine "compiled", where the target can't be compiled or captured.
        """
        if self.engine != "eager":
            with self._one_at_a_time:
                warp = Warp(temperature, top_k, top_p)
                self._try_capture(self._prepare(warp), self._sampling(warp), longest)

    def prepare_from_disk(
        self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0
    ) -> bool:
        """As `prepare`, unless something would have to be compiled first: then False, and nothing.

        For a GPU nothing is kept.
        """
        if self.target.device.type != "cpu":
            return False
        try:
            with kept_only():
                self.prepare(temperature, top_k, top_p)
        except NotKept:
            return False
        return True

    def is_bitwise(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> bool:
        """Whether the engine promises that at temperature 0, or coupled, the output is the same at
        every K (0, the baseline, with them), bit for bit: on a CPU, where all is compiled.

        With engine "auto": as prepared so far.
        """
        return self._fast(Warp(temperature, top_k, top_p)).bitwise

    @contextmanager
    def target_session(self, slots: int) -> Iterator[Session | FastSession]:
        """A session of up to `slots` tokens in which the target reads by the passes of this
        decoder's rounds, though no graph holds them."""
        # The target's pass is one, however tokens are chosen.
        fast = next(iter(self._prepared.values()), None) or self._fast(Warp())
        with on_device(self.target.device), ExitStack() as until_the_end:
            yield fast.opener(slots, None, until_the_end)("target", self.target)

    def _prepare(self, warp: Warp) -> Fast:
        sampling = self._sampling(warp)
        with self._one_at_a_time:
            if sampling not in self._prepared:
                began = perf_counter()
                drafter = self.drafter(warp.temperature)
                with on_device(self.target.device):
                    fast = prepare(self.target, drafter, sampling, self.engine)
                self._prepared[sampling] = fast
                self._preparation_seconds += perf_counter() - began
            return self._prepared[sampling]

    def _fast(self, warp: Warp) -> Fast:
        """What of a run is compiled."""
        if self.engine == "eager":
            return Fast()
        if self.engine == "compiled":
            return self._prepare(warp)
        return self._prepared.get(self._sampling(warp), Fast(reason=NOT_PREPARED))

    def _sampling(self, warp: Warp) -> Sampling:
        """How tokens are chosen: decided by the drafter and the settings, before any round."""
        gives_q = self.drafter(warp.temperature).gives_q
        method = "coupled" if self.coupled else "rejection" if gives_q else "matching"
        return choose_sampling(warp, method, forced=self.synthetic_acceptance is not None)

    @torch.no_grad()
    def _run(self, request: Request) -> GenerationResult:
        k, drafter = self.num_draft_tokens, self.drafter(request.warp.temperature)
        fast, sampling = self._fast(request.warp), self._sampling(request.warp)
        run = Generation(self.target, request, sampling, k, self.synthetic_acceptance)
        own = request.draft_prompt_ids
        own = None if own is None else torch.tensor(own, device=run.prompt.device)
        slots = max(run.prompt_length, 0 if own is None else len(own)) + run.max_new_tokens + k + 1
        with on_device(self.target.device), ExitStack() as until_the_end:
            fast, captured = self._capture(fast, run, slots, until_the_end)
            run.open = fast.opener(slots, captured, until_the_end)
            run.start_clock()
            with run.memory.phase("prefill"), run.timers.phase("prefill"):
                target = run.open("target", self.target)
                read = target.read(run.prompt, 1, drafter.taps)
                first = draw(run, read)
                drafting = drafter.begin(run, own, read)
            run.hand_over([read_token(first)])
            with run.memory.phase("decode"):
                if fast.round is None:
                    rounds = HostRounds(run, target, drafting, k, drafter.taps)
                else:
                    draft = drafting if k else None
                    rounds = CompiledRounds(fast.round, run, target, draft, k, captured)
                while not run.done:
                    run.take(rounds.next())
        notes = drafting.notes
        for note in set(notes) - self._said:
            log.warning("%s", note)
            self._said.add(note)
        return run.result(
            notes=notes or None,
            engine="eager" if fast.target is None else "compiled",
            engine_reason=fast.reason,
            **self._speculation(run, drafter, sampling),
        )

    def _speculation(self, run: Generation, drafter: Drafter, sampling: Sampling) -> dict:
        """The fields of a result that only a run with a draft has."""
        return {}

    def _try_capture(self, fast: Fast, sampling: Sampling, longest: int) -> None:
        """Capture before anybody waits: what a capture can't do is known then."""
        slots = longest + self.num_draft_tokens + 1
        free = self._captured.setdefault(_address(fast, sampling, timed=True), [])
        if not self._is_captured(fast) or _fitting(free, slots):
            return
        noise = make_noise(sampling, 0, 2, self.target.device, self.synthetic_acceptance)
        with on_device(self.target.device):
            captured = self._new_capture(fast, sampling, slots, noise, timed=True)
        if captured is not None:
            free[:] = [captured]

    def _capture(
        self, fast: Fast, run: Generation, slots: int, until: ExitStack
    ) -> tuple[Fast, CapturedRound | CapturedPasses | None]:
        """On a GPU the round as a graph, or its passes, over caches that no other run has;
        elsewhere None."""
        if not self._is_captured(fast):
            return fast, None
        sampling, timed = run.sampler.sampling, run.timers.enabled
        with self._one_at_a_time:
            free = self._captured.setdefault(_address(fast, sampling, timed), [])
            if fitting := _fitting(free, slots):
                free.remove(captured := fitting[0])
            else:
                free.clear()
                noise = run.sampler.noise
                captured = self._new_capture(fast, sampling, slots, noise, timed)
                if captured is None:
                    return self._prepared[sampling], None
        until.callback(free.append, captured)
        return fast, captured

    def _is_captured(self, fast: Fast) -> bool:
        return fast.target is not None and self.target.device.type == "cuda"

    def _new_capture(
        self, fast: Fast, sampling: Sampling, slots: int, noise, timed: bool
    ) -> CapturedRound | CapturedPasses | None:
        """A capture, or None where there can be none: such runs are eager from then on."""
        began = perf_counter()
        try:
            return fast.capture(self.num_draft_tokens, slots, noise, timed)
        except Exception as error:
            what = "passes" if fast.round is None else "round"
            reason = f"the {what} can't be captured: {one_line(root_of(error))[:200]}"
            if self.engine == "compiled":
                raise SpecdecError(f"{reason}; take engine 'auto' or 'eager'") from error
            log.warning("the eager engine it is: %s", reason)
            self._prepared[sampling] = Fast(reason=reason)
            return None
        finally:
            self._preparation_seconds += perf_counter() - began


def _address(fast: Fast, sampling: Sampling, timed: bool) -> tuple:
    """What a capture depends on: that of passes on nothing but the models and their taps."""
    return fast.taps if fast.round is None else (sampling, timed)


def _fitting(free: list, slots: int) -> list:
    """Captures that have room for so many tokens."""
    return [captured for captured in free if captured.caches["target"].slots >= slots]


def root_of(error: BaseException) -> BaseException:
    """What went wrong first: a failed capture ends in an error that hides the one inside."""
    while error.__context__ is not None:
        error = error.__context__
    return error
