"""Near ties: where two outputs part although both are the target's, because rounding chose.

A pass over K + 1 rows goes through other matrix kernels than a pass over one row and rounds
differently, so two logits that are nearly equal can change places. How far a logit moves that way
is measured on the very text that was decoded.
"""

from __future__ import annotations

import torch

from specdec.models.wrapper import ModelWrapper, Session


def replay(target: ModelWrapper, prompt: list[int], ids: list[int], rows: int) -> torch.Tensor:
    """Logits `[len(ids), V]`, float64, before each id, reading the ids `rows` at a time."""
    session = Session(target)
    logits = [session.read(torch.tensor(prompt), keep=1).logits]
    for start in range(0, len(ids) - 1, rows):
        block = torch.tensor(ids[start : min(start + rows, len(ids) - 1)])
        logits.append(session.read(block, keep=len(block)).logits)
    return torch.cat(logits).double()


def is_near_tie(gap: float, moved: float) -> bool:
    """Whether rounding can bridge a gap: each of two logits moves by `moved` at most."""
    return gap <= 2 * moved


def greedy_near_ties(
    target: ModelWrapper, prompt: list[int], alone: list[int], together: list[int], rows: int
) -> list[int]:
    """The place where two greedy outputs first differ, if a near tie explains it; else nothing.

    `alone` was decoded a token at a time, `together` in passes over `rows`. Behind that place they
    are different texts.
    """
    shared = min(len(alone), len(together))
    place = next((i for i in range(shared) if alone[i] != together[i]), None)
    if place is None:
        return []
    read = alone[: place + 1]
    one_row = replay(target, prompt, read, rows=1)
    moved = float((replay(target, prompt, read, rows) - one_row).abs().max())
    gap = float(one_row[place, alone[place]] - one_row[place, together[place]])
    return [place] if is_near_tie(gap, moved) else []
