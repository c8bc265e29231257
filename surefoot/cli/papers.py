"""`surefoot papers`."""

from __future__ import annotations

import argparse
import sys

HELP = "every published system: slug, title, arXiv, kind, module, verdict"
KEYS = ("slug", "title", "arxiv", "kind", "module", "verdict")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", help="only this kind: language, preference, control, ...")
    parser.add_argument("--done", action="store_true", help="only those that are implemented")
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace) -> int:
    from surefoot.errors import InputError, nearest
    from surefoot.papers import papers

    rows = papers()
    kinds = {row.kind for row in rows}
    if args.kind and args.kind not in kinds:
        raise InputError(f"--kind: unknown kind {args.kind!r}{nearest(args.kind, kinds)}")
    shown = [r for r in rows if (not args.kind or r.kind == args.kind) and (r.module or not args.done)]
    if args.json:
        import json

        print(json.dumps([{key: getattr(row, key) for key in KEYS} for row in shown], indent=1))
        return 0
    print_table(shown, rows)
    return 0


def print_table(shown: list, rows: list) -> None:
    """A table as wide as the terminal, and how much of the library is there."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    facts = {
        "slug": [r.slug for r in shown],
        "arXiv": [r.arxiv for r in shown],
        "kind": [r.kind for r in shown],
        "here": ["yes" if r.module else "-" for r in shown],
        "claim": [r.verdict or "-" for r in shown],
    }
    for name, cells in facts.items():
        table.add_column(name, no_wrap=True, min_width=max(map(len, [name, *cells])))
    table.add_column("title", overflow="ellipsis", no_wrap=True)
    for *cells, row in zip(*facts.values(), shown, strict=True):
        table.add_row(*cells, Text(row.title))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    there, judged = sum(r.module is not None for r in rows), sum(r.verdict is not None for r in rows)
    console.print(
        f"\n{len(rows)} systems, {there} implemented, {judged} with a claim that has run; surefoot show SLUG tells more"
    )
