"""Choose the prompts of a study for pairs whose targets share a tokenizer, and write them down.

Tokenizers and configurations are read, never weights. A prompt is chosen only if, for the target
and for the draft of every pair, it leaves room for the new tokens and the draft tokens.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from specdec.data.prompts import Limit, build_dataset, format_table
from specdec.data.sources import load_texts, parse_source
from specdec.decoding.loaded_pair import LoadedPair
from specdec.models.registry import ModelPair, get_pair
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
        both = zip((pair.target, pair.draft), LoadedPair(pair).limits(room), strict=True)
        for side, limit in both:
            limits.setdefault((side.label, side.revision, side.chat), limit)
    return list(limits.values())


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
