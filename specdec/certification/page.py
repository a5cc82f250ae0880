"""A certificate as a page of Markdown."""

from __future__ import annotations

import json


def format_page(certificate: dict) -> str:
    """The page of what `examine` returns."""
    provenance = certificate["provenance"]
    entry, environment = provenance["pair_entry"], provenance["environment"]
    sides = [f"{entry[side]['model']} ({entry[side]['dtype']})" for side in ("draft", "target")]
    sections = [
        f"# Certificate of {certificate['pair']}: {_verdict(certificate)}",
        f"{sides[0]} → {sides[1]}, on {environment['device']}, "
        f"specdec {environment['specdec']}, code {provenance['code_digest']}.",
        _engine(provenance),
        *_exceptions(provenance),
        _greedy(certificate["greedy"], provenance["prompts"]),
        _sampling(certificate["sampling"]),
        _rule(certificate["rule"]),
        f"## What was run\n\n```json\n{json.dumps(provenance, indent=2, ensure_ascii=False)}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _verdict(part: dict) -> str:
    return "**DEFECT**" if part["verdict"] == "defect" else "pass"


def _engine(provenance: dict) -> str:
    text = f"Engine: {provenance['engine']} (asked for: {provenance['engine_requested']})"
    reason = provenance["engine_reason"]
    return f"{text}; {reason}." if reason else f"{text}."


def _exceptions(provenance: dict) -> list[str]:
    """What this certificate doesn't speak of, a paragraph each."""
    paragraphs = [
        f"Left out, {reason}." for reason in provenance["prompts"].get("left_out", {}).values()
    ]
    if provenance["ignored_settings"]:
        paragraphs.append(
            "The target's generation config also asks for "
            f"{', '.join(provenance['ignored_settings'])}: none of it is done here, alone or in a "
            "pair, so this is about the model's own distribution, not that of `model.generate()`."
        )
    return paragraphs


def _greedy(part: dict, prompts: dict) -> str:
    lines = [
        f"## Greedy output: {_verdict(part)}",
        "",
        f"{part['agreeing']} of {part['prompts']} prompts ({prompts['source']}) agree with the "
        f"target alone, eager, token for token, over {part['max_new_tokens']} tokens, at every K.",
        *_bitwise(part),
        "",
        "| K | engine | prompts that agree | largest difference of a logit, K + 1 rows as decoded "
        "against 1 row, eager |",
        "|---|---|---|---|",
    ]
    for k, agreeing in part["agreeing_by_draft_tokens"].items():
        engine, moved = part["engine_by_draft_tokens"][k], part["largest_logit_difference"][k]
        lines.append(f"| {k} | {engine} | {agreeing} of {part['prompts']} | {moved:.2e} |")
    if part["beyond_rounding"]:
        lines += [
            "",
            f"At K = {part['beyond_rounding']} that is more than rounding does: a defect.",
        ]
    if part["divergences"]:
        lines += [
            "",
            "Where outputs part (the target's token and logit first). It is a near tie where the "
            "gap is at most twice the difference above: each of the two logits moves by as much.",
            "",
            "| prompt | K | position | tokens | logits | gap | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_divergence(divergence) for divergence in part["divergences"]]
    return "\n".join(lines)


def _bitwise(part: dict) -> list[str]:
    if not part["bitwise"]:
        return []
    return ["", "Bitwise: at every K it is the output of the compiled target alone, no near tie."]


def _divergence(parting: dict) -> str:
    tokens = [
        "end of output" if token is None else f"{token} `{json.dumps(text, ensure_ascii=False)}`"
        for token, text in zip(parting["tokens"], parting["texts"], strict=True)
    ]
    tokens = ", ".join(tokens).replace("|", "\\|")
    if parting["gap"] is None:
        logits, gap = "", ""
    else:
        logits, gap = "{:.6f}, {:.6f}".format(*parting["logits"]), f"{parting['gap']:.2e}"
    place = f"{parting['prompt_id']} | {parting['draft_tokens']} | {parting['position']}"
    return f"| {place} | {tokens} | {logits} | {gap} | {parting['verdict']} |"


def _sampling(part: dict) -> str:
    lines = [
        f"## Sampled output: {_verdict(part)}",
        "",
        f"{part['draws']} draws of {part['tokens']} tokens, on {part['contexts']} contexts (the "
        f"last of one token) and at {len(part['settings'])} settings, counted in "
        f"{part['cells']} cells of equal probability: "
        f"p = {part['p_value']:.3g} over all tests (a defect below {part['significance']:g}). A "
        f"total variation of {part['detectable_total_variation']:.3f} over the cells would have "
        f"been caught with {part['power']:.0%} power at each setting.",
    ]
    if part["draft_total_variation"] is not None:
        lines += [
            "",
            f"The draft is at {part['draft_total_variation']:.3f} from its target, token for token "
            "(total variation, on average): that much is at stake where it is followed wrongly.",
        ]
    lines += [
        "",
        "| K | temperature | top-k | top-p | test: the joint distribution, or one mistake | χ² "
        "| degrees | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {test['draft_tokens']} | {test['temperature']:g} | {test['top_k']} "
        f"| {test['top_p']:g} | {test['test']} | {_statistic(test)} | {test['p_value']:.3g} |"
        for test in part["tests"]
    ]
    return "\n".join(lines)


def _statistic(test: dict) -> str:
    """χ² and its degrees of freedom; where there are none, a count."""
    if test["degrees"] is None:
        return f"{test['statistic']:.0f} words | "
    return f"{test['statistic']:.1f} | {test['degrees']}"


def _rule(part: dict) -> str:
    error = part["worst_error"]
    found = "a draft token decided wrongly" if error is None else f"largest error {error:.1e}"
    return (
        f"## Acceptance rule: {_verdict(part)}\n\n"
        f"{part['cases']} pairs of toy distributions, every draft and every accept pattern: "
        f"{found} (at most {part['tolerance']:g})."
    )
