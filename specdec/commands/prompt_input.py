"""Where the prompts of `generate` come from (an argument, a file, stdin), and how one is echoed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import chain

from specdec.utils.errors import SpecdecError

ECHOED_LINES, ECHOED_CHARACTERS = 10, 1000  # a prompt that is longer is echoed by its last line


def read_turns(arguments: argparse.Namespace) -> Iterator[str]:
    """The texts to continue: one, or with --chat the first and then each line of stdin.

    Raises SpecdecError for a prompt that is missing, empty, unreadable or no UTF-8: what is given
    as an argument is read at once, stdin as it comes.
    """
    first = _first(arguments)
    if first is None:
        return _lines()
    if not first.strip():
        raise SpecdecError("the prompt is empty; give some text to continue")
    return chain([first], _lines()) if arguments.chat else iter([first])


def _first(arguments: argparse.Namespace) -> str | None:
    if arguments.prompt is not None:
        return _unicode(os.fsencode(arguments.prompt), "--prompt")
    if arguments.prompt_file is not None:
        try:
            return _unicode(arguments.prompt_file.read_bytes(), arguments.prompt_file)
        except OSError as error:
            raise SpecdecError(
                f"--prompt-file {arguments.prompt_file}: can't be read ({error.strerror})"
            ) from error
    if arguments.chat:
        return None
    if sys.stdin.isatty():
        raise SpecdecError("no prompt: give --prompt or --prompt-file, or a text on stdin")
    return _unicode(sys.stdin.buffer.read(), "stdin")


def _lines() -> Iterator[str]:
    """The lines of stdin that are not empty, each asked for where somebody sits there."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        if text := _unicode(line, "stdin").strip():
            yield text


def _unicode(content: bytes, where: object) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecdecError(
            f"{where}, line {line}: byte 0x{content[error.start]:02x} is no UTF-8; give the text "
            "as UTF-8"
        ) from error


def echo(prompt: str) -> str:
    """A prompt as it is shown before its continuation: whole, or the end of it where it is long."""
    if len(prompt.splitlines()) <= ECHOED_LINES and len(prompt) <= ECHOED_CHARACTERS:
        return prompt
    text = prompt.rstrip("\n")
    last_line = text.rpartition("\n")[2]
    return f"… {last_line[-ECHOED_CHARACTERS:]}{prompt[len(text) :]}"
