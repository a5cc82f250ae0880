"""A prediction as text: every line says that it is one."""

from __future__ import annotations

from typing import Any

from specdec.planning.page import format_table
from specdec.utils.table import aligned


def format_prediction(plan: dict[str, Any]) -> str:
    """What `predict_on` gives, as lines for people."""
    fit = "both fit" if plan["both_fit"] else "they do not fit"
    lines = [
        f"{plan['pair']} on {plan['device']}, {plan['engine']}, {plan['context']} tokens in the "
        "cache; from published figures, nothing was measured",
        f"memory: {plan['needed_gb']:.1f} GB for both, a tenth on top of the weights, of "
        f"{plan['memory_gb']:.0f} GB: {fit}",
        *format_table(plan).splitlines(),
    ]
    if "acceptance" in plan:
        told = (f"K={k} {S:.2f}" for k, S in plan["S_at_acceptance"].items())
        lines.append(f"S at α={plan['acceptance']:.3f}: {', '.join(told)}")
    return _marked(lines)


def format_comparison(compared: dict[str, Any]) -> str:
    """What `compare_here` gives, with the error of the prediction."""
    rows = [["K", "", "predicted", "measured", "error"]]
    for row in compared["rows"]:
        name, ours, theirs = row["quantity"], row["predicted"], row["measured"]
        if name == "S":
            name = f"S at α={compared['acceptance']:g}"
        rows.append(
            [str(row["K"]), name, f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs - 1:+.1%}"]
        )
    return _marked(aligned(rows, words=0).splitlines())


def _marked(lines: list[str]) -> str:
    return "\n".join(f"predicted  {line}".rstrip() for line in lines)
