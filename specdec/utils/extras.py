"""What to install where a package of an extra is missing."""

import importlib.util

from specdec.utils.errors import SpecdecError


def require(extra: str, packages: list[str], purpose: str) -> None:
    """Raise SpecdecError, in one line that names the extra, unless all packages can be imported."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecdecError(
            f"{purpose} needs {' and '.join(missing)}, of the extra '{extra}': run `pip install "
            f"'specdec-study[{extra}]'`, or in a checkout `pip install -c requirements/lock.txt -e "
            f"'.[{extra}]'`"
        )
