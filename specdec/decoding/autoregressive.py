"""The baseline: the target alone, one token a pass."""

from __future__ import annotations

from specdec.decoding.decoder import Decoder
from specdec.decoding.drafters.none import NoDraft
from specdec.models.wrapper import ModelWrapper


class AutoregressiveDecoder(Decoder):
    """Decodes with one model: the speculative loop with nothing proposed.

    `coupled` samples with the noise that a coupled `SpeculativeDecoder` shares; `engine` as
    `Decoder` says.
    """

    def __init__(self, wrapper: ModelWrapper, coupled: bool = False, engine: str = "auto") -> None:
        super().__init__(wrapper, coupled, engine)

    def drafter(self, temperature: float) -> NoDraft:
        return NoDraft()
