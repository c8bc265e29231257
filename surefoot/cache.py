"""Where what was fetched or made is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SUREFOOT_CACHE`, else `~/.cache/surefoot`."""
    return Path(os.environ.get("SUREFOOT_CACHE", Path.home() / ".cache" / "surefoot"))
