"""Collect the tests twice, seconds apart and with other hash seeds, and compare their names.

pytest-xdist refuses to start where its processes collect different tests. A name may depend on the
code alone: not on the time of day, the order of a set or an address in memory.
"""

import difflib
import os
import subprocess
import sys
import time

SECONDS_APART = 2  # gzip and the like write the time of day in whole seconds


def collect(hash_seed: str) -> list[str]:
    """The names of all tests, in the order that they are collected in."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist"]
    collected = subprocess.run(
        [*command, "-o", "addopts="],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTEST_ADDOPTS": ""},
    )
    if collected.returncode:
        sys.exit(f"error: the tests can't be collected:\n{collected.stdout}{collected.stderr}")
    return [line for line in collected.stdout.splitlines() if "::" in line]


def main() -> None:
    first = collect("1")
    time.sleep(SECONDS_APART)
    differences = difflib.unified_diff(first, collect("2"), "first", "second", lineterm="", n=0)
    sys.exit("\n".join(differences) or 0)


if __name__ == "__main__":
    main()
