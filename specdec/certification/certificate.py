"""A certificate: what was examined of a pair, what came out, and on what machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from specdec.certification.greedy import DRAFT_TOKENS, NEW_TOKENS, check_greedy
from specdec.certification.prompts import load_prompts
from specdec.certification.rule import check_rule
from specdec.certification.sampling import DRAFT_TOKENS as SAMPLED_DRAFT_TOKENS
from specdec.certification.sampling import TEMPERATURES, check_sampling
from specdec.decoding.loaded_pair import Encoded, load_pair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.utils.logging import get_logger
from specdec.utils.reproducibility import capture_environment, code_digest

log = get_logger(__name__)

CONTEXTS = 4  # prompts that are continued by sampling: the shortest


def examine(
    name: str,
    registry: str | None = None,
    prompt_file: Path | None = None,
    field: str = "text",
    device: str = "auto",
    engine: str = "auto",
) -> dict:
    """The certificate of a pair of the registry, as an engine decodes it.

    `prompt_file` and `field` are as in `load_prompts`.
    """
    pair = load_pair(name, registry, device)
    limits = pair.limits(NEW_TOKENS + max(DRAFT_TOKENS))
    prompts, described = load_prompts(prompt_file, field, limits)

    log.info("the acceptance rule, enumerated …")
    rule = check_rule()
    log.info("greedy output on %d prompts …", len(prompts))
    greedy = check_greedy(pair, prompts, engine)
    log.info("the joint distribution of sampled output …")
    decoder = pair.decoder(SAMPLED_DRAFT_TOKENS, engine)
    for temperature in TEMPERATURES:
        decoder.prepare(temperature)
    shortest = sorted(prompts, key=lambda prompt: prompt.token_count)[:CONTEXTS]
    contexts = [pair.encode(prompt.text) for prompt in shortest]
    sampling = check_sampling(decoder, contexts)
    sampling["prompt_ids"] = [prompt.prompt_id for prompt in shortest]

    parts = (greedy, sampling, rule)
    return {
        "pair": name,
        "verdict": "pass" if all(part["verdict"] == "pass" for part in parts) else "defect",
        "greedy": greedy,
        "sampling": sampling,
        "rule": rule,
        "provenance": {
            "pair_entry": asdict(pair.entry),
            "prompts": described,
            "engine_requested": engine,
            **_path_taken(decoder, contexts[0]),
            "code_digest": code_digest(__name__),
            "environment": capture_environment(pair.target.device),
        },
    }


def _path_taken(decoder: SpeculativeDecoder, context: Encoded) -> dict:
    """How the pair decodes, as its results say: its drafter, its vocabularies, its engine."""
    result = decoder.generate(max_new_tokens=2, temperature=1.0, seed=0, **context._asdict())
    names = ("drafter", "vocabulary_match", "engine", "engine_reason")
    return {name: getattr(result, name) for name in names}
