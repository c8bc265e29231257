"""The systems of the library, one row each: `papers.toml`, with what is there in the code and what was measured."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from surefoot.errors import InputError, nearest
from surefoot.files import read_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PaperRow:
    """One system.

    Attributes:
        slug: its name everywhere: method file, claim, test, command.
        title, arxiv, year: of the paper.
        kind: what it works on: language, preference, distillation, agents, control, ...
        code: GitHub repository of the authors' code, empty where none is public.
        module: where it is implemented; None until it is.
        verdict: of its claim (`reproduced`, `not reproduced`, `refuted`); None until it has run.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    kind: str
    code: str
    module: str | None
    verdict: str | None


def papers() -> list[PaperRow]:
    """Every system, by slug. Module and verdict are looked up, so they are never stale."""
    modules = _modules()
    return [
        PaperRow(**row, module=modules.get(_file(row["slug"])), verdict=result(row["slug"]).get("verdict"))
        for row in _rows()
    ]


def paper(slug: str) -> PaperRow:
    """The row of one system.

    Raises:
        InputError: unknown slug, with the nearest one.
    """
    rows = {row.slug: row for row in papers()}
    if slug not in rows:
        raise InputError(f"unknown paper {slug!r}{nearest(slug, rows)}")
    return rows[slug]


def module_of(slug: str) -> str | None:
    """`surefoot.methods.<family>.<slug>` where that file exists."""
    return _modules().get(_file(slug))


def result(slug: str) -> dict[str, Any]:
    """The recorded result of the paper's claim; empty until it has run."""
    path = HERE / "claims" / "results" / f"{slug}.json"
    return read_json(path) if path.is_file() else {}


@cache
def _rows() -> tuple[dict[str, Any], ...]:
    with open(HERE / "papers.toml", "rb") as f:
        rows = tomllib.load(f)["paper"]
    return tuple({"code": ""} | row for row in rows)


def _file(slug: str) -> str:
    return slug.replace("-", "_")


def _modules() -> dict[str, str]:
    """File name -> module, for every method file."""
    root = HERE / "methods"
    return {
        p.stem: ".".join(("surefoot", "methods", *p.relative_to(root).with_suffix("").parts))
        for p in sorted(root.rglob("*.py"))
        if p.stem != "__init__"
    }
