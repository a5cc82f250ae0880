"""How tokens are chosen from logits: one warp for target and draft, and one class a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isfinite

import torch

from specdec.method.noise import (
    ACCEPT,
    DRAFT,
    RESIDUAL,
    gumbel,
    invert,
    key_words,
    uniform_table,
)
from specdec.method.rule import accepted_run, match, reject
from specdec.utils.errors import SpecdecError

# Below it the most likely token is taken: dividing by less overflows long before it sharpens.
LOWEST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Warp:
    """What is done to logits before a token is drawn: temperature, then top-k, then top-p.

    Temperature 0, and any below `LOWEST_TEMPERATURE`, takes the most likely token. `top_k` 0 and
    `top_p` 1 keep every token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise SpecdecError(f"temperature {self.temperature} is below 0; give 0 or more")
        if not isfinite(self.temperature):
            raise SpecdecError(f"temperature {self.temperature} is not finite; give 0 or more")
        if self.temperature < LOWEST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        if self.top_k < 0:
            raise SpecdecError(f"top_k {self.top_k} is below 0; give 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise SpecdecError(f"top_p {self.top_p} is outside (0, 1]; 1 keeps every token")

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """As `warped`."""
        return warped(logits, self.temperature, self.top_k, self.top_p)


def warped(logits: torch.Tensor, temperature, top_k: int, top_p: float) -> torch.Tensor:
    """Probabilities `[..., V]` in float32 (float64 for float64 logits) of logits `[..., V]`.

    `temperature` is above 0, a number or a tensor `[]`. top-k keeps ties with the k-th logit; top-p
    keeps the smallest set of most likely tokens whose mass reaches `top_p`, with ties of the last.
    """
    logits = widened(logits) / temperature
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        probabilities = logits.softmax(-1)
        least = least_of_mass(probabilities, top_p)
        logits = logits.masked_fill(probabilities < least, -torch.inf)
    return logits.softmax(-1)


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits as numbers to calculate with, before all else: half-precision logits that are divided
    in half precision are another distribution."""
    return logits if logits.dtype == torch.float64 else logits.float()


def least_of_mass(probabilities: torch.Tensor, mass: float) -> torch.Tensor:
    """The largest x `[..., 1]` such that the probabilities `[..., V]` from x up add up to `mass`.

    0 where rounding leaves less than `mass` in all.
    """
    single = probabilities.dtype == torch.float32 and probabilities.device.type == "cpu"
    if torch.compiler.is_compiling() and single:
        # A kernel of ours that sorts nothing, in a fraction of the time (docs/performance.md).
        rows = probabilities.reshape(-1, probabilities.shape[-1])
        least = torch.ops.specdec.least_of_mass(rows, mass)
        return least.reshape(*probabilities.shape[:-1], 1)
    ranked = probabilities.sort(descending=True).values
    reached = ranked.cumsum(-1) >= mass
    return torch.where(reached, ranked, 0).amax(-1, keepdim=True)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, but for what comes with a request: its temperature and its noise.

    Hashable: it is all of a request that is in compiled code.
    """

    kind: type[Sampler]
    top_k: int = 0
    top_p: float = 1.0

    def sampler(self, temperature: torch.Tensor, noise: torch.Tensor) -> Sampler:
        """What chooses tokens at a temperature `[]` by the noise of a request."""
        return self.kind(self, temperature, noise)


class Sampler(ABC):
    """What chooses tokens: `warp` makes probabilities of logits, `noise` is what chance decides.

    The noise of a request is one tensor, tabulated before it runs and addressed by the place in the
    output, so that a round holds no generator and can be compiled. A `position` may be a number or
    a tensor `[]`.
    """

    asks_for_q = False  # whether verification asks what the draft's tokens were drawn from
    draft_is_likeliest = False  # whether the draft simply takes its most likely token
    has_table = False  # whether the noise has a row for each place in the output

    def __init__(self, sampling: Sampling, temperature: torch.Tensor, noise: torch.Tensor) -> None:
        self.sampling, self.temperature, self.noise = sampling, temperature, noise

    def warp(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities `[..., V]` of logits `[..., V]`, as `warped`."""
        return warped(logits, self.temperature, self.sampling.top_k, self.sampling.top_p)

    def _at(self, position, count: int) -> torch.Tensor:
        """The noise of `count` places from `position` on: `[count, ...]`."""
        places = position + torch.arange(count, device=self.noise.device)
        return self.noise.index_select(0, places)

    @abstractmethod
    def draw(self, logits: torch.Tensor, position) -> torch.Tensor:
        """The target's token `[]` at `position` from its logits `[V]`."""

    @abstractmethod
    def propose(self, logits: torch.Tensor, position) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The draft's token `[]` from its logits `[V]`, and the distribution `[V]` it came from.

        The distribution is None where the method of verification does not ask for it.
        """

    @abstractmethod
    def verify(self, logits, tokens, q, position, valid) -> tuple[torch.Tensor, torch.Tensor]:
        """What is kept of a block, and the next token.

        Args:
            logits: `[K+1, V]` of the target.
            tokens: `[K]` proposed by the draft.
            q: `[K, V]` the distributions they came from; None where that is not asked for.
            position: place of the first of them in the output, counted from 0.
            valid: `[K]` bool, False for padding and past the budget.

        Returns:
            `(count, next_token)` as in `specdec.method.rule`.
        """


class Greedy(Sampler):
    """Temperature 0: target and draft both take their most likely token."""

    draft_is_likeliest = True

    def draw(self, logits, position):
        return logits.argmax(-1)

    def propose(self, logits, position):
        return logits.argmax(-1), None

    def verify(self, logits, tokens, q, position, valid):
        return match(logits.argmax(-1), tokens, valid)


class Forced(Greedy):
    """Synthetic acceptance: chance decides what is kept, for timing models that agree on nothing.

    `noise` `[positions]` says of each place whether a token proposed there is kept. What comes out
    is no text of the target's.
    """

    has_table = True

    def verify(self, logits, tokens, q, position, valid):
        kept = self._at(position, tokens.shape[0]) & valid
        return accepted_run(kept, logits.argmax(-1))


class Rejection(Sampler):
    """Sampling: the draft draws from its warped distribution, rejection sampling verifies.

    `noise` is the table `[positions, PURPOSES]` of `uniform_table`.
    """

    asks_for_q = True
    has_table = True

    def draw(self, logits, position):
        # The same expression as the token after a block: rejection sampling with nothing proposed.
        return invert(self.warp(logits), self._at(position, 1)[0, RESIDUAL])

    def propose(self, logits, position):
        q = self.warp(logits)
        return invert(q, self._at(position, 1)[0, DRAFT]), q

    def verify(self, logits, tokens, q, position, valid):
        p = self.warp(logits)
        block = self._at(position, p.shape[0])  # [K+1, PURPOSES]
        accept = 1 - block[:-1, ACCEPT]  # in (0, 1]
        return reject(p, q, tokens, accept, block[:, RESIDUAL], valid)


class Matching(Rejection):
    """Sampling where the draft's tokens are compared with the target's own sample.

    The target draws as it does without a draft, with the same uniforms: so the output equals the
    baseline's at the same seed. It asks for no q, and so serves a drafter that has none.
    """

    asks_for_q = False
    draft_is_likeliest = True

    def propose(self, logits, position):
        return logits.argmax(-1), None

    def verify(self, logits, tokens, q, position, valid):
        noise = self._at(position, logits.shape[0])[:, RESIDUAL]  # [K+1]
        return match(invert(self.warp(logits), noise), tokens, valid)


class Coupled(Sampler):
    """Sampling where draft and target use the same Gumbel noise at a position.

    Each takes the token of largest log-probability plus noise, which is a sample of its
    distribution (Gumbel 1954; Maddison et al. 2014, *A* Sampling*), and where their distributions
    are alike they mostly take the same. The output equals the baseline's at the same seed.
    `noise` is the key `[2]` that the Gumbel noise is a hash of.
    """

    def draw(self, logits, position):
        return self._choose(logits.unsqueeze(0), position).squeeze(0)

    def propose(self, logits, position):
        return self.draw(logits, position), None

    def verify(self, logits, tokens, q, position, valid):
        return match(self._choose(logits, position), tokens, valid)

    def _choose(self, logits: torch.Tensor, position) -> torch.Tensor:
        """The tokens `[n]` of `n` places from `position` on, from their logits `[n, V]`."""
        places = position + torch.arange(logits.shape[0], device=logits.device)
        noise = gumbel(self.noise, places, logits.shape[-1])
        return (self.warp(logits).double().log() + noise).argmax(-1)


#: How tokens are chosen above temperature 0, by name.
METHODS = {"rejection": Rejection, "matching": Matching, "coupled": Coupled}


def choose_sampling(warp: Warp, method: str, forced: bool = False) -> Sampling:
    """The way of sampling that a warp and a method of `METHODS` ask for.

    At temperature 0 all methods are the same. `forced` is synthetic acceptance.
    """
    if forced:
        if warp.temperature != 0:
            raise SpecdecError("synthetic acceptance goes with temperature 0; nothing is sampled")
        return Sampling(Forced)
    if warp.temperature == 0:
        return Sampling(Greedy)
    return Sampling(METHODS[method], warp.top_k, warp.top_p)


def make_noise(
    sampling: Sampling,
    key: int,
    positions: int,
    device,
    synthetic_acceptance: float | None = None,
) -> torch.Tensor:
    """The noise that a request's sampler decides by; `positions` of the output may be looked at."""
    if sampling.kind is Greedy:
        return torch.zeros(2, dtype=torch.bool, device=device)  # never looked at
    if sampling.kind is Coupled:
        return key_words(key, device)
    table = uniform_table(key, positions, device)
    if sampling.kind is Forced:
        return table[:, ACCEPT] < synthetic_acceptance
    return table
