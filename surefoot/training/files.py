"""Files that are either whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_aside(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, sync it, and rename it into place."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def sync_tree(folder: Path) -> None:
    """Force a folder's files, and the folder itself, to disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
