"""A benchmark's results as lines for people; the card is `specdec.benchmark.card`'s own."""

from __future__ import annotations

import json
import math
from typing import Any

from specdec.benchmark.arms import arm_name
from specdec.benchmark.card import format_gpu
from specdec.benchmark.settings import PEERS
from specdec.utils.table import aligned

TOLERANCE = 0.02  # how much timing the phases may change S

#: Heading, key of the row, factor, decimals.
COLUMNS = [
    ("tokens/s", "tokens_per_s", 1, 1),
    ("first ms", "first_token_ms", 1, 0),
    ("ms/round", "ms_per_round", 1, 2),
    ("% of copy", "share_of_bandwidth", 100, 1),
    ("% of read", "share_of_read", 100, 1),
    ("S", "S", 1, 2),
    ("τ", "tau", 1, 2),
    ("α", "alpha", 1, 2),
    ("c", "c", 1, 3),
    ("v", "v", 1, 2),
    ("h", "h", 1, 3),
    ("ours ÷ theirs", "ours_to_theirs", 1, 2),
]
FORCED = ("S", "τ", "α")


def format_preparation(preparation: dict[str, Any]) -> str:
    compiled = ", ".join(
        f"{arm} {seconds:.1f} s" for arm, seconds in preparation["compilation_s"].items()
    )
    return (
        f"warm-up     {preparation['warm_up_s']:.1f} s, not timed below; "
        f"of which compiling or capturing: {compiled}"
    )


def format_table(document: dict[str, Any]) -> str:
    """A row an arm, and under each figure its 95 % interval."""
    acceptance = document["card"]["acceptance"]
    forced = acceptance != "measured"
    headings = [
        f"{heading} [{acceptance}]" if forced and heading in FORCED else heading
        for heading, *_ in COLUMNS
    ]
    lines = [["", *headings, "peak MiB"]]
    for row in document["rows"]:
        if "not_run" not in row:
            estimates = [(row.get(key), factor, places) for _, key, factor, places in COLUMNS]
            memory = f"{row['peak_memory_mib']:.0f}"
            lines.append([row["arm"], *(_value(*estimate) for estimate in estimates), memory])
            lines.append(["", *(_interval(*estimate) for estimate in estimates), ""])
    title = (
        "95 % intervals over prompts in brackets; S against the baseline; phases without prefill; "
        "first ms: until the first token"
    )
    if forced:
        title = f"SYNTHETIC ACCEPTANCE {acceptance.split()[1]}: S, τ and α are forced, not measured"
    for found in _comparisons(document).values():
        title += f"; ours ÷ theirs: of {found['of']}"
        break
    text = ["", title, aligned(lines)]
    text += [
        f"{row['arm']}: not run: {row['not_run']}" for row in document["rows"] if "not_run" in row
    ]
    return "\n".join(text)


def format_findings(document: dict[str, Any]) -> str:
    """What the table doesn't hold: comparisons, the verdict, and last the breakdown of S."""
    lines = [""]
    for peer, found in _comparisons(document).items():
        if found["K"]:
            ks = ", ".join(map(str, found["K"]))
            lines.append(
                f"{found['of']} ÷ those of {peer} with the same draft, geometric mean over "
                f"K = {ks}: {_with_interval(found['geometric_mean'])}"
            )
        if best := found["best_to_best"]:
            lines.append(
                f"our fastest ('{best['ours']}') ÷ that of {peer} ('{best['theirs']}'): "
                f"{_with_interval(best['ratio'])}"
            )
    if document["differences"] is not None:
        lines += _format_differences(document["differences"], document["card"]["prompts"])
    for arm, estimate in (document["instrumentation"] or {}).items():
        off = abs(estimate["value"] - 1)
        verdict = "within" if off < TOLERANCE else "NOT within"
        lines.append(
            f"instrumentation, {arm}: S timed ÷ S bare = {_value(estimate, 1, 3)} "
            f"{_interval(estimate, 1, 3)}, {verdict} {TOLERANCE:.0%}"
        )
    if state := document["gpu_after"]:
        lines.append(f"gpu while the runs were timed, medians: {format_gpu(state)}")
    lines.append(format_verdict(document))
    for row in document["rows"]:
        if "S_parts" in row:
            lines.append(_breakdown(row))
    return "\n".join(lines)


def format_verdict(document: dict[str, Any]) -> str:
    """Whether the draft pays, at the K that is fastest."""
    drafted = [row for row in document["rows"] if row.get("S") and row["arm"] == arm_name(row["K"])]
    best = max((row for row in drafted if row["K"]), key=lambda row: row["S"]["value"])
    S, acceptance = best["S"], document["card"]["acceptance"]
    if S["low"] > 1:
        found = "the draft pays"
    elif S["high"] < 1:
        found = "the draft does not pay"
    else:
        found = "undecided whether the draft pays; more --prompts would tell"
    forced = "" if acceptance == "measured" else f" [{acceptance} acceptance]"
    return f"verdict: {found}: S = {_with_interval(S)} at the best K, {best['K']}{forced}"


def _comparisons(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was compared with each peer that ran."""
    found = {peer: document[f"against_{peer.replace('.', '_')}"] for peer in PEERS}
    return {peer: comparison for peer, comparison in found.items() if comparison}


def _with_interval(estimate: dict[str, float]) -> str:
    return f"{_value(estimate, 1, 2)} {_interval(estimate, 1, 2)}".rstrip()


def _format_differences(differences: dict[str, dict[str, int]], prompts: int) -> list[str]:
    lines = []
    for arm, places in differences.items():
        if places:
            where = "; ".join(f"{prompt} from token {place}" for prompt, place in places.items())
            lines.append(f"output of {arm} differs on {len(places)} of {prompts} prompts: {where}")
    equal = ", ".join(f"'{arm}'" for arm, places in differences.items() if not places)
    if equal:
        lines.append(f"output equal to the baseline's, token for token: {equal}")
    return lines


def format_json(document: dict[str, Any]) -> str:
    """One line of JSON; what is not a number is null."""
    return json.dumps(_without_nan(document), ensure_ascii=False, allow_nan=False)


def _breakdown(row: dict[str, Any]) -> str:
    tau, c, v, h, h0 = (row[name]["value"] for name in ("tau", "c", "v", "h", "h0"))
    forced = "" if row["acceptance"] == "measured" else f" [{row['acceptance']} acceptance]"
    return (
        f"{row['arm']}: S = τ(1 + h₀)/(K·c + v + h) = {tau:.2f} × {1 + h0:.3f} / "
        f"({row['K']} × {c:.3f} + {v:.2f} + {h:.3f}) = {row['S_parts']:.2f}{forced}"
    )


def _value(estimate: dict[str, float] | None, factor: float, places: int) -> str:
    if estimate is None or math.isnan(estimate["value"]):
        return "–"
    return f"{estimate['value'] * factor:.{places}f}"


def _interval(estimate: dict[str, float] | None, factor: float, places: int) -> str:
    if estimate is None or math.isnan(estimate["low"]):
        return ""
    return f"[{estimate['low'] * factor:.{places}f}, {estimate['high'] * factor:.{places}f}]"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
