"""`surefoot leaderboard`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "tune, compare and stress many methods on several tasks; a page with tables and pictures"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="slugs; none takes all for verifiable rewards")
    parser.add_argument(
        "--task", action="append", help="again for each task; none takes sums, divisors and counting letters"
    )
    parser.add_argument("--policy", default="pebble", help="as for train")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds: 0, 1, ...")
    parser.add_argument("--steps", type=int, default=30, help="batches to train on")
    parser.add_argument("--problems", type=int, default=256, help="held-out problems")
    parser.add_argument("--out", default="runs/leaderboard", help="folder of the runs; the same one again goes on")
    parser.add_argument("--page", default="leaderboard.md", help="the page; its pictures go beside it")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time on this machine")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster at this address; local starts one here")
    parser.add_argument("--quiet", action="store_true", help="no line for each run")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from transformers.utils import logging

    from surefoot import methods
    from surefoot.comparison.leaderboard import Plan, leaderboard
    from surefoot.comparison.leaderboard_page import write_page

    logging.disable_progress_bar()  # one a loaded checkpoint is noise
    plan = Plan(
        methods=tuple(args.methods or (m for m in methods.names() if ".rlvr." in methods.modules()[m])),
        tasks=tuple(args.task or Plan(()).tasks),
        policy=args.policy,
        seeds=args.seeds,
        steps=args.steps,
        problems=args.problems,
    )
    found = leaderboard(plan, Path(args.out), args.jobs, args.ray, not args.quiet)
    command = " ".join(
        ["surefoot leaderboard", *args.methods, f"--seeds {args.seeds} --steps {args.steps} --jobs {args.jobs}"]
    )
    written = write_page(found, Path(args.page), command)
    if args.json:
        print(json.dumps(found.to_dict()))
    else:
        print("\n".join(f"written  {path}" for path in written))
    return 0
