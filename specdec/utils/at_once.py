"""Several pieces of work at once, in copies of this process."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from specdec.utils.errors import SpecdecError
from specdec.utils.machine import available_cores


def can_copy(device_type: str, threads: int) -> bool:
    """Whether a copy of this process can compute beside it, and saves time.

    Threads are not copied, and what lies on a GPU belongs to one process. What lies in memory is
    shared: weights are held once.
    """
    alone = device_type == "cpu" and threads == 1
    return alone and sys.platform == "linux" and available_cores() > 1


def do_all(works: Sequence[Callable[[], Any]], with_copy: bool) -> list[Any]:
    """What each of `works` gives, in their order; this process, and a copy of it where there is to
    be one, begin one after the other until none is left.

    Raises:
        Exception: whatever one of them raises; no other is begun then.
    """
    if not with_copy:
        return [work() for work in works]
    context = multiprocessing.get_context("fork")
    begun = context.Value("i", 0)
    outcomes, told = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads are not copied: none is asked for anything
        copy = context.Process(target=_tell, args=(works, begun, told))
        copy.start()
    told.close()
    try:
        given = _some(works, begun) | _told(outcomes, copy)
    finally:
        copy.terminate()  # where one failed here; else it has ended
        copy.join()
    return [given[number] for number in range(len(works))]


def _some(works: Sequence[Callable[[], Any]], begun: Any) -> dict[int, Any]:
    """What this process gets done of them, by their numbers."""
    given = {}
    while True:
        with begun.get_lock():
            number = begun.value
            begun.value += 1
        if number >= len(works):
            return given
        try:
            given[number] = works[number]()
        except BaseException:
            begun.value = len(works)
            raise


def _tell(works: Sequence[Callable[[], Any]], begun: Any, told: Connection) -> None:
    try:
        told.send((_some(works, begun), None))
    except Exception as error:
        told.send((None, error))


def _told(outcomes: Connection, copy: multiprocessing.Process) -> dict[int, Any]:
    try:
        given, error = outcomes.recv()
    except EOFError:
        copy.join()
        raise SpecdecError(
            f"a part of the work ended without an outcome (exit code {copy.exitcode}; -9 is what "
            "a system out of memory does): --threads 2 does all in one process"
        ) from None
    if error is not None:
        raise error
    return given
