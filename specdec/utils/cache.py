"""Where a machine keeps what is made once: compiled pieces, converted weights."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SPECDEC_CACHE`, else a folder in the user's cache."""
    named = os.environ.get("SPECDEC_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(user) / "specdec"
