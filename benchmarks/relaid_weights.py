"""What it costs transformers to run on weights that our compiled engine has laid out anew.

Its `generate` with the target alone, on the weights as loaded and on those that our engine has
prepared, in turns. `specdec bench --against transformers` gives it the former.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from specdec.benchmark import table
from specdec.benchmark.arms import BenchPrompt, Request, measure
from specdec.benchmark.transformers_arm import generate_arm
from specdec.data.sources import load_texts, parse_source
from specdec.decoding.loaded_pair import LoadedPair
from specdec.models.registry import get_pair
from specdec.utils.errors import cli
from specdec.utils.reproducibility import capture_environment, set_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="micro", help="name in the registry; its target counts")
    parser.add_argument("--prompts", type=int, default=4, help="built-in prompts of code")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    set_threads(1)
    entry = get_pair(arguments.pair)
    as_loaded, prepared = (LoadedPair(entry, "cpu").load(with_draft=False) for _ in range(2))
    decoder = prepared.decoder(0, "compiled")
    decoder.prepare()
    request = Request(arguments.max_new_tokens, 0.0, 0, 1.0, seed=0)
    arms = [
        replace(generate_arm(pair.target, request), name=name)
        for name, pair in (("as loaded", as_loaded), ("laid out anew", prepared))
    ]
    texts = load_texts(parse_source("code", "builtin"), print).texts[: arguments.prompts]
    prompts = [BenchPrompt(str(i), prepared.encode(t.prompt)) for i, t in enumerate(texts)]
    for arm in arms:
        arm.generate(prompts[0])
    runs = {
        name: table.amounts(of) for name, of in measure(arms, prompts, arguments.repeats).items()
    }
    print(f"{entry.target_model_id} on {capture_environment('cpu')['device']}, one thread")
    for name, of in runs.items():
        print(f"{name:14} {table.estimate(table.tokens_per_s, of)['value']:.1f} tokens/s")
    ratio = table.estimate(table.speedup, runs["as loaded"], runs["laid out anew"])
    print(
        f"as loaded ÷ laid out anew: {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    )


if __name__ == "__main__":
    cli(main)
