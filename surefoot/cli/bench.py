"""`surefoot bench`."""

from __future__ import annotations

import argparse

HELP = "measure speed and memory: against TRL, against the arithmetic limit, as the work grows"


def arguments(parser: argparse.ArgumentParser) -> None:
    import os

    from surefoot.bench.cases import CASES

    parser.add_argument(
        "what",
        choices=["trl", "scaling", "gpu", "page"],
        help="trl: beside TRL's GRPOTrainer; scaling: step time as the work grows; gpu: trl on CUDA, with utilisation "
        "and bandwidth; page: write docs/performance.md from what the others printed with --json",
    )
    parser.add_argument("files", nargs="*", help="page: files of JSON, of trl and of scaling")
    parser.add_argument("--case", action="append", help=f"again for each; none takes {', '.join(CASES)}")
    parser.add_argument("--axis", action="append", help="scaling: again for each; none takes all")
    parser.add_argument("--steps", type=int, default=10, help="steps (of each side) that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each side before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each side")
    parser.add_argument("--out", default="docs/performance.md", help="page: the file to write, its picture beside it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    if args.files and args.what != "page":
        from surefoot.errors import InputError

        raise InputError(f"bench {args.what}: takes no files, got {args.files[0]!r}")
    return {"trl": _trl, "gpu": _gpu, "scaling": _scaling, "page": _page}[args.what](args)


def _trl(args: argparse.Namespace, device: str = "cpu") -> int:
    import json
    import sys

    from surefoot.bench.cases import CASES, find
    from surefoot.bench.versus import table, versus

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = []
    for case in [find(name) for name in args.case or CASES]:
        found.append(versus(case, args.steps, args.warmup, args.threads, device, say))
        if not args.json:
            print(table(found[-1]), flush=True)
    if args.json:
        print(json.dumps(found))
    return 0


def _gpu(args: argparse.Namespace) -> int:
    import torch

    from surefoot.errors import InputError

    if not torch.cuda.is_available():
        raise InputError("bench gpu: no CUDA device here (torch.cuda.is_available() is false)")
    return _trl(args, "cuda")


def _scaling(args: argparse.Namespace) -> int:
    import json

    import torch

    from surefoot.bench.scaling import AXES, curve, table
    from surefoot.errors import InputError, nearest

    unknown = set(args.axis or ()) - set(AXES)
    if unknown:
        name = min(unknown)
        raise InputError(f"--axis {name!r}: expected one of {', '.join(AXES)}{nearest(name, AXES)}")
    torch.set_num_threads(args.threads)
    curves = []
    for axis in args.axis or AXES:
        curves.append(curve(axis, AXES[axis], args.steps))
        if not args.json:
            print(table(curves[-1]), end="\n\n", flush=True)
    if args.json:
        print(json.dumps(curves))
    return 0


def _page(args: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from surefoot.bench import page
    from surefoot.errors import InputError

    against, curves = [], []
    for name in args.files:
        try:
            found = json.loads(Path(name).read_text())
            for record in found:
                (curves if "axis" in record else against).append(record)
        except (json.JSONDecodeError, TypeError):
            raise InputError(
                f"{name}: expected the JSON that `surefoot bench trl --json` or `scaling --json` prints"
            ) from None
    if not against and not curves:
        raise InputError("bench page: expected files of JSON")
    out = Path(args.out)
    notes = out.with_suffix(".notes.md")
    out.write_text(page.page(page.machine(), against, curves, notes.read_text() if notes.exists() else ""))
    if curves:
        page.picture(curves, out.with_suffix(".png"))
    print(out)
    return 0
