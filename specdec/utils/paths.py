"""Where the project's own files lie."""

from pathlib import Path

#: The checkout that this package was imported from: the folder of config/ and resources/.
PROJECT_ROOT = Path(__file__).resolve().parents[2]
