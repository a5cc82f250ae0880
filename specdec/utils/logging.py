"""One way to tell people what happens: lines like `[loader] model ← gpt2`."""

import logging
import sys


class _Lines(logging.Handler):
    """Prints each message, at once, to what sys.stderr or sys.stdout is at that moment."""

    def __init__(self, to_stdout: bool) -> None:
        super().__init__()
        self.to_stdout = to_stdout

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout if self.to_stdout else sys.stderr, flush=True)


def get_logger(name: str, to_stdout: bool = False) -> logging.Logger:
    """The logger whose lines begin with the last part of `name` in brackets.

    Lines go to stderr. A command whose lines are its output asks for `to_stdout`, and from then on
    all lines of that name go there.
    """
    short = name.rpartition(".")[2]
    logger = logging.getLogger(f"specdec.{short}")
    if to_stdout or not logger.handlers:
        handler = _Lines(to_stdout)
        handler.setFormatter(logging.Formatter(f"[{short}] %(message)s"))
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
