"""What an engine with a known mistake emits, where it should emit the target's distribution.

Each is a distribution over the words at a place, computed from p, the target's, and q, what the
draft's word was drawn from: so it holds for words that a draft proposed.
"""

from __future__ import annotations

import torch


def emitted_by_mistake(
    p: torch.Tensor, q: torch.Tensor | None, temperature: float
) -> dict[str, torch.Tensor]:
    """Distributions `[n, V]` by the mistake's name, for p and q `[n, V]`, both warped.

    Without q (a draft that proposes text) only the mistakes that need none.
    """
    mistakes = {}
    if temperature != 1:
        blunt = p**temperature
        mistakes["target not warped"] = blunt / blunt.sum(-1, keepdim=True)
    if q is not None:
        kept = torch.minimum(p, q)
        rejected = 1 - kept.sum(-1, keepdim=True)
        mistakes["draft kept unseen"] = q
        mistakes["no residual"] = kept + rejected * p
        mistakes["greedy draft with soft scores"] = _greedy_draft(p, q)
        mistakes["residual drawn with the draft's uniform"] = kept + _reused_uniform(p, q)
    return mistakes


def _greedy_draft(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The draft proposes its most likely word, which is scored as if it were drawn from q."""
    proposed = q.argmax(-1, keepdim=True)
    kept = (p.gather(-1, proposed) / q.gather(-1, proposed)).clamp(max=1)
    residual = (p - q).clamp(min=0)
    residual = (residual / residual.sum(-1, keepdim=True)).nan_to_num(0)
    return ((1 - kept) * residual).scatter_add(-1, proposed, kept)


def _reused_uniform(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Weights of the words after a rejection, drawn with the uniform that drew the draft's word.

    That is uniform no more: it lies where the rejected words have their part of [0, 1). The weight
    of a word is what was rejected between the edges of its own part, by linear interpolation.
    """
    rejected, residual = (q - p).clamp(min=0), (p - q).clamp(min=0)
    edges = residual.cumsum(-1)
    edges = (edges / edges[..., -1:]).nan_to_num(0)
    drawn = q.cumsum(-1)
    word = torch.searchsorted(drawn, edges).clamp(max=p.shape[-1] - 1)
    density = (rejected / q).nan_to_num(0).gather(-1, word)
    below = rejected.cumsum(-1).gather(-1, word) - density * (drawn.gather(-1, word) - edges)
    return below.diff(dim=-1, prepend=torch.zeros_like(below[..., :1])).clamp(min=0)
