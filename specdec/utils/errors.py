"""One error class for what a user can put right, and one way to end a command with it."""

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


class SpecdecError(Exception):
    """What a user can put right; the message is one line: what was wrong, where, what to do."""


def one_line(text: object) -> str:
    """`text` with every run of white space, line breaks included, made one space."""
    return " ".join(str(text).split())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or a device had no memory left (told by text, so torch need not load)."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    # CUDA says "out of memory", torch's CPU allocator "not enough memory" or "can't allocate".
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def explain(error: Exception) -> tuple[str, int]:
    """The one line that a command prints for `error`, and its exit code (2: explained, 1: not)."""
    if isinstance(error, SpecdecError):
        return one_line(error), 2
    if is_out_of_memory(error):
        advice = "take a smaller pair, a shorter max_new_tokens or int4 weights"
        return f"out of memory: {one_line(error) or 'the host has none left'}; {advice}", 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}: free some and run the same command again", 2
    hint = "set SPECDEC_TRACEBACK=1 for the traceback"
    return f"{type(error).__name__}: {one_line(error)} ({hint})", 1


def cli(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as a command: every failure ends as one line on stderr and an exit code.

    Exit code 0 (or what `main` returns), 2 for what a user can put right, 1 for anything else,
    130 for Ctrl-C. With SPECDEC_TRACEBACK=1 in the environment the traceback is printed as well.
    A terminal that can't show a character shows a question mark for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("SPECDEC_TRACEBACK") == "1":
            traceback.print_exc()
        message, code = explain(error)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)
