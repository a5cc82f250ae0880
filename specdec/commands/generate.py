"""Continue a prompt with a registered pair, and print the text as it comes."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", required=True, help="name in the registry, e.g. micro")
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument("--k", type=int, default=4, help="draft tokens a round; 0: target alone")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: most likely token")
    parser.add_argument("--top-k", type=int, default=0, help="0: off")
    parser.add_argument("--top-p", type=float, default=1.0, help="1: off")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--engine", default="auto", choices=["eager", "compiled", "auto"])


def run(arguments: argparse.Namespace) -> None:
    # Late, so that `--help` and a wrong argument answer at once.
    from specdec.decoding.loaded_pair import LoadedPair
    from specdec.models.registry import get_pair

    pair = LoadedPair(get_pair(arguments.pair, arguments.registry), arguments.device)
    decoder = pair.decoder(arguments.k, arguments.engine)
    print(arguments.prompt, end="", flush=True)
    result = decoder.generate(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        on_tokens=TextStream(pair.target.tokenizer),
        **pair.encode(arguments.prompt).arguments(arguments.k),
    )
    print(f"\n{result.summary()}")
    reason = f" ({result.engine_reason})" if result.engine_reason else ""
    print(f"engine: {result.engine}{reason}")


class TextStream:
    """Prints tokens as text as they come, holding back a character that is not yet complete."""

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._printed = 0

    def __call__(self, tokens: list[int]) -> None:
        self._ids += tokens
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[self._printed :], end="", flush=True)
            self._printed = len(text)
