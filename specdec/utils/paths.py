"""Where the project's own files lie."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

#: The folder that holds the package: the checkout, or where a wheel was installed.
PROJECT_ROOT = _PACKAGE.parent

#: The folder of config/ and resources/: the checkout, or the copy that setup.py put into a wheel.
SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else PROJECT_ROOT
