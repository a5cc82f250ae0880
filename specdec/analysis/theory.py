"""What theory says of speculative decoding: tokens per round, speedup, and where it breaks even.

Symbols as everywhere: K draft tokens, α acceptance rate, τ tokens per round, c cost ratio,
v verify ratio, h and h₀ overhead of a round and of a baseline step, all three in target steps.

The formulas are those of Leviathan, Kalman, Matias (2023), *Fast Inference from Transformers via
Speculative Decoding*, arXiv 2211.17192, which sets v = 1 and h = h₀ = 0. α here is their α: the
chance that a draft token is accepted given that those before it were, the same and independent
at every position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq


def tokens_per_round(alpha: ArrayLike, k: int) -> np.ndarray | float:
    """τ = 1 + α + … + α^K = (1 − α^(K+1)) / (1 − α), Leviathan et al. (2023), equation 1.

    Summed, not divided, so that it holds at α = 1. `alpha` has any shape; so has the result.
    """
    return np.power(np.asarray(alpha, dtype=float)[..., None], np.arange(k + 1)).sum(axis=-1)[()]


def tokens_per_round_within(alpha: float, k: int, budgets: ArrayLike) -> float:
    """τ of texts that end after `budgets` tokens (those of decoding): Σ budgets ÷ Σ rounds.

    The last round of a text is cut short, which matters where texts are short and K is large. A
    text of n tokens takes R(n) rounds on average: R(0) = 0 and, with P(j) the chance that a round
    accepts j tokens and so emits j + 1, R(n) = 1 + Σ_j P(j) · R(max(0, n − j − 1)). NaN without a
    token.
    """
    budgets = np.asarray(budgets, dtype=int)
    if budgets.sum() == 0 or np.isnan(alpha):
        return float("nan")
    chances = alpha ** np.arange(k + 1) * np.append(np.full(k, 1 - alpha), 1)
    rounds = [0.0]
    for n in range(1, budgets.max() + 1):
        left = np.maximum(0, n - 1 - np.arange(k + 1))
        rounds.append(1 + float(chances @ np.take(rounds, left)))
    return float(budgets.sum() / np.take(rounds, budgets).sum())


def speedup(
    tau: ArrayLike,
    k: int,
    c: ArrayLike,
    v: ArrayLike = 1.0,
    h: ArrayLike = 0.0,
    h0: ArrayLike = 0.0,
) -> np.ndarray | float:
    """S = τ(1 + h₀) / (Kc + v + h) for decoding alone, without prefill.

    With v = 1, h = h₀ = 0 and τ of `tokens_per_round` this is Theorem 3.8 of Leviathan et al.
    (2023). With the measured τ, c, v, h and h₀ it is an identity.
    """
    return np.asarray(tau) * (1 + np.asarray(h0)) / (k * np.asarray(c) + v + h)


def break_even_alpha(k: int, c: float, v: float = 1.0, h: float = 0.0, h0: float = 0.0) -> float:
    """The α at which S = 1: below it speculation loses. 0 if it never loses, NaN if it always does
    or a cost is NaN.

    S grows with α, from (1 + h₀) / (Kc + v + h) at α = 0 to K + 1 times that at α = 1, so there is
    one root at most (Corollary 3.9 of Leviathan et al. 2023: at v = 1, h = 0 some K pays if α > c).
    """

    def gain(alpha: float) -> float:
        return float(speedup(tokens_per_round(alpha, k), k, c, v, h, h0)) - 1

    if gain(0.0) >= 0:
        return 0.0
    if not gain(1.0) >= 0:
        return float("nan")
    return float(brentq(gain, 0.0, 1.0))
