"""`surefoot compare`."""

from __future__ import annotations

import argparse

HELP = "train several methods with several seeds; a table, a picture, which differences are real"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="slugs (surefoot papers), or module:OBJECT")
    parser.add_argument("--task", help="as for train; none takes the main job's")
    parser.add_argument("--policy", default="pebble", help="as for train")
    parser.add_argument("--reward", help="as for train")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds: 0, 1, ...")
    parser.add_argument("--steps", type=int, help="batches to train on; none takes train.steps")
    parser.add_argument("--set", action="append", default=[], metavar="PART.FIELD=VALUE", help="for every method")
    parser.add_argument("--out", help="folder; the same one again goes on; none takes a fresh one under runs/")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on this machine")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster at this address; local starts one here")
    parser.add_argument("--quiet", action="store_true", help="no line for each run")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from surefoot import tasks
    from surefoot.cli.train import overrides
    from surefoot.comparison import compare
    from surefoot.comparison.output import text

    found = compare(
        args.methods,
        args.task or tasks.DEFAULT,
        args.policy,
        seeds=args.seeds,
        steps=args.steps,
        out=args.out,
        set=overrides(args.set),
        reward=args.reward,
        jobs=args.jobs,
        ray=args.ray,
        progress=not args.quiet,
    )
    if args.json:
        import json

        from surefoot.report.data import finite

        print(json.dumps(finite(found.to_dict())))
    else:
        print(text(found))
    return 0
