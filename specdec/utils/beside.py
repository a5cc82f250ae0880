"""A second piece of work at the same time, in a copy of this process."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from specdec.utils.errors import SpecdecError
from specdec.utils.machine import available_cores


def can_copy(device_type: str, threads: int) -> bool:
    """Whether a copy of this process can compute, and gains time.

    Threads are not copied, and what lies on a GPU belongs to one process; what lies in memory is
    shared, weights are held once.
    """
    alone = device_type == "cpu" and threads == 1
    return alone and sys.platform == "linux" and available_cores() > 1


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """During this block a copy of this process does `work`; the block is given a function that
    waits for its outcome, once. See `can_copy`.

    Raises:
        Exception: from that function, whatever `work` raises.
    """
    context = multiprocessing.get_context("fork")
    outcome, told = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads are not copied: none is asked for anything
        copy = context.Process(target=_tell, args=(work, told))
        copy.start()
    told.close()
    try:
        yield lambda: _wait(outcome, copy)
    finally:
        copy.terminate()  # where the block fails; else it has ended
        copy.join()


def _tell(work: Callable[[], Any], told: Connection) -> None:
    try:
        told.send((work(), None))
    except Exception as error:
        told.send((None, error))


def _wait(outcome: Connection, copy: multiprocessing.Process) -> Any:
    try:
        given, error = outcome.recv()
    except EOFError:
        copy.join()
        raise SpecdecError(
            f"a part of the work ended without an outcome (exit code {copy.exitcode}; -9 is what "
            "a system out of memory does): --threads 2 does all in one process"
        ) from None
    if error is not None:
        raise error
    return given
