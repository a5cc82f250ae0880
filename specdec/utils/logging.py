"""One way to tell people what happens: lines like `[loader] model ← gpt2`."""

import logging
import sys
from typing import TextIO


class _Lines(logging.Handler):
    """Prints each message, at once, to a stream, or to what sys.stderr is at that moment."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=self.stream or sys.stderr, flush=True)


def get_logger(name: str, stream: TextIO | None = None) -> logging.Logger:
    """The logger whose lines begin with the last part of `name` in brackets.

    Lines go to stderr, or to `stream`: a command whose lines are its output gives sys.stdout, and
    from then on all lines of that name go there.
    """
    short = name.rpartition(".")[2]
    logger = logging.getLogger(f"specdec.{short}")
    if stream is not None or not logger.handlers:
        handler = _Lines(stream)
        handler.setFormatter(logging.Formatter(f"[{short}] %(message)s"))
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
