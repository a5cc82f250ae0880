"""A digest of the code behind a result: it changes when a result might, and not otherwise."""

import ast
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT

PACKAGE = "specdec"
LOGGER_NAMES = {"log", "logger"}
LOGGER_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
NATIVE = {".cpp", ".cu", ".h"}  # sources of kernels, compiled where they run

# Of a model's files both ends count in its digest, so much each: small ones whole.
DIGESTED_BYTES = 64 * 2**20


def code_digest(module_name: str, root: Path = PROJECT_ROOT) -> str:
    """16 hex digits of the SHA-256 of a module and of every specdec module that it imports.

    Hashed are syntax trees: comments, layout, docstrings, the texts of log messages and of raised
    errors, and functions that only word these do not count. Kernels' sources in the folders of
    these modules count as they are. `root` is the folder that holds the package. The same code can
    have another digest under another minor version of Python, whose trees differ.
    """
    digest = hashlib.sha256()
    closure = import_closure(module_name, root)
    for name, path in closure.items():
        digest.update(f"{name}\n{_what_counts(path.read_bytes())}\n".encode())
    for folder in sorted({path.parent for path in closure.values()}):
        for path in sorted(path for path in folder.iterdir() if path.suffix in NATIVE):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def model_digest(model: str) -> str:
    """16 hex digits over a local model: its file, or those in its folder; a hub's name as it is."""
    place = Path(model)
    if not place.exists():
        return model
    files = [place] if place.is_file() else [path for path in place.iterdir() if path.is_file()]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix != ".md"):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode() + file.read(DIGESTED_BYTES))
            file.seek(-min(size, DIGESTED_BYTES), os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()[:16]


def import_closure(module_name: str, root: Path = PROJECT_ROOT) -> dict[str, Path]:
    """The file of each specdec module that importing and using `module_name` can run, by name.

    Imports are found by reading, wherever they stand in a file; the `__init__` of every package on
    the way counts, for importing a module runs it.
    """
    if _module_file(module_name, root) is None:
        raise SpecdecError(f"code_digest: there is no module {module_name} under {root}")
    found: dict[str, Path] = {}
    waiting = [module_name]
    while waiting:
        name = waiting.pop()
        path = _module_file(name, root)
        if path is None or name in found:
            continue  # a function or class in `from specdec.x import f`, or seen already
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported = _imported_names(path.read_bytes(), package)
        for wanted in {name, *imported}:
            parts = wanted.split(".")
            waiting += [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return dict(sorted(found.items()))


def _module_file(name: str, root: Path) -> Path | None:
    base = Path(root).joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _imported_names(source: bytes, package: str) -> set[str]:
    """Full names of what a module of `package` imports from specdec, modules or not."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((parents if node.level else []) + [node.module] * bool(node.module))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE}


@cache
def _what_counts(source: bytes) -> str:
    """A module's syntax tree as text, without what only speaks to people."""
    tree = ast.parse(source)
    used, raised = _uses([tree]), _uses(n for n in ast.walk(tree) if isinstance(n, ast.Raise))
    tree.body = [node for node in tree.body if not _only_words_errors(node, used, raised)]
    return ast.dump(_WithoutTalk().visit(tree))


def _only_words_errors(function: ast.stmt, used: Counter, raised: Counter) -> bool:
    """Whether a private function is called in the `raise` statements of its module alone."""
    if not isinstance(function, ast.FunctionDef) or not function.name.startswith("_"):
        return False
    calls = used[function.name] - _uses([function])[function.name]
    return 0 < calls == raised[function.name]


def _uses(trees: Iterable[ast.AST]) -> Counter[str]:
    """How often each name is read in some parts of a module."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    return Counter(node.id for node in nodes if isinstance(node, ast.Name))


class _WithoutTalk(ast.NodeTransformer):
    """Removes docstrings, the texts given to a logger, and those of errors that are raised."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return _WithoutTexts().visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func
        if (
            isinstance(called, ast.Attribute)
            and called.attr in LOGGER_METHODS
            and isinstance(called.value, ast.Name)
            and called.value.id in LOGGER_NAMES
        ):
            node.args = [arg for arg in node.args if not _is_text(arg)]
        return self.generic_visit(node)


class _WithoutTexts(ast.NodeTransformer):
    """Empties every text; what is computed to be shown in one goes with it."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node


def _is_text(node: ast.expr) -> bool:
    """Whether an argument is a text: a literal, an f-string, or a sum or product of such."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
