"""Choose the prompts of a study for pairs whose targets share a tokenizer, and write them down.

Tokenizers and configurations are read, never weights. A prompt is chosen only if, for the target
and for the draft of every pair, it leaves room for the new tokens and the draft tokens.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from specdec.data.hub import context_length, load_context_length, load_tokenizer
from specdec.data.prompts import Limit, build_dataset, format_table
from specdec.data.sources import load_texts, parse_source
from specdec.data.text_as_bytes import TextAsBytes
from specdec.models.hub import check_available, resolve_model
from specdec.models.random_weights import known_configuration
from specdec.models.registry import ModelPair, ModelSide, get_pair
from specdec.utils.errors import SpecdecError, cli
from specdec.utils.logging import get_logger

SETTINGS = ("sources", "prompts_per_domain", "max_new_tokens", "room_for_drafts", "seed")


def read_settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise SpecdecError(f"--settings: not JSON ({error})") from error
    if sorted(settings) != sorted(SETTINGS):
        raise SpecdecError(f"--settings: needs exactly the keys {', '.join(SETTINGS)}")
    return settings


def find_limits(pairs: list[ModelPair], room: int) -> list[Limit]:
    """What each model leaves for a prompt: its context less `room` tokens; the target's first."""
    limits = {}
    for pair in pairs:
        for side in (pair.target, pair.draft):
            key = (side.label, side.revision, side.chat)
            if key not in limits:
                limits[key] = find_limit(side, room, pair.name)
    return list(limits.values())


def find_limit(side: ModelSide, room: int, pair: str) -> Limit:
    if side.has_random_weights:
        tokenizer, context = TextAsBytes(), context_length(known_configuration(side))
    else:
        check_available(side.model, side.revision)
        where = (resolve_model(side.model), side.revision, side.trust_remote_code)
        tokenizer, context = load_tokenizer(*where), load_context_length(*where)
    if context is not None and context <= room:
        raise SpecdecError(
            f"pair {pair}: the context of {side.label} is {context} tokens, and {room} new and "
            "draft tokens leave none for a prompt: lower max_new_tokens or draft_tokens"
        )
    left = None if context is None else context - room
    return Limit(side.label, tokenizer, left, side.chat)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="+", required=True, help="names in the registry")
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument("--settings", required=True, help=f"JSON with {', '.join(SETTINGS)}")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)

    log = get_logger("prompts", to_stdout=True)
    settings = read_settings(args.settings)
    parsed = [parse_source(domain, spec) for domain, spec in settings["sources"].items()]
    pairs = [get_pair(name, args.registry) for name in args.pairs]
    limits = find_limits(pairs, settings["max_new_tokens"] + settings["room_for_drafts"])
    for limit in limits:
        log.info(f"a prompt may have {limit}")
    sources = {source.domain: load_texts(source, log.warning) for source in parsed}
    count, seed = settings["prompts_per_domain"], settings["seed"]
    dataset = build_dataset(sources, count, seed, limits)
    dataset.save(args.out)
    print(f"\n{format_table(dataset)}\n")
    log.info(f"saved {len(dataset):>3} prompts → {args.out}")


if __name__ == "__main__":
    cli(main)
