r"""The acceptance rule: what of a draft is kept, and which token follows it.

Tensors in, tensors out: no model, no cache, no Python branch on a tensor, so that the decoders use
it, a compiled graph can hold it and the tests can enumerate it.

**Rejection sampling** (Leviathan et al. 2023, *Fast Inference from Transformers via Speculative
Decoding*, section 2.3 and appendix A.1; Chen et al. 2023, *Accelerating Large Language Model
Decoding with Speculative Sampling*, algorithm 2). The draft token x was drawn from q, and p is what
the target would draw from. Keep x with probability min(1, p(x)/q(x)); otherwise draw from the
residual r(x) ∝ max(p(x) − q(x), 0). Then

    P(emit x) = q(x)·min(1, p(x)/q(x)) + P(reject)·r(x)
              = min(p(x), q(x))        + max(p(x) − q(x), 0)      = p(x),

because P(reject) = 1 − Σ min(p, q) = Σ max(p − q, 0) is exactly what normalises r. This holds at
each position given the tokens before it, hence for the whole sequence by induction. When all K
tokens are kept, one more comes from the target's distribution after them: with a row of zeros
appended to q, that bonus token is the same expression, max(p − 0, 0) = p.

**Matching.** Where the target's own choice at each position is known (its argmax at temperature 0;
a token sampled with noise that depends on the position alone), a draft token is kept while it
equals that choice, and the first choice that differs is emitted in its place. What is emitted is
what the target chose, always.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from specdec.method.noise import invert


def accepted_count(
    p: torch.Tensor,
    q: torch.Tensor,
    tokens: torch.Tensor,
    uniforms: torch.Tensor,
    valid: torch.Tensor,
) -> torch.Tensor:
    """How many of the draft's tokens are kept: those before the first that is not.

    Args:
        p: `[K+1, V]` target probabilities (the last row is not looked at).
        q: `[K, V]` draft probabilities, those that the tokens were drawn from.
        tokens: `[K]` draft tokens.
        uniforms: `[K]` in (0, 1].
        valid: `[K]` bool; a token that is not valid (past the budget) is never kept.

    Returns:
        A scalar tensor in 0..K.
    """
    p_x = p[:-1].gather(1, tokens.unsqueeze(1)).squeeze(1)  # [K]
    q_x = q.gather(1, tokens.unsqueeze(1)).squeeze(1)  # [K]
    # Never divide by q. A uniform of 0 is excluded, so a token with p = 0 is never kept.
    kept = (uniforms * q_x <= p_x) & valid
    return first_where(~kept)


def next_distribution(p: torch.Tensor, q: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Weights `[V]` of the token after `count` kept ones: the residual, or p where it is the bonus.

    `p` is `[K+1, V]`, and `q` `[K, V]` with zeros where no valid token was drawn. The weights are
    not normalised. Where the residual vanishes (p = q up to rounding), p itself is right.
    """
    row = count.view(1)
    p_n = p.index_select(0, row).squeeze(0)
    q_n = torch.cat([q, torch.zeros_like(p[:1])]).index_select(0, row).squeeze(0)
    residual = (p_n - q_n).clamp(min=0)
    return torch.where(residual.sum() > 0, residual, p_n)


def reject(
    p: torch.Tensor,
    q: torch.Tensor,
    tokens: torch.Tensor,
    uniforms: torch.Tensor,
    noise: torch.Tensor,
    valid: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule of rejection sampling.

    Args:
        p: `[K+1, V]` target probabilities.
        q: `[K, V]` draft probabilities.
        tokens: `[K]` draft tokens.
        uniforms: `[K]` in (0, 1], one for each decision.
        noise: `[K+1]` in [0, 1), one for the next token at each place where it may fall.
        valid: `[K]` bool, False for a proposal past the budget.

    Returns:
        `(count, next_token)`, scalar tensors: how many draft tokens are kept, what follows them.
    """
    # Chosen, not multiplied: what was not drawn from may be no number.
    p, q = p.double(), torch.where(valid.unsqueeze(1), q.double(), 0)
    count = accepted_count(p, q, tokens, uniforms, valid)
    weights = next_distribution(p, q, count)
    return count, invert(weights, noise.index_select(0, count.view(1)).squeeze(0))


def match(
    chosen: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule of matching: `chosen` `[K+1]` by the target, `tokens` `[K]` by the draft.

    Returns `(count, next_token)` as `reject` does.
    """
    return accepted_run((tokens == chosen[:-1]) & valid, chosen)


def finite_rows(logits: torch.Tensor) -> torch.Tensor:
    """Which rows of logits `[n, V]` a token can be chosen from, `[n]`: without NaN, with a largest.

    A token that can't come may have −inf.
    """
    return logits.amax(-1).isfinite()


def first_where(there: torch.Tensor) -> torch.Tensor:
    """The place `[]` of the first True in `there` `[n]`; n where there is none."""
    n = there.shape[0]  # a size that a compiler may keep open
    places = torch.arange(n + 1, device=there.device)
    return torch.where(pad(there, (0, 1), value=True), places, n).min()


def accepted_run(kept: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of `kept` `[K]` (bool) come before the first that is not, and what follows them.

    `chosen` `[K+1]` holds what follows each possible count.
    """
    count = first_where(~kept)
    return count, chosen.index_select(0, count.view(1)).squeeze(0)
