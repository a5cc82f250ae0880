"""A certificate: what was examined of a pair, what came out, and on what machine."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch

from specdec.certification.greedy import DRAFT_TOKENS, NEW_TOKENS, check_greedy
from specdec.certification.prompts import load_prompts
from specdec.certification.rule import check_rule
from specdec.certification.sampling import DRAFT_TOKENS as SAMPLED_DRAFT_TOKENS
from specdec.certification.sampling import SETTINGS, check_samples, compiled_beside, draw
from specdec.decoding.loaded_pair import Encoded, LoadedPair, load_pair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.utils.at_once import can_copy, do_all
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
    shortest = sorted(prompts, key=lambda prompt: prompt.token_count)[:CONTEXTS]
    contexts = [pair.encode(prompt.text) for prompt in shortest]
    contexts.append(_one_token(pair, contexts[0]))
    decoder_of = cache(partial(pair.decoder, engine=engine))
    log.info("greedy output on %d prompts; the distribution of sampled output …", len(prompts))
    with_copy = can_copy(pair.target.device.type, torch.get_num_threads())
    with compiled_beside(decoder_of):
        greedy, *samples = do_all(
            [
                partial(check_greedy, pair, prompts, engine),
                *(partial(draw, decoder_of, contexts, setting) for setting in SETTINGS),
            ],
            with_copy,
        )
    sampling = check_samples(samples, len(contexts))
    sampling["prompt_ids"] = [prompt.prompt_id for prompt in shortest] + ["one token"]

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
            # What the checkpoint asks for and this engine doesn't do: it isn't part of the target.
            "ignored_settings": pair.target.ignored_settings,
            "engine_requested": engine,
            **_path_taken(decoder_of(SAMPLED_DRAFT_TOKENS), contexts[0]),
            "code_digest": code_digest(__name__),
            "environment": capture_environment(pair.target.device),
        },
    }


def _one_token(pair: LoadedPair, encoded: Encoded) -> Encoded:
    """The first token of a prompt that isn't a special one, as a prompt."""
    ids = []
    for name, prompt in zip(("target", "draft"), encoded, strict=True):
        special = getattr(pair.tokenizer(name), "all_special_ids", [])
        ids.append(prompt and [next((i for i in prompt if i not in special), prompt[0])])
    return Encoded(*ids)


def _path_taken(decoder: SpeculativeDecoder, context: Encoded) -> dict:
    """How the pair decodes, as its results say: its drafter, its vocabularies, its engine."""
    result = decoder.generate(max_new_tokens=2, temperature=1.0, seed=0, **context._asdict())
    names = ("drafter", "vocabulary_match", "engine", "engine_reason")
    return {name: getattr(result, name) for name in names}
