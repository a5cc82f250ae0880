"""The baseline: the target alone, one token a pass."""

from __future__ import annotations

from specdec.decoding.compiled import CompiledRounds
from specdec.decoding.decoder import NOTHING, Decoder, engine_fields
from specdec.decoding.eager import EagerSteps
from specdec.decoding.generation import MODEL_END, Generation, check_context
from specdec.decoding.sampling import Warp
from specdec.models.wrapper import ModelWrapper, Session
from specdec.profiling.metrics import GenerationResult


class AutoregressiveDecoder(Decoder):
    """Decodes with one model. The loop is explicit, so that each measurement is of one thing.

    `coupled` samples with the noise that a coupled `SpeculativeDecoder` shares; `engine` as
    `Decoder` says.
    """

    def __init__(self, wrapper: ModelWrapper, coupled: bool = False, engine: str = "auto") -> None:
        super().__init__(wrapper, None, 0, coupled, engine)

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
        timed_phases: bool = True,
    ) -> GenerationResult:
        """Continue a prompt.

        Args:
            prompt_ids: `[1, n]` or `[n]` token ids, a tensor or a list.
            max_new_tokens: budget, never exceeded.
            temperature: 0 takes the most likely token.
            top_k: 0 keeps every token.
            top_p: in (0, 1]; 1 keeps every token.
            seed: the same request with the same seed gives the same tokens; None draws a fresh one.
            eos_token_id: id or ids to stop at (kept, as the last token); by default those that the
                model names; None never stops.
            on_tokens: called with each list of tokens as it is handed over.
            timed_phases: whether phases are timed; without, nothing of it is in the loop.

        Raises:
            SpecdecError: for an empty prompt, a bad setting, or a request past the context.
        """
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
            method=self._method(temperature),
            timed_phases=timed_phases,
        )
        check_context(self.target, run.prompt_length + max_new_tokens, "prompt + max_new_tokens")
        if compiled != NOTHING:
            self.compiled.make_ready(run, run.prompt_length + max_new_tokens + 1, True)

        target = Session(self.target)
        with run.memory.phase("prefill"), run.timers.phase("prefill"):
            logits = target.extend(run.prompt, keep=1)[0]  # [V]
            token = run.sampler.draw(logits, run.position)
            if compiled != NOTHING:
                self.compiled.take_over(target, None)
        run.hand_over([token.item()])

        with run.memory.phase("decode"):
            if compiled == NOTHING:
                steps = EagerSteps(run, target)
            else:
                steps = CompiledRounds(self.compiled, run, target, None, [0, run.ids[0]])
            while not run.done:
                run.hand_over(steps.next().tokens)
        return run.result(**engine_fields(compiled, reason))
