"""One HTML page about one or several runs, with everything it needs inside it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from surefoot.errors import InputError
from surefoot.files import write_aside
from surefoot.report.data import read_run

HERE = Path(__file__).parent


def report(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of `run_dirs` and return its path.

    Args:
        run_dirs: run folders; several are laid over each other in the curves and compared in the overview.
        out: the page; by default `report.html` in the run folder, or beside the first of several.

    Raises:
        InputError: no run, or a folder that is none.
    """
    folders = [Path(d) for d in run_dirs]
    if not folders:
        raise InputError("report: no run given; expected at least one run folder")
    runs = [read_run(folder) for folder in folders]
    for run, name in zip(runs, distinct([r["name"] for r in runs], folders), strict=True):
        run["name"] = name
    home = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    path = Path(out) if out else home / "report.html"
    write_aside(path, render(runs).encode("utf-8"))
    return path


def distinct(names: list[str], folders: list[Path]) -> list[str]:
    """Names of the runs; the parent folder is added where two are the same."""
    return [f"{f.resolve().parent.name}/{n}" if names.count(n) > 1 else n for n, f in zip(names, folders, strict=True)]


def render(runs: list[dict]) -> str:
    """The page as text. The data is escaped so that no text in it can end its own script element."""
    data = json.dumps({"runs": runs}, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    filled = {
        "TITLE": html.escape("Surefoot: " + ", ".join(r["name"] for r in runs)),
        "STYLE": (HERE / "style.css").read_text(encoding="utf-8"),
        "CHARTS": (HERE / "charts.js").read_text(encoding="utf-8"),
        "SCRIPT": (HERE / "page.js").read_text(encoding="utf-8"),
        "DATA": data,
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    before, *pieces = page.split("{{")
    out = [before]
    for piece in pieces:
        name, rest = piece.split("}}", 1)
        out += [filled[name], rest]
    return "".join(out)
