"""`surefoot train`."""

from __future__ import annotations

import argparse

from surefoot.errors import InputError

HELP = "train a policy on a task with a method (no flags: the main job)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        help="pebble, a cached name, a folder, a .gguf, a Hugging Face id, <kind>[:key=value,...]; none: the method's",
    )
    parser.add_argument("--task", help="rg:<dataset>[:key=value,...], a JSONL or Parquet path, <kind>[:...]")
    parser.add_argument("--reward", help="for a file: exact, math or module:function")
    parser.add_argument("--method", default="grpo", help="a slug (surefoot papers) or module:OBJECT")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PART.FIELD=VALUE",
        help="change a field of the method (surrogate.low=0.3) or the trainer (train.lr=1e-3)",
    )
    parser.add_argument("--steps", type=int, help="batches to train on; none takes train.steps")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--teacher", help="for a method that reads one: a policy, or trained:method=grpo,steps=8")
    parser.add_argument("--out", help="run folder; none takes a fresh one under runs/")
    parser.add_argument("--resume", metavar="DIR", help="go on with a run, or from one of its checkpoints")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    import surefoot as sf

    if args.resume:
        result = sf.resume(args.resume, progress=not args.quiet)
    else:
        result = sf.train(
            args.policy,
            args.task,
            args.method,
            reward=args.reward,
            steps=args.steps,
            seed=args.seed,
            out=args.out,
            set=overrides(args.set),
            teacher=args.teacher,
            progress=not args.quiet,
        )
    if args.json:
        import json

        drop = ("samples", "per_problem")
        print(
            json.dumps(
                {
                    "folder": str(result.folder),
                    "seconds": result.seconds,
                    "before": {k: v for k, v in result.before.items() if k not in drop},
                    "after": {k: v for k, v in result.after.items() if k not in drop},
                }
            )
        )
        return 0
    print(summary(result))
    return 0


def overrides(pairs: list[str]) -> dict[str, str]:
    """`["surrogate.low=0.3"]` -> `{"surrogate.low": "0.3"}`."""
    split = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path:
            raise InputError(f"--set {pair!r}: expected part.field=value")
        split[path.strip()] = value.strip()
    return split


def summary(result) -> str:
    """Accuracy before and after, and where the report is."""
    from surefoot.evaluation.evaluate import shown

    lines = [f"trained {result.seconds:.1f} s"]
    for when, record in (("before", result.before), ("after", result.after)):
        if not record:
            continue
        line = f"{when:>7}"
        for key in [k for k in record if k == record["headline"] or k.startswith(("pass@", "maj@"))]:
            if not key.endswith("_interval"):
                line += f"  {key} {shown(record, key)}"
        lines.append(f"{line}  ({record['n']} held-out problems)")
    lines.append(f"report  {result.folder / 'report.html'}")
    return "\n".join(lines)
