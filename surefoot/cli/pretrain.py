"""`surefoot pretrain`: how pebble, the model that ships with the package, was made."""

from __future__ import annotations

import argparse

HELP = "make the base model pebble again from generated worked solutions"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="pebble", help="folder to write the model to")
    parser.add_argument("--steps", type=int, help="none takes the shipped model's number of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, help="tokens of a batch; none takes the shipped model's number")
    parser.add_argument("--optimizer", help="adamw, muon or aro, for everything; none takes the shipped model's pair")
    parser.add_argument("--lr", type=float, help="peak learning rate of --optimizer; none takes 0.01")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from surefoot.errors import InputError
    from surefoot.pretraining import pretrain
    from surefoot.pretraining.card import write_card

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"output folder {args.out!r} exists and is not empty; choose another --out")
    named = {k: v for k in ("steps", "tokens", "optimizer", "lr") if (v := getattr(args, k)) is not None}
    pretrain(out, seed=args.seed, **named)
    if args.optimizer is None and args.tokens is None:  # the card is pebble's, and measures for minutes
        write_card(out)
    print(f"wrote {out}")
    return 0
