"""`surefoot fetch`: bring a small open model, or a task's data, into the local cache."""

from __future__ import annotations

import argparse

HELP = "bring a small open model, or a task's data, into the local cache"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", help="smollm2-135m, a Hugging Face id (owner/name), or a task with data (offline:Hopper-v5)"
    )


def run(args: argparse.Namespace) -> int:
    from surefoot import tasks
    from surefoot.policies.fetch import fetch
    from surefoot.specs import kinds

    task = args.what.partition(":")[0] in kinds(tasks.__name__)
    print(f"{args.what} is at {tasks.fetch(args.what) if task else fetch(args.what)}")
    return 0
