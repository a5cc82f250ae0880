"""What both decoders have around `generate`: the choice of an engine, and text in and out."""

from __future__ import annotations

from specdec.data.dataset import encode_prompt
from specdec.decoding.compiled import CompiledEngine, kind
from specdec.decoding.sampling import Sampler, Warp, make_sampler
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError, is_out_of_memory, one_line
from specdec.utils.logging import get_logger

ENGINES = ("auto", "eager", "compiled")

# What of a run is compiled: everything, or the target's pass alone where the draft can't be.
ALL, TARGET, NOTHING = "all", "target", "nothing"

NOT_PREPARED = "not prepared: compiling takes a while, so engine 'auto' leaves it to prepare()"

log = get_logger(__name__)


class Decoder:
    """What both decoders offer around `generate`, which each defines.

    `engine` is "eager" (the reference), "compiled" (compiled at the first use, an error where that
    can't be) or "auto": compiled after `prepare`, where that can be, else eager; a result says
    which it was, and why.
    """

    synthetic_acceptance: float | None = None

    def __init__(
        self, target: ModelWrapper, draft: ModelWrapper | None, k: int, coupled: bool, engine: str
    ) -> None:
        if engine not in ENGINES:
            raise SpecdecError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
        self.target, self.coupled, self.engine = target, coupled, engine
        self.compiled = CompiledEngine(target, draft, k)
        self._parts: dict[tuple, tuple[str, str | None]] = {}

    @property
    def preparation_seconds(self) -> float:
        """What compiling and capturing took so far; no timing of a generation holds any of it."""
        return self.compiled.preparation_seconds

    def prepare(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> None:
        """Compile what `generate` with these settings needs; with engine "eager", nothing.

        Raises:
            SpecdecError: with engine "compiled", where the target can't be compiled.
        """
        sampler = self._sampler(Warp(temperature, top_k, top_p))
        if self.engine != "eager" and kind(sampler) not in self._parts:
            self._parts[kind(sampler)] = self._compile(sampler)

    def generate_text(self, text: str, max_new_tokens: int = 50, **settings) -> str:
        """Continue a text; `settings` are those of `generate`. Returns the continuation only."""
        prompt_ids = encode_prompt(self.target.tokenizer, text)
        result = self.generate(prompt_ids, max_new_tokens, **settings)
        return self.target.tokenizer.decode(result.generated_ids, skip_special_tokens=True)

    def _what_is_compiled(self, warp: Warp) -> tuple[str, str | None]:
        """ALL, TARGET or NOTHING, and the reason where it is not ALL that was asked for."""
        if self.engine == "eager":
            return NOTHING, None
        if self.engine == "compiled":
            self.prepare(warp.temperature, warp.top_k, warp.top_p)
        return self._parts.get(kind(self._sampler(warp)), (NOTHING, NOT_PREPARED))

    def _method(self, temperature: float) -> str:
        """How tokens are chosen above temperature 0: as `make_sampler` calls it."""
        return "coupled" if self.coupled else "rejection"

    def _draft_on_host(self, temperature: float) -> str | None:
        """Why the draft proposes from the host, if it does."""
        return None

    def _sampler(self, warp: Warp) -> Sampler:
        """A sampler of the kind that such a request has, without its noise."""
        method = self._method(warp.temperature)
        forced = self.synthetic_acceptance
        return make_sampler(warp, 0, 2, self.target.device, method, forced)

    def _compile(self, sampler: Sampler) -> tuple[str, str | None]:
        pieces = self.compiled.piece_names()
        try:
            # A target's pass is worth something alone where there is a draft to go before it.
            for piece in ["verify"] if "draft" in pieces else pieces:
                self.compiled.prepare(piece, sampler)
        except Exception as error:  # compilers raise anything
            reason = f"{self.target.name} can't be compiled: {_said(error)}"
            if self.engine == "compiled":
                raise SpecdecError(f"{reason}; take engine 'auto' or 'eager'") from error
            log.warning("the eager engine it is: %s", reason)
            return NOTHING, reason
        reason = self._draft_on_host(sampler.warp.temperature)
        if reason is None:
            try:
                for piece in pieces:
                    self.compiled.prepare(piece, sampler)
                return ALL, None
            except Exception as error:
                reason = f"the draft runs eagerly, for it can't be compiled: {_said(error)}"
        log.info("%s", reason)
        return TARGET, reason


def engine_fields(part: str, reason: str | None) -> dict:
    """The fields of a result that say which engine ran."""
    return {"engine": "eager" if part == NOTHING else "compiled", "engine_reason": reason}


def _said(error: Exception) -> str:
    if is_out_of_memory(error):
        raise error
    return f"{type(error).__name__}: {one_line(error)[:200]}"
