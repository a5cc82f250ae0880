"""The prompts that a pair is examined on: built-in ones, or those of a file."""

from __future__ import annotations

import json
from pathlib import Path

from specdec.data.dataset import Prompt, PromptDataset
from specdec.data.prompts import Limit, build_dataset, digest, token_statistics
from specdec.data.sources import BUILTIN, BUILTIN_TEMPLATES, load_texts, parse_source
from specdec.utils.errors import SpecdecError, one_line
from specdec.utils.logging import get_logger

log = get_logger(__name__)

BUILTIN_PER_DOMAIN = 4
SEED = 42


def load_prompts(path: Path | None, field: str, limits: list[Limit]) -> tuple[list[Prompt], dict]:
    """The prompts that fit every limit, the target's first, and what a certificate says of them.

    `path` is a prompt file of the study, or JSON or JSON lines with a text in `field` of each
    record; None takes built-in prompts. Raises SpecdecError where nothing fits.
    """
    if path is None:
        return _builtin_prompts(limits)
    if _is_prompt_file(path):
        candidates = PromptDataset.load(path).prompts
    else:
        texts = load_texts(
            parse_source(path.stem, {"path": str(path), "field": field}), log.warning
        )
        candidates = [
            Prompt(f"{path.stem}_{i:03d}", path.stem, text.prompt, limits[0].length(text.prompt))
            for i, text in enumerate(texts.texts)
            if text.prompt.strip()
        ]
    different = {prompt.text: prompt for prompt in reversed(candidates)}  # the first of equal ones
    fitting = [p for p in candidates if different[p.text] is p and _fits(p, limits)]
    if not fitting:
        bounds = " and ".join(map(str, limits))
        raise SpecdecError(f"{path}: no prompt is within {bounds}; give shorter ones")
    return fitting, _describe(str(path), fitting, {"passed_over": len(candidates) - len(fitting)})


def _builtin_prompts(limits: list[Limit]) -> tuple[list[Prompt], dict]:
    """Those of the domains of which enough fit: a short context leaves room for short ones only."""
    prompts, left_out = [], {}
    for domain in BUILTIN_TEMPLATES:
        source = load_texts(parse_source(domain, BUILTIN), log.warning)
        try:
            prompts += build_dataset({domain: source}, BUILTIN_PER_DOMAIN, SEED, limits).prompts
        except SpecdecError as error:
            left_out[domain] = one_line(error)
            log.warning("left out: %s", left_out[domain])
    if not prompts:
        raise SpecdecError(
            f"built-in prompts: {'; '.join(left_out.values())}: give short ones with --prompts"
        )
    return prompts, _describe(BUILTIN, prompts, {"passed_over": 0, "left_out": left_out})


def _describe(source: str, prompts: list[Prompt], choice: dict) -> dict:
    return {
        "source": source,
        "digest": digest(prompts),
        "domains": list(dict.fromkeys(prompt.domain for prompt in prompts)),
        **choice,
        "tokens": token_statistics(prompts),
    }


def _fits(prompt: Prompt, limits: list[Limit]) -> bool:
    return all(
        limit.max_tokens is None or limit.length(prompt.text) <= limit.max_tokens
        for limit in limits
    )


def _is_prompt_file(path: Path) -> bool:
    """Whether a file is what `PromptDataset.save` writes; one that can't be read is not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "prompts" in content
