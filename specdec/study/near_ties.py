"""Near ties: where two outputs part although both are the target's, because rounding chose.

A pass over K + 1 rows goes through other matrix kernels than a pass over one row and rounds
differently, as does a compiled pass beside an eager one; so two logits that are nearly equal can
change places. How far a logit moves that way is measured on the very text that was decoded, by the
passes that decoded it.
"""

from __future__ import annotations

import torch

from specdec.decoding.decoder import Decoder


@torch.no_grad()
def replay(decoder: Decoder, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Logits `[len(ids), V]`, float64, before each id, as the target's passes in greedy rounds of
    this decoder give them: over K + 1 ids at a time, one for the baseline."""
    device, rows = decoder.target.device, decoder.num_draft_tokens + 1
    with decoder.target_session(len(prompt) + len(ids)) as session:
        logits = [session.read(torch.tensor(prompt, device=device), keep=1).logits]
        for start in range(0, len(ids) - 1, rows):
            block = ids[start : min(start + rows, len(ids) - 1)]
            read = session.read(torch.tensor(block, device=device), keep=len(block))
            logits.append(read.logits)
    return torch.cat(logits).double()


def is_near_tie(gap: float, moved: float) -> bool:
    """Whether rounding can bridge a gap: each of two logits moves by `moved` at most."""
    return gap <= 2 * moved


def greedy_near_ties(
    baseline: Decoder, pair: Decoder, prompt: list[int], alone: list[int], together: list[int]
) -> list[int]:
    """The place where two greedy outputs first differ, if a near tie explains it; else nothing.

    The `baseline` decoded `alone`, the `pair` `together`. Behind that place they are different
    texts.
    """
    shared = min(len(alone), len(together))
    place = next((i for i in range(shared) if alone[i] != together[i]), None)
    if place is None:
        return []
    read = alone[: place + 1]
    one_row = replay(baseline, prompt, read)
    moved = float((replay(pair, prompt, read) - one_row).abs().max())
    gap = float(one_row[place, alone[place]] - one_row[place, together[place]])
    return [place] if is_near_tie(gap, moved) else []
