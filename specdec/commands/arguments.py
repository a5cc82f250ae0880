"""The checks of a command's arguments, before anything is loaded."""

from __future__ import annotations

import argparse
import math

from specdec.utils.errors import SpecdecError

#: The least that a whole number may be, by the option's name.
LEAST = {
    "prompts": 1,
    "repeats": 1,
    "prompt_tokens": 1,
    "max_new_tokens": 1,
    "context": 1,
    "threads": 1,
    "top_k": 0,
}


def check_numbers(arguments: argparse.Namespace, least_k: int) -> None:
    """Raise SpecdecError, naming the option, for a number that no run could have.

    `least_k` is the least number of draft tokens that the command takes.
    """
    given = vars(arguments)
    ks = given.get("k", [])
    wholes = [("k", k, least_k) for k in (ks if isinstance(ks, list) else [ks])]
    wholes += [(name, given[name], least) for name, least in LEAST.items() if name in given]
    for name, value, least in wholes:
        if isinstance(value, int) and value < least:  # --prompts of certify is a file
            raise SpecdecError(f"{_option(name)}: {value} is below {least}")
    for name in ("temperature", "seconds", "budget"):
        value = given.get(name)
        if value is not None and not 0 <= value < math.inf:
            raise SpecdecError(f"{_option(name)}: {value} is no number from 0 on")
    top_p, rate = given.get("top_p"), given.get("synthetic_acceptance")
    if top_p is not None and not 0 < top_p <= 1:
        raise SpecdecError(f"--top-p: {top_p} is outside (0, 1]; 1 keeps every token")
    if rate is not None and not 0 <= rate <= 1:
        raise SpecdecError(f"--synthetic-acceptance: {rate} is outside [0, 1]")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
