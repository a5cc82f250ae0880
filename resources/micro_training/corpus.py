"""The corpus: source and docstrings of the running interpreter's standard library."""

import ast
import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "encodings",
}
# Generated tables, and names that differ from one build of Python to the next.
SKIPPED_FILES = {
    "pydoc_data/topics.py",
    "html/entities.py",
    "_sysconfigdata*.py",
    "config-*/*.py",
    "stringprep.py",
}
TOPICS = "pydoc_data/topics.py"


@dataclass
class Corpus:
    """Documents as (path relative to the library, text), sorted by path."""

    train: list[tuple[str, str]]
    held_out: list[tuple[str, str]]
    digest: str  # sha256 over every path and text, both parts


def is_skipped(path: Path) -> bool:
    """Whether `path` (relative to the library) is a test or a table."""
    in_skipped_folder = bool(SKIPPED_FOLDERS & set(path.parts[:-1]))
    return in_skipped_folder or any(path.match(pattern) for pattern in SKIPPED_FILES)


def is_held_out(name: str, percent: int) -> bool:
    """A fixed choice that depends on the name of the document alone."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < percent


def help_topics(path: Path) -> list[tuple[str, str]]:
    """The English help texts of `pydoc_data/topics.py`, one document each."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    topics = ast.literal_eval(tree.body[-1].value)
    return [(f"{TOPICS}:{name}", text) for name, text in sorted(topics.items())]


def read_documents() -> list[tuple[str, str]]:
    """Every document of the standard library, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    relative = [path.relative_to(root) for path in root.rglob("*.py")]
    documents = []
    for path in relative:
        if not is_skipped(path):
            text = (root / path).read_text(encoding="utf-8", errors="replace")
            documents.append((path.as_posix(), text.replace("\r\n", "\n")))
    if (root / TOPICS).exists():
        documents += help_topics(root / TOPICS)
    return sorted((name, text) for name, text in documents if text.strip())


def load_corpus(held_out_percent: int) -> Corpus:
    """Read, split and fingerprint the corpus."""
    documents = read_documents()
    digest = hashlib.sha256()
    for name, text in documents:
        digest.update(name.encode() + b"\0" + text.encode() + b"\0")
    parts = {True: [], False: []}
    for name, text in documents:
        parts[is_held_out(name, held_out_percent)].append((name, text))
    return Corpus(train=parts[False], held_out=parts[True], digest=digest.hexdigest())
