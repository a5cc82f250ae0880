"""Continue a prompt with a registered pair, and print the text as it comes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from specdec.commands.arguments import check_numbers
from specdec.commands.prompt_input import echo, read_turns
from specdec.commands.text_stream import LEGEND, TextStream
from specdec.utils.errors import SpecdecError
from specdec.utils.logging import get_logger

log = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", required=True, help="name in the registry, e.g. micro")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="the text to continue; default: what comes from stdin")
    prompt.add_argument("--prompt-file", type=Path, help="the text to continue, in UTF-8")
    parser.add_argument(
        "--chat", action="store_true", help="answer turn after turn, a line of stdin each"
    )
    parser.add_argument("--k", type=int, default=4, help="draft tokens a round; 0: target alone")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: most likely token")
    parser.add_argument("--top-k", type=int, default=0, help="0: off")
    parser.add_argument("--top-p", type=float, default=1.0, help="1: off")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--engine", default="auto", choices=["eager", "compiled", "auto"])
    parser.add_argument(
        "--color",
        default="auto",
        choices=["auto", "always", "never"],
        help="accepted tokens green, the target's own in place of a draft's yellow; auto: on a "
        "terminal",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="then time it against the target alone, three runs of each in turns",
    )


def run(arguments: argparse.Namespace) -> None:
    check_numbers(arguments, least_k=0)
    if arguments.compare and arguments.k == 0:
        raise SpecdecError("--compare sets a draft against its target alone; give --k 1 or more")
    turns = read_turns(arguments)

    # Late, so that `--help` and a wrong argument answer at once.
    from specdec.decoding.loaded_pair import LoadedPair
    from specdec.models.registry import get_pair

    pair = LoadedPair(get_pair(arguments.pair, arguments.registry), arguments.device)
    if arguments.chat:
        pair.check_chat()
    decoder = pair.decoder(arguments.k, arguments.engine)
    if arguments.engine == "auto":
        _take_what_is_compiled(decoder, arguments)
    messages, done = [], []
    for text in turns:
        messages.append({"role": "user", "content": text})
        encoded = pair.encode(messages if arguments.chat else text)
        if not arguments.chat:
            print(echo(text), end="", flush=True)
        result = _continue(pair, decoder, encoded, arguments)
        done.append((encoded, result))
        reply = pair.tokenizer("target").decode(result.generated_ids, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": reply})
    if not done:
        return
    if _is_coloured(arguments):
        print(LEGEND)
    for _, result in done:
        print(result.summary())
    print(_engine(result))
    if arguments.compare:
        print(_compare(pair, decoder, done, arguments))


def _take_what_is_compiled(decoder, arguments: argparse.Namespace) -> None:
    """Take compiled pieces that are on disk: one text is not worth a minute of compiling.

    They are for a number of threads: for as many as torch takes here, else for the one that a study
    and `bench` compile for, which then decodes.
    """
    import torch

    warp = arguments.temperature, arguments.top_k, arguments.top_p
    threads = torch.get_num_threads()
    if decoder.prepare_from_disk(*warp) or threads == 1:
        return
    torch.set_num_threads(1)
    if decoder.prepare_from_disk(*warp):
        log.info("one thread, for which a study and bench compile; --engine compiled takes all")
    else:
        torch.set_num_threads(threads)


def _continue(pair, decoder, encoded, arguments: argparse.Namespace):
    """Print a continuation as it comes; returns its result."""
    stream = TextStream(pair.tokenizer("target"), arguments.k if _is_coloured(arguments) else None)
    try:
        return decoder.generate(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            on_tokens=stream,
            **encoded._asdict(),
        )
    finally:  # whatever comes next, an error too, begins its own line
        stream.flush()
        print(flush=True)


def _is_coloured(arguments: argparse.Namespace) -> bool:
    wanted = arguments.color == "always" or (arguments.color == "auto" and sys.stdout.isatty())
    return wanted and arguments.k > 0


def _engine(result) -> str:
    """The engine that ran, and why not the other, in what a user can do about it."""
    from specdec.decoding.decoder import NOT_PREPARED

    reason = result.engine_reason
    if reason == NOT_PREPARED:
        reason = "--engine compiled is faster, once it has compiled for a while"
    return f"engine: {result.engine}" + (f" ({reason})" if reason else "")


def _compare(pair, decoder, done: list, arguments: argparse.Namespace) -> str:
    from specdec.benchmark.arms import Request
    from specdec.benchmark.side_by_side import side_by_side

    # Of the same engine: else it would be the engines that are compared.
    alone = pair.decoder(0, done[-1][1].engine)
    warp = (arguments.temperature, arguments.top_k, arguments.top_p)
    alone.prepare(*warp)
    turns = [(encoded, len(result.generated_ids)) for encoded, result in done]
    request = Request(arguments.max_new_tokens, *warp, arguments.seed)
    return side_by_side(alone, decoder, arguments.k, turns, request)
