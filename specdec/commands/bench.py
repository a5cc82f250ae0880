"""Time a pair on this machine, beside what its bytes allow and what others reach."""

from __future__ import annotations

import argparse
from pathlib import Path

from specdec.commands.arguments import check_numbers
from specdec.utils.files import atomic_write, check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", required=True, help="name in the registry, e.g. micro")
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="draft tokens")
    parser.add_argument("--prompts", type=int, default=10, help="how many")
    parser.add_argument(
        "--domain", default="code", choices=["code", "conversation", "summarization"]
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=128,
        help="length of the random prompts of models without a tokenizer",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: most likely token")
    parser.add_argument("--top-k", type=int, default=0, help="0: off")
    parser.add_argument("--top-p", type=float, default=1.0, help="1: off")
    parser.add_argument("--repeats", type=int, default=3, help="of each prompt; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--engine", default="auto", choices=["auto", "compiled", "eager"])
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        choices=["transformers", "llama.cpp"],
        help="time its generation as well, in turns; may be given twice",
    )
    parser.add_argument(
        "--synthetic-acceptance",
        type=float,
        metavar="RATE",
        help="accept each draft token with this probability; needed where weights are random",
    )
    parser.add_argument(
        "--instrumentation",
        action="store_true",
        help="also time our arms without timed phases, to see what the timing costs",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--out", type=Path, help="file for the JSON document; default: the last line"
    )


def run(arguments: argparse.Namespace) -> None:
    check_numbers(arguments, least_k=1)
    if arguments.out is not None:
        check_output(arguments.out)

    # Late, so that `--help` and a wrong argument answer at once.
    from specdec.benchmark.page import format_json
    from specdec.benchmark.run import benchmark
    from specdec.benchmark.settings import Settings

    options = vars(arguments) | {
        "k": tuple(sorted(set(arguments.k))),
        "against": tuple(dict.fromkeys(arguments.against)),
    }
    out = options.pop("out")
    options.pop("run")
    line = format_json(benchmark(Settings(**options), show=print))
    if out is None:
        print(line)
    else:
        with atomic_write(out) as file:
            file.write(line + "\n")
        print(f"written: {out}")
