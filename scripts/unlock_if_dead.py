"""Free the study's folder from the lock that a killed run left, unless a run is alive in it.

Like `snakemake --unlock`, which would not ask whether one is.
"""

import fcntl
import sys
from pathlib import Path

LOCKS = Path(".snakemake/locks")
ALIVE = Path(".snakemake/alive")  # held by every Snakemake process of the study: rules/resume.smk


def main() -> None:
    if not LOCKS.is_dir() or not any(LOCKS.iterdir()):
        return
    with ALIVE.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("error: a run of the study is alive in this folder: wait for it, or stop it")
        for lock in LOCKS.iterdir():
            lock.unlink()


if __name__ == "__main__":
    main()
