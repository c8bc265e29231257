"""`surefoot bench`."""

from __future__ import annotations

import argparse

HELP = "measure speed and memory: against TRL, against the arithmetic limit, as the work grows"


def arguments(parser: argparse.ArgumentParser) -> None:
    import os

    from surefoot.bench.cases import CASES

    parser.add_argument(
        "what", choices=["trl", "solvers"], help="trl: beside TRL's GRPOTrainer; solvers: exact ones, as MDPs grow"
    )
    parser.add_argument("--case", action="append", help=f"again for each; none takes {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=10, help="steps of each side that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each side before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    if args.what == "solvers":
        return _solvers(args.json)
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


def _solvers(as_json: bool) -> int:
    import json
    from dataclasses import asdict

    from surefoot.claims import machine
    from surefoot.exact.bench import solver_times

    found = []
    if not as_json:
        print(f"{'world':<8} {'solver':<28} {'states':>8} {'seconds':>9} {'iterations':>11} {'error of V':>11}")
    for t in solver_times():
        found.append(asdict(t))
        if not as_json:
            print(
                f"{t.world:<8} {t.solver:<28} {t.states:>8} {t.seconds:>9.3f} {t.iterations:>11} {t.error:>11.1e}",
                flush=True,
            )
    if as_json:
        print(json.dumps({"machine": machine(), "times": found}, indent=1))
    return 0
