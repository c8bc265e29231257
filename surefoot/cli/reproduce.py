"""`surefoot reproduce`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "run the experiment behind a paper's claim: reproduced, not reproduced or refuted"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("slug", nargs="*", help="papers (surefoot papers lists them)")
    parser.add_argument("--all", action="store_true", help="every claim that is there")
    parser.add_argument("--size", default="quick", help="quick (at most a minute) or full")
    parser.add_argument("--out", help="folder for pictures and outcomes, one folder a paper")
    parser.add_argument("--record", action="store_true", help="keep the outcome in the package (for developers)")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")


def run(args: argparse.Namespace) -> int:
    from surefoot import claims
    from surefoot.errors import InputError

    slugs = [m.replace("_", "-") for m in claims.modules()] if args.all else args.slug
    if not slugs:
        raise InputError("reproduce: name a paper, or give --all")
    asked = [claims.claim(slug) for slug in slugs]
    records = []
    for one in asked:
        out = Path(args.out) / one.slug if args.out else None
        outcome = claims.reproduce(one.slug, args.size, out=out, record=args.record)
        records.append(claims.result(one, outcome, args.size, one.seeds))
        if not args.json:
            print(_shown(records[-1]))
    if args.json:
        print(json.dumps(claims.plain(records), indent=1))
    return 0


def _shown(record: dict) -> str:
    lines = [
        f"{record['slug']}: {record['verdict']}  ({record['seconds']:.1f} s, seeds {record['seeds']})",
        f"  claim       {record['statement']}",
        f"  refuted if  {record['refuted_if']}",
    ]
    width = max((len(row["name"]) for row in record["measured"]), default=0)
    for row in record["measured"]:
        beside = [f"{k} {_number(row[k])}" for k in ("expected", "bound", "spread") if row.get(k) is not None]
        lines.append(f"  {row['name']:<{width}}  {_number(row['value']):>9}  {', '.join(beside)}".rstrip())
    return "\n".join([*lines, *([f"  note        {record['notes']}"] if record["notes"] else [])])


def _number(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_number, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
