"""Files that tell whether they are whole: each has the SHA-256 of its bytes beside it.

For what is loaded into the process: a library whose end is missing would end it.
"""

import hashlib
from pathlib import Path

from specdec.utils.files import atomic_write


def seal(path: Path) -> None:
    """Write down what `path` holds. Do it last: what has no seal does not count."""
    with atomic_write(_seal_of(path)) as file:
        file.write(_digest(path))


def is_whole(path: Path) -> bool:
    """Whether `path` holds what it held when it was sealed."""
    return path.exists() and _seal_of(path).exists() and _seal_of(path).read_text() == _digest(path)


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
