"""How much a draft of another vocabulary could be accepted at most."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from specdec.decoding.speculative import SpeculativeDecoder
from specdec.method.sampling import Warp
from specdec.models.wrapper import Session
from specdec.vocabulary.match import coverage


def acceptance_ceiling(
    decoder: SpeculativeDecoder,
    prompt_ids: list[int],
    generated_ids: list[int],
    warp: Warp,
) -> float | None:
    """The target's mean probability on tokens that the draft has too, where it was to draft.

    What a draft restricted to the common tokens is accepted with, Σ min(p, q), is at most p's mass
    on them. Taken at every place of the output but the first, which is not drafted; at temperature
    0 the mass is that of the most likely token. None where the vocabularies are the same, or
    nothing was drafted. It costs one pass of the target: call it outside of what is timed.
    """
    shared = decoder.vocabularies is None or decoder.vocabularies.is_shared
    places = len(generated_ids) - 1
    if shared or places < 1:
        return None
    read = torch.tensor([*prompt_ids, *generated_ids[:-1]], device=decoder.target.device)
    logits = Session(decoder.target).read(read, keep=places).logits  # [places, V]
    if warp.temperature == 0:
        probabilities = one_hot(logits.argmax(-1), logits.shape[-1])
    else:
        probabilities = warp(logits)
    return coverage(decoder.vocabularies, probabilities)
