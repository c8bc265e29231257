"""`surefoot fetch`: bring a small open model into the local cache."""

from __future__ import annotations

import argparse

HELP = "bring a small open model into the local cache"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="smollm2-135m, or a Hugging Face id (owner/name)")


def run(args: argparse.Namespace) -> int:
    from surefoot.policies.fetch import fetch

    print(f"{args.model} is at {fetch(args.model)}")
    return 0
