"""How much is accepted, by method: rejection or coupled sampling, intersection or exact match.

    python benchmarks/acceptance_of_methods.py --pair micro
    python benchmarks/acceptance_of_methods.py --pair micro_other

Prints a Markdown table: α and τ over built-in prompts of every domain, with 95 % intervals of α
over prompts. Only counts are compared, so the machine may be busy.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from specdec import load_pair
from specdec.analysis.statistics import acceptance_interval
from specdec.data.dataset import encode_prompt
from specdec.data.sources import load_texts, parse_source
from specdec.decoding.speculative import VOCABULARY_METHODS, SpeculativeDecoder
from specdec.utils.errors import cli

DOMAINS = ("code", "conversation", "summarization")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", required=True)
    parser.add_argument("--registry")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8, 1.0])
    parser.add_argument("--prompts", type=int, default=8, help="of each domain")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    draft, target = load_pair(arguments.pair, arguments.registry)
    prompts = [
        encode_prompt(target.tokenizer, text.prompt)
        for domain in DOMAINS
        for text in load_texts(parse_source(domain, "builtin"), print).texts[: arguments.prompts]
    ]
    shared = SpeculativeDecoder(draft, target, arguments.k).vocabularies.is_shared
    methods = ["auto"] if shared else [name for name in VOCABULARY_METHODS if name != "auto"]
    print(f"{arguments.pair}, K = {arguments.k}, {len(prompts)} prompts")
    print("| temperature | vocabulary | sampling | α | 95 % interval | τ |")
    print("|---|---|---|---|---|---|")
    for temperature in arguments.temperatures:
        for method in methods:
            for coupled in [False, True] if temperature > 0 else [False]:
                decoder = SpeculativeDecoder(draft, target, arguments.k, method, coupled)
                results = [
                    decoder.generate(
                        ids,
                        arguments.max_new_tokens,
                        temperature=temperature,
                        seed=seed,
                        eos_token_id=None,
                    )
                    for seed, ids in enumerate(prompts)
                ]
                sampling = "coupled" if coupled else "rejection" if temperature > 0 else "greedy"
                vocabulary = "shared" if shared else method
                said = row(results, arguments.k)
                print(f"| {temperature:g} | {vocabulary} | {sampling} | {said} |", flush=True)


def row(results, K: int) -> str:
    accepted = np.array([sum(result.accepted_per_round) for result in results])
    proposed = np.array([sum(result.proposed_per_round) for result in results])
    low, high = acceptance_interval(accepted, proposed, K)
    tokens = sum(result.num_tokens - 1 for result in results)
    rounds = sum(result.num_speculation_rounds for result in results)
    alpha = accepted.sum() / proposed.sum()
    return f"{alpha:.3f} | {low:.3f} to {high:.3f} | {tokens / rounds:.2f}"


if __name__ == "__main__":
    cli(main)
