"""Files that are whole or absent, and a lock that one process holds at a time."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from specdec.utils.errors import SpecdecError


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """A file that appears at `path` when the block ends well, and not otherwise.

    It is written beside `path`, so that the last step is a rename within one file system. `mode` is
    "w" (text, UTF-8) or "wb".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(folder: Path | str) -> None:
    """Raise SpecdecError unless a file can be made in a folder, or in the one it will be made in.

    Tried, since permissions alone don't tell: a file system may be read-only.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = "it is no folder" if error.errno == errno.ENOTDIR else error.strerror
        raise SpecdecError(
            f"{folder}: nothing can be written there ({reason}): free it, or run elsewhere"
        ) from error


def check_output(path: Path | str) -> None:
    """Raise SpecdecError unless `atomic_write` can write `path`: before work is put into it."""
    if Path(path).is_dir():
        raise SpecdecError(f"{path}: is a folder; name a file in it")
    check_writable(Path(path).parent)


@contextmanager
def exclusive_lock(path: Path | str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path` during the block; the system frees it when the process ends.

    Where another process holds it, `on_wait` is called once before the wait.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Read-only, and created only where missing: a lock that another user made can be taken too.
    descriptor = os.open(path, os.O_RDONLY | (0 if path.exists() else os.O_CREAT), 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
