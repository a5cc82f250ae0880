"""The prompts of a study: which are chosen from their sources, and the data card that says how.

As a command it builds the benchmark's own set:

    python -m specdec.data.prompts --tokenizer gpt2 --output data/prompts.json
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.data.dataset import Prompt, PromptDataset, digest, encode_prompt
from specdec.data.hub import load_tokenizer
from specdec.data.records import Text
from specdec.data.sources import BUILTIN, SourceTexts, load_texts, parse_source
from specdec.utils.errors import SpecdecError, cli
from specdec.utils.logging import get_logger

FORMAT = 1
BENCHMARK_SOURCES = {
    "code": "openai/openai_humaneval",
    "conversation": "tatsu-lab/alpaca",
    "summarization": "abisee/cnn_dailymail",
}
NOTE = (
    "A prompt_id numbers the place in its domain's seeded order, which no tokenizer changes. "
    "Prompts were examined in that order until enough were chosen; those that were empty, "
    "too_long for a limit, or duplicates of a text chosen before were passed over whole, none was "
    "cut."
)


@dataclass(frozen=True)
class Limit:
    """A prompt may encode to at most `max_tokens` with `tokenizer`; None: to any number.

    `name` is the model's, for the data card; `chat` as in `encode_prompt`.
    """

    name: str
    tokenizer: Any
    max_tokens: int | None = None
    chat: str = "auto"

    def length(self, text: str) -> int:
        return len(encode_prompt(self.tokenizer, text, self.chat))

    def __str__(self) -> str:
        return f"{self.max_tokens or 'any number of'} tokens of {self.name}"


def seeded_order(domain: str, available: int, seed: int) -> list[int]:
    """A permutation of range(available) that depends on domain and seed alone, on any machine."""

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{domain}:{index}".encode()).digest()

    return sorted(range(available), key=rank)


def choose_prompts(
    domain: str, source: SourceTexts, count: int, seed: int, limits: list[Limit]
) -> tuple[list[Prompt], dict[str, Any]]:
    """The first `count` prompts in the domain's seeded order that fit every limit; their card.

    The first limit is the target's: its tokenizer gives the token counts. Raises SpecdecError
    where fewer fit.
    """
    target, chosen, empty, too_long, duplicates = limits[0], [], 0, 0, 0
    seen: set[str] = set()  # a text that comes twice is not two independent prompts
    for place, index in enumerate(seeded_order(domain, len(source.texts), seed)):
        if len(chosen) == count:
            break
        text = source.texts[index]
        if not text.field.strip():
            empty += 1
        elif text.prompt in seen:
            duplicates += 1
        elif not _fits(text, source.max_field_tokens, limits):
            too_long += 1
        else:
            seen.add(text.prompt)
            length = target.length(text.prompt)
            chosen.append(Prompt(f"{domain}_{place:03d}", domain, text.prompt, length))
    if len(chosen) < count:
        bounds = " and ".join(str(limit) for limit in limits if limit.max_tokens is not None)
        raise SpecdecError(
            f"{domain}: {count} prompts wanted, {len(chosen)} of {len(source.texts)} from "
            f"{source.origin['label']} fit ({empty} empty, {too_long} longer than "
            f"{bounds or f'{source.max_field_tokens} tokens'}, {duplicates} duplicates): "
            "lower prompts_per_domain or max_new_tokens, or name another source"
        )
    card = {
        "source": source.origin,
        "available": len(source.texts),
        "examined": len(chosen) + empty + too_long + duplicates,
        "empty": empty,
        "duplicates": duplicates,
        "too_long": too_long,
        "chosen": len(chosen),
        "tokens": token_statistics(chosen),
    }
    return chosen, card


def _fits(text: Text, max_field_tokens: int | None, limits: list[Limit]) -> bool:
    if max_field_tokens is not None:
        field = limits[0].tokenizer(text.field, add_special_tokens=False, verbose=False).input_ids
        if len(field) > max_field_tokens:
            return False
    return all(
        limit.max_tokens is None or limit.length(text.prompt) <= limit.max_tokens
        for limit in limits
    )


def token_statistics(prompts: list[Prompt]) -> dict[str, float]:
    """Shortest, mean and longest prompt, in tokens."""
    counts = [prompt.token_count for prompt in prompts]
    return {"min": min(counts), "mean": round(sum(counts) / len(counts), 1), "max": max(counts)}


def build_dataset(
    sources: dict[str, SourceTexts], count: int, seed: int, limits: list[Limit]
) -> PromptDataset:
    """`count` prompts from each domain's source that fit every limit, the target's first."""
    prompts, domains = [], {}
    for domain, source in sources.items():
        chosen, domains[domain] = choose_prompts(domain, source, count, seed, limits)
        prompts += chosen
    card = {
        "format": FORMAT,
        "note": NOTE,
        "tokenizer": limits[0].name,
        "chat": limits[0].chat,
        "seed": seed,
        "digest": digest(prompts),
        "limits": [
            {"model": limit.name, "chat": limit.chat, "max_prompt_tokens": limit.max_tokens}
            for limit in limits
        ],
        "domains": domains,
    }
    return PromptDataset(prompts, card)


def format_table(dataset: PromptDataset) -> str:
    """The lengths of the prompts, in tokens, a line for each domain."""
    lines = [f"{'domain':<20}{'n':>5}{'min':>7}{'mean':>8}{'max':>7}", "-" * 47]
    for domain, card in dataset.card["domains"].items():
        tokens = card["tokens"]
        lines.append(
            f"{domain:<20}{card['chosen']:>5}"
            f"{tokens['min']:>7}{tokens['mean']:>8.1f}{tokens['max']:>7}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m specdec.data.prompts",
        description="Choose the benchmark's prompts and count their tokens. A data set that the "
        "hub doesn't hand out is replaced by the built-in prompts, with a warning.",
    )
    parser.add_argument("--tokenizer", required=True, help="name on the hub, or a local folder")
    parser.add_argument("--output", type=Path, default=Path("data/prompts.json"))
    parser.add_argument("--prompts-per-domain", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)

    log = get_logger("prompts", to_stdout=True)
    log.info(f"loading tokenizer: {args.tokenizer}")
    limits = [Limit(args.tokenizer, load_tokenizer(args.tokenizer))]
    log.info(f"building full dataset ({args.prompts_per_domain} prompts per domain) …")
    sources = {
        domain: load_texts(parse_source(domain, {"hub": name, "fallback": BUILTIN}), log.warning)
        for domain, name in BENCHMARK_SOURCES.items()
    }
    tiny_count = min(5, args.prompts_per_domain)
    full = build_dataset(sources, args.prompts_per_domain, args.seed, limits)
    tiny = build_dataset(sources, tiny_count, args.seed, limits)
    print(f"\n{format_table(full)}\n")
    tiny_path = args.output.with_stem(f"{args.output.stem}_tiny")
    for dataset, path in ((full, args.output), (tiny, tiny_path)):
        dataset.save(path)
        log.info(f"saved {len(dataset):>3} prompts → {path}")


if __name__ == "__main__":
    cli(main)
