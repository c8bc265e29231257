"""`surefoot bench`."""

from __future__ import annotations

import argparse

HELP = "measure speed and memory: against TRL, against the arithmetic limit, as the work grows"


def arguments(parser: argparse.ArgumentParser) -> None:
    import os

    from surefoot.bench.cases import CASES

    parser.add_argument("what", choices=["trl"], help="trl: beside TRL's GRPOTrainer")
    parser.add_argument("--case", action="append", help=f"again for each; none takes {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=10, help="steps of each side that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each side before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    from surefoot.bench.cases import CASES, find
    from surefoot.bench.versus import table, versus

    found = []
    for case in [find(name) for name in args.case or CASES]:
        found.append(
            versus(
                case,
                args.steps,
                args.warmup,
                args.threads,
                args.device,
                lambda line: print(line, file=sys.stderr, flush=True),
            )
        )
        if not args.json:
            print(table(found[-1]), flush=True)
    if args.json:
        print(json.dumps(found))
    return 0
