"""The rows of a benchmark's table, and what is compared across them."""

from __future__ import annotations

from typing import Any

from specdec.benchmark import table, transformers_arm
from specdec.benchmark.arms import Arm, Run, arm_name
from specdec.benchmark.settings import Settings


def make_rows(
    own: list[Arm],
    others: list[Arm],
    runs: dict[str, list[Run]],
    allowed_ms: dict[int, float],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Ours, then transformers', each of which is compared with ours of the same K.

    `allowed_ms`: the milliseconds that the bandwidth allows a round of K, or a step (0).
    """
    alone = runs[arm_name(0)]
    rows = []
    for arm in [*own, *others]:
        row = {"arm": arm.name, "K": arm.K, "acceptance": "measured"}
        rows.append(row | table.speeds(runs[arm.name], alone, allowed_ms[arm.K]))
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


def against_transformers(settings: Settings, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """What is compared, and its geometric mean over the K that transformers ran."""
    forced = settings.synthetic_acceptance is not None
    comparison = table.speedup_of_rounds if forced else table.speedup
    ks = [K for K in settings.k if transformers_arm.arm_name(K) in runs]
    ours = [table.amounts(runs[arm_name(K)]) for K in ks]
    theirs = [table.amounts(runs[transformers_arm.arm_name(K)]) for K in ks]
    return {
        "of": "rounds/s" if forced else "tokens/s",
        "K": ks,
        "geometric_mean": table.geometric_mean(comparison, ours, theirs) if ks else None,
    }


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
