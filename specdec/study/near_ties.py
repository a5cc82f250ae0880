"""Near ties: where two outputs part although both are the target's, because rounding chose.

A pass over K + 1 rows goes through other matrix kernels than a pass over one row and rounds
differently, as does a compiled pass beside an eager one; so where two tokens are nearly equal
another can be chosen. How far rounding moves what is compared is measured on the very text that was
decoded, by the passes that decoded it:

- at temperature 0 the logits;
- coupled, the logits divided by the temperature, to which the noise of the place is added;
- sampled by exact match, the cumulative probabilities, among which the uniform of the place falls.
"""

from __future__ import annotations

import torch

from specdec.decoding.decoder import Decoder
from specdec.method.noise import RESIDUAL, gumbel, request_key
from specdec.method.sampling import (
    METHODS,
    Coupled,
    Greedy,
    Matching,
    Sampler,
    Sampling,
    Warp,
    make_noise,
)
from specdec.profiling.metrics import first_difference


@torch.no_grad()
def replay(
    decoder: Decoder, prompt: list[int], ids: list[int], rows: int | None = None
) -> torch.Tensor:
    """Logits `[len(ids), V]`, float64, on the CPU, before each id, as the target's passes in rounds
    of this decoder give them: over K + 1 ids at a time (one for the baseline), or over `rows`."""
    device, rows = decoder.target.device, rows or decoder.num_draft_tokens + 1
    with decoder.target_session(len(prompt) + len(ids)) as session:
        logits = [session.read(torch.tensor(prompt, device=device), keep=1).logits]
        for start in range(0, len(ids) - 1, rows):
            block = ids[start : min(start + rows, len(ids) - 1)]
            read = session.read(torch.tensor(block, device=device), keep=len(block))
            logits.append(read.logits)
    return torch.cat(logits).double().cpu()


def is_near_tie(gap, moved):
    """Whether rounding can bridge a gap: each of the two that are compared moves by `moved`."""
    return gap <= 2 * moved


def sampler_of(
    rule: str, warp: Warp, seed: int | None, prompt: list[int], positions: int
) -> Sampler:
    """What chose the target's tokens in a request that was verified by one of `SAME_TOKENS`."""
    sampling = Sampling({"greedy": Greedy, **METHODS}[rule], warp.top_k, warp.top_p)
    noise = make_noise(sampling, request_key(seed, prompt), positions, "cpu")
    return sampling.sampler(torch.tensor(warp.temperature or 1.0, dtype=torch.float64), noise)


def tie_of_two(
    baseline: Decoder,
    pair: Decoder,
    sampler: Sampler,
    prompt: list[int],
    alone: list[int],
    together: list[int],
) -> list[int]:
    """The place where two outputs first differ, if a near tie explains it; else nothing.

    The `baseline` decoded `alone`, the `pair` `together`. Behind that place they are different
    texts.
    """
    place = first_difference(alone, together)
    if place is None or place >= min(len(alone), len(together)):
        return []
    read = alone[: place + 1]
    one_row, block = (replay(decoder, prompt, read) for decoder in (baseline, pair))
    near = _within_reach(sampler, one_row, block)[place]
    return [place] if near[alone[place]] and near[together[place]] else []


def ties_of_one(pair: Decoder, sampler: Sampler, prompt: list[int], ids: list[int]) -> list[int]:
    """All places of an output of the `pair` where rounding could choose another token: for an
    output whose baseline was decoded elsewhere.

    It is read once more in one pass, not a token at a time, which would take as long as decoding.
    """
    if not ids:
        return []
    at_once, block = replay(pair, prompt, ids, rows=len(ids)), replay(pair, prompt, ids)
    near = _within_reach(sampler, at_once, block)
    own = near.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
    return (own & (near.sum(1) > 1)).nonzero().squeeze(1).tolist()


def _within_reach(sampler: Sampler, logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which tokens rounding may choose at each place of an output, `[n, V]` (bool), where two
    readings of it gave these logits `[n, V]`."""
    if isinstance(sampler, Matching):
        ours, theirs = (sampler.warp(read).cumsum(-1) for read in (logits, others))
        point = sampler.noise[: len(ours), RESIDUAL, None]
        below = torch.nn.functional.pad(ours, (1, 0))[:, :-1]
        gap = torch.maximum(below - point, point - ours).clamp(min=0)
    else:
        ours, theirs = logits / sampler.temperature, others / sampler.temperature
        lead = ours
        if isinstance(sampler, Coupled):
            lead = ours + gumbel(sampler.noise, torch.arange(len(ours)), ours.shape[-1])
        gap = lead.amax(-1, keepdim=True) - lead
    return is_near_tie(gap, (ours - theirs).abs().max())
