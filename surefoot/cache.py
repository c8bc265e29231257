"""Where what was fetched or made is kept between runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surefoot.files import make_folder


def cache_folder() -> Path:
    """`$SUREFOOT_CACHE`, else `~/.cache/surefoot`."""
    return Path(os.environ.get("SUREFOOT_CACHE", Path.home() / ".cache" / "surefoot"))


def made_once(shelf: str, made_from: Mapping[str, Any], fill: Callable[[Path], Any], stem: str = "") -> Path:
    """The folder `<cache>/<shelf>/<stem><digest of made_from>`, filled by `fill` the first time (`files.make_folder`).

    What it was made from (plain data) is told beside the rest, in `made.json`.
    """
    told = dict(made_from)
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    def make(aside: Path) -> None:
        fill(aside)
        (aside / "made.json").write_text(json.dumps(told, indent=1))

    return make_folder(cache_folder() / shelf / f"{stem}{digest}", make)
