"""Files and folders that are either whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surefoot.errors import InputError


def write_aside(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, sync it, and rename it into place; of several at once, the last one stays.

    The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is none, with the line; an `OSError` where it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise InputError(f"{path} line {e.lineno} column {e.colno}: {e.msg}; expected JSON") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; expected JSON") from None


def make_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder, made once: where it is not there, `fill` an empty one aside, sync it, and rename it into place.

    Of several that make it at once, the first one stays, and all get that one.

    Args:
        fill: given the empty folder; what it puts beside that (`.parent`) is thrown away.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        aside = Path(scratch) / folder.name
        aside.mkdir()
        fill(aside)
        _sync_tree(aside)
        try:
            aside.rename(folder)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not folder.is_dir():
                raise
    return folder


def _sync_tree(folder: Path) -> None:
    """Force a folder's files, and the folder itself, to disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
