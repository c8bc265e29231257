"""Published methods, one short file each at its own name: `find("dr-grpo")` reads `methods/*/dr_grpo.py`."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from surefoot.errors import InputError, nearest
from surefoot.method import Method


@cache
def modules() -> dict[str, str]:
    """Slug -> module, for every file under `methods/`."""
    here = Path(__file__).parent
    files = sorted(p for p in here.glob("*/*.py") if p.stem != "__init__")
    return {p.stem.replace("_", "-"): f"surefoot.methods.{p.parent.name}.{p.stem}" for p in files}


def composition(slug: str) -> Method | None:
    """The `Method` of a slug, or None where its file holds no composition (an evaluation suite, a theorem)."""
    if slug not in modules():
        raise InputError(f"unknown method {slug!r}{nearest(slug, modules())}")
    module = importlib.import_module(modules()[slug])
    return next((v for v in vars(module).values() if isinstance(v, Method) and v.name == slug), None)


def find(slug: str) -> Method:
    """The method of a slug, or of `module:OBJECT` for one of your own.

    Raises:
        InputError: no such slug (with the nearest one), or a file without a composition to train with.
    """
    if ":" in slug:
        from surefoot.method import locate

        found = locate(slug, "method")
        if not isinstance(found, Method):
            raise InputError(f"method {slug!r}: is a {type(found).__name__}, expected a Method")
        return found
    if slug not in modules():
        raise InputError(f"unknown method {slug!r}{nearest(slug, names())}")
    method = composition(slug)
    if method is None:
        raise InputError(f"{slug!r} is not a training method; see `surefoot show {slug}`")
    return method


@cache
def names() -> tuple[str, ...]:
    """Slugs of all methods that train."""
    return tuple(slug for slug in modules() if composition(slug) is not None)
