"""`surefoot cliff`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "how far a reward, or a run, is from a policy cliff"
EXAMPLES = ("three-arm", "gridworld")


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to analyse")
    what.add_argument("target", nargs="?", help="reward table (.json, .csv), MDP (.npz) or run folder")
    what.add_argument("--example", metavar="NAME", help=f"built in: {', '.join(EXAMPLES)}")
    what.add_argument("--weights", default="", help="weights of named rewards, as a=0.7,b=0.3")
    both = parser.add_argument_group("both")
    both.add_argument("--eps", type=float, default=0.01, help="size of the change of the reward to be robust against")
    both.add_argument("--tie-tol", type=float, default=1e-9, help="values this close count as tied")
    both.add_argument(
        "--beta",
        type=_grid,
        help="KL to the reference: a grid for a table, one number for a run (default there: the run's own)",
    )
    both.add_argument("--out", help="folder of the report (default: cliff-NAME, or cliff/ in the run)")
    both.add_argument("--json", action="store_true", help="print JSON; write a report only with --out")
    table = parser.add_argument_group("tables and MDPs")
    table.add_argument("--alpha", type=_grid, help="entropy bonus: a grid, as 0,0.02,0.1 (the default)")
    table.add_argument(
        "--stability", type=float, default=0.05, metavar="TV", help="total variation that a change of eps may cause"
    )
    run_ = parser.add_argument_group("runs")
    run_.add_argument("--window", type=int, default=10, metavar="STEPS", help="analyse the last steps of the run")
    run_.add_argument("--classes", default="answer", help="what counts as one answer: the final answer, or the text")
    run_.add_argument(
        "--fresh",
        type=int,
        metavar="N",
        help="N responses a prompt sampled anew from the newest checkpoint, not the log",
    )
    run_.add_argument("--prompts", type=int, default=8, help="with --fresh or --exact: so many of the last prompts")
    run_.add_argument(
        "--exact", action="store_true", help="enumerate all answers: each estimate (of --fresh, 64) beside the truth"
    )
    run_.add_argument("--floor", type=float, default=1e-4, help="with --exact: prefixes less likely are dropped")
    run_.add_argument("--ceiling", type=float, help="the largest reward there can be")
    run_.add_argument("--primary", metavar="REWARD", help="the named reward that the run is about")
    run_.add_argument("--false-accept", type=float, metavar="P", help="audited error rate of the verifier")
    run_.add_argument("--false-reject", type=float, metavar="P", help="audited error rate of the verifier")
    run_.add_argument("--audit", metavar="WRONG/N", help="wrong among accepted answers of this policy, by hand")


def run(args: argparse.Namespace) -> int:
    from surefoot.errors import InputError

    if (args.target is None) == (args.example is None):
        raise InputError("cliff: expected a table, an MDP or a run folder, or --example three-arm")
    if args.target and Path(args.target).is_dir():
        from surefoot.cli._cliff_run import show_run

        return show_run(args)
    from surefoot.cli._cliff_table import show_table

    return show_table(args)


def _grid(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers with commas") from None
    if any(not 0 <= v < float("inf") for v in values):
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers of at least 0")
    return values
