"""`surefoot show`."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surefoot.method import Method

HELP = "a method: its composition, equations, source, claim"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("slug", help="a slug (surefoot papers), or module:OBJECT for a method of your own")


def run(args: argparse.Namespace) -> int:
    print("\n".join(describe(args.slug)))
    return 0


def describe(slug: str) -> Iterator[str]:
    """Everything known of a slug, as lines.

    Raises:
        InputError: neither a paper nor a method, with the nearest name.
    """
    from surefoot import methods
    from surefoot.errors import InputError, nearest
    from surefoot.papers import module_of, papers, result

    row = next((r for r in papers() if r.slug == slug), None)
    if ":" in slug:
        method, module = methods.find(slug), slug.split(":")[0]
    else:
        module = module_of(slug)
        if row is None and module is None:
            known = {r.slug for r in papers()} | set(methods.modules())
            raise InputError(f"unknown paper or method {slug!r}{nearest(slug, known)}")
        method = methods.composition(slug) if module else None
    yield from _source(slug, row, method)
    if module:
        yield from ("", inspect.getdoc(importlib.import_module(module)) or "")
        yield from ("", f"module   {module}")
    else:
        yield from ("", "not implemented yet")
    if method:
        yield from ("", *composition(method))
    yield from ("", *_claim(result(slug)))


def _source(slug: str, row: Any, method: Method | None) -> Iterator[str]:
    """Name, title, and where it was published."""
    paper = row or (method.paper if method else None)
    yield f"{slug}: {paper.title}" if paper and paper.title else slug
    if paper and paper.arxiv:
        yield f"paper    https://arxiv.org/abs/{paper.arxiv} ({paper.year})"
    elif paper and paper.year:
        yield f"paper    {paper.year}"
    if row:
        if row.code:
            yield f"code     https://github.com/{row.code}"
        yield f"kind     {row.kind}"


def composition(method: Method) -> Iterator[str]:
    """Each slot with its part and the part's fields; the columns that the method makes the trainer compute.

    >>> from surefoot.methods import find
    >>> next(line for line in composition(find("grpo")) if line.startswith("  surrogate"))   # doctest: +SKIP
    '  surrogate        Clip(low=0.2, ...)'
    """
    yield "composition"
    for path, part in method.parts():
        yield f"  {path.split('.')[0]:<14} {text(part)}"
    reads = sorted(method.readers())
    yield f"  {'reads':<14} {', '.join(reads)}"


def text(value: Any) -> str:
    """A part with all its fields, parts inside it too; functions by name."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{f.name}={text(getattr(value, f.name))}" for f in fields(value) if f.init)
        return f"{type(value).__name__}({inside})"
    if isinstance(value, tuple):
        return f"({', '.join(map(text, value))})"
    return getattr(value, "__name__", None) or repr(value)


def _claim(result: dict[str, Any]) -> Iterator[str]:
    """The recorded result of the claim: its verdict, and the plain facts beside it."""
    if not result:
        yield "claim    not run yet"
        return
    yield f"claim    {result.get('verdict', 'no verdict')}"
    for key, value in result.items():
        if key not in ("verdict", "slug") and isinstance(value, (str, int, float)):
            yield f"  {key:<14} {value}"
