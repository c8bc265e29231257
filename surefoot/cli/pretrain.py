"""`surefoot pretrain`: how pebble, the model that ships with the package, was made."""

from __future__ import annotations

import argparse

HELP = "make the base model pebble again from generated worked solutions"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="pebble", help="folder to write the model to")
    parser.add_argument("--steps", type=int, help="none takes the shipped model's number of steps")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from surefoot.errors import InputError
    from surefoot.pretraining import pretrain
    from surefoot.pretraining.card import write_card

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"output folder {args.out!r} exists and is not empty; choose another --out")
    pretrain(out, seed=args.seed, **({} if args.steps is None else {"steps": args.steps}))
    write_card(out)
    print(f"wrote {out}")
    return 0
