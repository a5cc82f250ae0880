"""How often the intervals of the tables hold the truth, in studies whose truth is known.

    python benchmarks/coverage.py

Prints the Markdown table of docs/statistics.md: for each figure, kind of prompts and number of
prompts n, the share of simulated cells whose 95 % interval holds the true value. Nothing is timed,
so the machine may be busy. `--cells` sets how many cells are simulated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import numpy as np

from specdec.analysis import cells
from specdec.analysis.statistics import (
    LEVEL,
    acceptance_interval,
    distribution,
    jackknife_interval,
    proportion_interval,
    quantile_interval,
    ratio,
)
from specdec.utils.errors import cli

PROMPTS = [3, 5, 10, 50]
AMOUNTS = [*cells.AMOUNTS, "accepted", "proposed"]
MANY = 40_000  # prompts that the truth is taken from
STEP_MS = 10.0
CANDIDATES = 4  # K to choose the best from
DRAWS = 1000  # of the bootstrap that resamples the choice


@dataclass(frozen=True)
class Prompts:
    """A kind of prompts: what differs from one to the next."""

    K: int = 4
    alpha: float = 0.75
    alpha_spread: float = 0.1  # standard deviation over prompts
    length: float = 47.0  # tokens after the first, median
    length_spread: float = 0.0  # of its logarithm
    growth: float = 0.0  # of α with the logarithm of the length
    noise: float = 0.05  # of a generation's time, relative
    heavy: bool = False  # noise of three degrees of freedom rather than normal


KINDS = {
    "fixed lengths": Prompts(),
    "lognormal lengths": Prompts(length_spread=0.7),
    "S grows with length": Prompts(length_spread=0.7, growth=0.08),
    "heavy tails": Prompts(length_spread=0.5, noise=0.12, heavy=True),
}
COSTS = {"c": 0.1, "v": 1.3, "h": 0.05, "h0": 0.02}


def simulate(
    kind: Prompts, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """AMOUNTS of both arms, `own x` and `baseline x` (`shape` each), and the tokens that each round
    accepted, −1 behind the last (`[*shape, rounds]`)."""
    spread = rng.standard_normal(shape)
    lengths = np.round(kind.length * np.exp(kind.length_spread * spread)).clip(2, 5 * kind.length)
    alpha = kind.alpha + kind.alpha_spread * rng.standard_normal(shape)
    alpha = (alpha + kind.growth * np.log(lengths / kind.length)).clip(0, 1)
    rounds = int(lengths.max())
    with np.errstate(divide="ignore"):
        # How many draft tokens are accepted in a row: geometric, by the inverse of its tail.
        runs = np.log(1 - rng.random((*shape, rounds))) / np.log(alpha[..., None])
    accepted = np.where(alpha[..., None] == 1, kind.K, np.nan_to_num(runs)).clip(0, kind.K)
    accepted = accepted.astype(int)
    before = np.cumsum(accepted + 1, axis=-1) - (accepted + 1)
    left = lengths[..., None].astype(int) - before
    accepted = np.where(left > 0, np.minimum(accepted, left), -1)
    is_round = accepted >= 0
    speed = STEP_MS * np.exp(0.2 * rng.standard_normal(shape))  # of the machine: both arms' own

    def noise() -> np.ndarray:
        draws = rng.standard_t(3, shape) if kind.heavy else rng.standard_normal(shape)
        return np.exp(kind.noise * draws.clip(-12, 12))

    count = is_round.sum(axis=-1)
    draft, verify, rest = (
        count * speed * cost * noise() for cost in (kind.K * COSTS["c"], COSTS["v"], COSTS["h"])
    )
    alone = lengths * speed * noise()
    all_alone = alone + COSTS["h0"] * lengths * speed * noise()
    first = 4 * speed  # ms of the prefill
    amounts = {
        "own steps": lengths,
        "own decode_s": (draft + verify + rest) / 1e3,
        "own num_tokens": lengths + 1,
        "own total_s": (first + draft + verify + rest) / 1e3,
        "own rounds": count,
        "own draft_ms": draft,
        "own verify_ms": verify,
        "own accepted": np.where(is_round, accepted, 0).sum(axis=-1),
        "own proposed": np.where(is_round, np.minimum(left, kind.K), 0).sum(axis=-1),
        "baseline steps": lengths,
        "baseline decode_s": all_alone / 1e3,
        "baseline num_tokens": lengths + 1,
        "baseline total_s": (first + all_alone) / 1e3,
        "baseline verify_ms": alone,
    }
    return amounts, accepted


def arms_of(totals: dict[str, np.ndarray]) -> tuple[cells.Totals, cells.Totals]:
    return tuple(
        {name.partition(" ")[2]: x for name, x in totals.items() if name.startswith(arm)}
        for arm in ("own", "baseline")
    )


#: Figures of totals: how each is made of those of both arms, and whether by its logarithm.
OF_TOTALS: dict[str, tuple[Callable, bool]] = {
    "S": (cells.speedup, True),
    "S with prefill": (cells.speedup_end_to_end, True),
    "τ": (lambda own, _: cells.tokens_per_round(own), True),
    "tokens/s": (lambda own, _: cells.tokens_per_s(own), True),
    **{
        name: (
            lambda *arms, name=name, K=Prompts.K: cells.costs(K, *arms)[name],
            name in ("c", "v"),
        )
        for name in ("c", "v", "h", "h0")
    },
}


def of_totals(figure: str, amounts: dict[str, np.ndarray], level: float = LEVEL):
    """A figure's value and the ends of its interval, over the last axis of the amounts."""
    statistic, log = OF_TOTALS[figure]
    names = list(amounts)

    def of(totals):
        return statistic(*arms_of(dict(zip(names, totals, strict=True))))

    stacked = np.stack(list(amounts.values()), axis=-1)
    value = of(np.moveaxis(stacked.sum(axis=-2), -1, 0))
    return value, *jackknife_interval(stacked, of, log=log, level=level)


def alpha_of(amounts: dict[str, np.ndarray], K: int):
    accepted, proposed = amounts["own accepted"], amounts["own proposed"]
    value = ratio(accepted.sum(axis=-1), proposed.sum(axis=-1))
    return value, *acceptance_interval(accepted, proposed, K)


def alpha_i_of(accepted: np.ndarray, position: int):
    """α_i of `position`, over the last axis but one."""
    reached = (accepted >= position - 1).sum(axis=-1)
    kept = (accepted >= position).sum(axis=-1)
    return ratio(kept.sum(axis=-1), reached.sum(axis=-1)), *proportion_interval(kept, reached)


@lru_cache(maxsize=len(PROMPTS) + 1)
def studies(kind: Prompts, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What `simulate` gives: always the same for the same arguments."""
    return simulate(kind, shape, np.random.default_rng(shape))


@cache
def truth(figure: str, kind: Prompts) -> float:
    """The figure of so many prompts that their number no longer matters."""
    return float(np.mean(figure_of(figure, kind, (MANY,))[0]))


def figure_of(figure: str, kind: Prompts, shape: tuple[int, ...]):
    """Value and ends of the interval of a figure, for each simulated cell."""
    amounts, accepted = studies(kind, shape)
    if figure == "α":
        return alpha_of(amounts, kind.K)
    if figure.startswith("α_"):
        return alpha_i_of(accepted, int(figure[2:]))
    return of_totals(figure, amounts)


def holds(ends: tuple, true: float) -> float:
    """The share of intervals that hold `true`; an end that is NaN doesn't bound."""
    low, high = (np.asarray(end) for end in ends)
    return float(np.mean((np.isnan(low) | (low <= true)) & (np.isnan(high) | (true <= high))))


def coverage(figure: str, kind: Prompts, n: int, count: int) -> float:
    """Of `count` simulated cells of n prompts, the share whose interval holds the truth."""
    _, *ends = figure_of(figure, kind, (count, n))
    return holds(ends, truth(figure, kind))


def waits(kind: Prompts, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Times between hand-overs (ms) of each prompt, and how many tokens each round accepted."""
    _, accepted = studies(kind, shape)
    rng = np.random.default_rng(shape)
    speed = STEP_MS * np.exp(0.2 * rng.standard_normal(shape))[..., None]
    return 1.75 * speed * np.exp(0.1 * rng.standard_normal(accepted.shape)), accepted


def coverage_of_waits(figure: str, kind: Prompts, n: int, count: int) -> float:
    """That of p50 or p95 of the time between hand-overs, or of the band around its distribution."""
    ms, accepted = waits(kind, (MANY,))
    share = 0.95 if "95" in figure else 0.5
    true = np.quantile(ms[accepted >= 0], share)
    held = []
    for ms, accepted in zip(*waits(kind, (count, n)), strict=True):
        prompts, _ = np.nonzero(accepted >= 0)
        values = ms[accepted >= 0]
        weights = np.ones(len(values))
        if figure.startswith("band"):
            _, *ends = distribution(values, weights, prompts, np.array([true]))
            held.append(holds(ends, share))
        else:
            held.append(holds(quantile_interval(values, weights, prompts, share), true))
    return float(np.mean(held))


def best_of_equal(n: int, count: int) -> dict[str, float]:
    """Four K that are equally good: how often the interval of the one that came out best holds.

    By the interval of a single cell, by that of `cells.best_of`, and by a bootstrap that makes the
    choice anew in each draw; and by how much the best one's S is too large.
    """
    kind = KINDS["lognormal lengths"]
    true = truth("S", kind)
    amounts, _ = studies(kind, (count, CANDIDATES, n))
    S, low, high = of_totals("S", amounts)
    best = S.argmax(axis=1)[:, None]
    chosen = np.take_along_axis(S, best, 1)
    ends = {"single": (low, high)}
    ends["chosen"] = of_totals("S", amounts, LEVEL ** (1 / CANDIDATES))[1:]
    found = {
        name: holds(tuple(np.take_along_axis(end, best, 1) for end in pair), true)
        for name, pair in ends.items()
    }
    drawn = (
        np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), DRAWS).T.astype(float)
    )  # [prompts, draws]
    parts = arms_of({name: x @ drawn for name, x in amounts.items()})
    resampled = cells.speedup(*parts).max(axis=1)  # [cells, draws]
    ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return found | {
        "resampled": holds(tuple(ends), true),
        "bias": float(np.median(chosen) / true - 1),
    }


def rows(count: int) -> Iterator[list[str]]:
    """The lines of the table: kind of prompts, figure, coverage for each n."""
    for name, kind in KINDS.items():
        for figure in [*OF_TOTALS, "α", "α_1", "α_2", "α_4"]:
            yield _row(name, figure, (coverage(figure, kind, n, count) for n in PROMPTS))
    for name in ("fixed lengths", "lognormal lengths"):
        for figure in ("p50", "p95", "band at p50", "band at p95"):
            held = partial(coverage_of_waits, figure, KINDS[name], count=min(count, 500))
            yield _row(name, figure, map(held, PROMPTS))
    for K in (1, 4, 8):
        for alpha in (0.3, 0.6, 0.8, 0.95, 0.99, 1.0):
            kind = acceptance(alpha, K)
            held = (coverage("α", kind, n, count) for n in PROMPTS)
            yield _row(f"a draft token's chance {alpha:g}, K = {K}", "α", held)
    best = [best_of_equal(n, min(count, 1000)) for n in PROMPTS]
    for told, name in (
        ("the best of 4 equal K, as if it were the only one", "single"),
        ("the best of 4 equal K, level 0.95^(1/4): the tables'", "chosen"),
        ("the best of 4 equal K, choice resampled by a bootstrap", "resampled"),
    ):
        yield _row(told, "S", (found[name] for found in best))
    yield _row(
        "the best of 4 equal K: by how much its S is too large", "S", (f["bias"] for f in best)
    )


def acceptance(alpha: float, K: int) -> Prompts:
    """Texts of all lengths whose draft tokens are accepted with about this chance."""
    spread = min(0.1, (1 - alpha) / 2)
    return Prompts(K=K, alpha=alpha, alpha_spread=spread, length_spread=0.7)


def _row(kind: str, figure: str, shares: Iterable[float]) -> list[str]:
    return [kind, figure, *(f"{share:.3f}" for share in shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2000, help="to simulate, for each number")
    arguments = parser.parse_args()
    print("| prompts | figure | " + " | ".join(f"n = {n}" for n in PROMPTS) + " |")
    print("|" + "---|" * (2 + len(PROMPTS)))
    for row in rows(arguments.cells):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    cli(main)
