"""The rows of a benchmark's table, and what is compared across them."""

from __future__ import annotations

from typing import Any

from specdec.benchmark import table
from specdec.benchmark.arms import Arm, Run, arm_name
from specdec.benchmark.settings import Settings


def make_rows(
    own: list[Arm],
    others: list[Arm],
    runs: dict[str, list[Run]],
    allowed_ms: dict[int, float],
    settings: Settings,
    read_to_copy: float = 1.0,
) -> list[dict[str, Any]]:
    """Ours, then others', each of which is compared with ours of the same K.

    `allowed_ms`: the milliseconds that the bandwidth of a copy allows a round of K, or a step (0);
    `read_to_copy`: that of a read ÷ that of a copy.
    """
    alone = runs[arm_name(0)]
    rows = []
    for arm in [*own, *others]:
        row = {"arm": arm.name, "K": arm.K, "acceptance": "measured"}
        rows.append(row | table.speeds(runs[arm.name], alone, allowed_ms[arm.K], read_to_copy))
        if arm.K:
            rows[-1] |= table.acceptances(arm.K, runs[arm.name])
    for row, arm in zip(rows, own, strict=False):
        if arm.K:
            row |= {"acceptance": settings.acceptance}
            row |= table.parts(arm.K, row["tau"]["value"], runs[arm.name], alone)
    for row, arm in zip(rows[len(own) :], others, strict=True):
        row |= _comparison(runs[arm_name(arm.K)], runs[arm.name], settings)
        if arm.K and settings.synthetic_acceptance is not None:
            # Its own acceptance is no match for a forced one: only the time of a round compares.
            for name in table.BY_ACCEPTANCE:
                del row[name]
    return rows


def _comparison(ours: list[Run], theirs: list[Run], settings: Settings) -> dict[str, Any]:
    both = table.amounts(ours), table.amounts(theirs)
    if settings.synthetic_acceptance is not None:
        return {"ours_to_theirs": table.estimate(table.speedup_of_rounds, *both)}
    return {
        "ours_to_theirs": table.estimate(table.speedup, *both),
        "ours_to_theirs_with_prefill": table.estimate(table.speedup_with_prefill, *both),
    }


def against(
    own: list[Arm], theirs: list[Arm], runs: dict[str, list[Run]], settings: Settings
) -> dict[str, Any]:
    """What is compared with a peer: its geometric mean over the K that both ran, and the fastest.

    `best_to_best` is None where acceptance is forced: the fastest arm depends on it.
    """
    forced = settings.synthetic_acceptance is not None
    comparison = table.speedup_of_rounds if forced else table.speedup
    drafted = [arm for arm in theirs if arm.K]
    both = [
        [table.amounts(runs[name]) for name in names]
        for names in ([arm_name(arm.K) for arm in drafted], [arm.name for arm in drafted])
    ]
    return {
        "of": "rounds/s" if forced else "tokens/s",
        "K": [arm.K for arm in drafted],
        "geometric_mean": table.geometric_mean(comparison, *both) if drafted else None,
        "best_to_best": None if forced else _best_to_best(own, theirs, runs),
    }


def _best_to_best(own: list[Arm], theirs: list[Arm], runs: dict[str, list[Run]]) -> dict[str, Any]:
    ours, other = (max(arms, key=lambda arm: _speed(runs[arm.name])) for arms in (own, theirs))
    both = table.amounts(runs[ours.name]), table.amounts(runs[other.name])
    return {"ours": ours.name, "theirs": other.name, "ratio": table.estimate(table.speedup, *both)}


def _speed(runs: list[Run]) -> float:
    return sum(run.amounts["steps"] for run in runs) / sum(run.amounts["decode_s"] for run in runs)


def instrumentation(settings: Settings, runs: dict[str, list[Run]]) -> dict[str, table.Estimate]:
    """For each K: S with the phases timed ÷ S without."""

    def ratio(*arms: table.Totals):
        timed_S, bare_S = table.speedup(*arms[:2]), table.speedup(*arms[2:])
        return timed_S / bare_S

    found = {}
    for K in settings.k:
        timed_names = [arm_name(K), arm_name(0)]
        names = timed_names + [arm_name(of, timed_phases=False) for of in (K, 0)]
        found[arm_name(K)] = table.estimate(ratio, *(table.amounts(runs[name]) for name in names))
    return found
