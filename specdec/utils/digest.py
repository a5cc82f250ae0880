"""A digest of the code behind a result: it changes when a result might, and not otherwise."""

import ast
import hashlib
import os
from functools import cache
from pathlib import Path

from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT

PACKAGE = "specdec"
LOGGER_NAMES = {"log", "logger"}
LOGGER_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}

# Of a model's files both ends count in its digest, so much each: small ones whole.
DIGESTED_BYTES = 64 * 2**20


def code_digest(module_name: str, root: Path = PROJECT_ROOT) -> str:
    """16 hex digits of the SHA-256 of a module and of every specdec module that it imports.

    Hashed are syntax trees: comments, layout, docstrings and the texts of log messages do not
    count. `root` is the folder that holds the package. The same code can have another digest under
    another minor version of Python, whose trees differ.
    """
    digest = hashlib.sha256()
    for name, path in import_closure(module_name, root).items():
        tree = _WithoutTalk().visit(ast.parse(path.read_bytes(), filename=str(path)))
        digest.update(f"{name}\n{ast.dump(tree)}\n".encode())
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
        imported = _imported_names(ast.parse(path.read_bytes(), filename=str(path)), package)
        for wanted in {name, *imported}:
            parts = wanted.split(".")
            waiting += [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return dict(sorted(found.items()))


def _module_file(name: str, root: Path) -> Path | None:
    base = Path(root).joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _imported_names(tree: ast.AST, package: str) -> set[str]:
    """Full names of what a module of `package` imports from specdec, modules or not."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((parents if node.level else []) + [node.module] * bool(node.module))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE}


class _WithoutTalk(ast.NodeTransformer):
    """Removes what only speaks to people: docstrings, and the texts given to a logger."""

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


def _is_text(node: ast.expr) -> bool:
    """Whether an argument is a text: a literal, an f-string, or a sum or product of such."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
