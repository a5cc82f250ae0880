"""A plan as text for people."""

from __future__ import annotations

from typing import Any

from specdec.utils.table import aligned


def format_card(card: dict[str, Any]) -> str:
    """Machine, models and memory, in some ten lines."""
    threads = f", {card['threads']} threads" if card["threads"] > 1 else ", 1 thread"
    device = card["device"] + (threads if card["device_type"] == "cpu" else "")
    fit = "both at once" if card["both_fit"] else "one after the other"
    sides = [card["draft"], card["target"]]
    lines = {
        "model": [side["model"] for side in sides],
        "dtype": [side["dtype"] for side in sides],
        "parameters": [f"{side['parameters'] / 1e6:.1f} M" for side in sides],
        "weights": [f"{side['weights_gb']:.3f} GB" for side in sides],
        "cache, 1000 tokens": [f"{side['cache_gb_per_1000_tokens']:.3f} GB" for side in sides],
    }
    width = max(len(draft) for draft, _ in lines.values())
    return "\n".join(
        [
            f"plan for {card['pair']}: random weights of its sizes, {card['engine']}, "
            f"{card['context']} tokens in the cache",
            f"  device              {device}; torch {card['torch']}",
            f"  {'':18}  {'draft':{width}}  target",
            *(f"  {name:18}  {d:{width}}  {t}" for name, (d, t) in lines.items()),
            f"  memory              {card['needed_gb']:.2f} GB for both, a tenth on top of the "
            f"weights; {card['free_gb']:.1f} GB free: {fit}",
            *(
                f"  slow here           {dtype}: products take up to {times:.0f} times as long as "
                "in float32; --dtype-override float32 is quicker to plan with"
                for dtype, times in card["slow_dtypes"].items()
            ),
        ]
    )


def format_table(plan: dict[str, Any]) -> str:
    """A row for each K, and the best K of each α."""
    alphas = list(plan["rows"][0]["S"])
    head = ["K", "c", "v(K)", "h", "break-even α", *(f"S at α={alpha}" for alpha in alphas)]
    rows = [head, *(_cells(row) for row in plan["rows"])]
    best = [f"{alpha}: {k or 'target alone'}" for alpha, k in plan["best_K"].items()]
    once = plan["rows"][0]["c"]["low"] is None
    return "\n".join(
        [
            f"one step: draft {plan['draft_step_ms']:.2f} ms, target {plan['target_step_ms']:.2f} "
            f"ms; h₀ {_number(plan['h0'])}; h and h₀ of {plan['overhead_of']}",
            *(["each pass was timed once, so c and v have no interval"] if once else []),
            "",
            aligned(rows, words=0),
            "",
            f"best K by α: {', '.join(best)}",
        ]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    even = row["break_even_alpha"]
    return [
        str(row["K"]),
        *(_number(row[name]) for name in ("c", "v", "h")),
        "never" if even is None else f"{even:.2f}",
        *(f"{value:.2f}" for value in row["S"].values()),
    ]


def _number(estimate: dict[str, float | None]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
