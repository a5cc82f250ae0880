"""What this machine offers to a process."""

import os

from specdec.utils.errors import SpecdecError


def available_cores() -> int:
    """Cores of the processor that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(count: int) -> None:
    """Raise SpecdecError unless each thread has a core: two on one wait for each other."""
    if count < 1:
        raise SpecdecError(f"threads: {count} is below 1")
    if count > available_cores():
        raise SpecdecError(
            f"threads: {count} is above the {available_cores()} cores that this process may use"
        )
