"""`surefoot report`."""

from __future__ import annotations

import argparse

HELP = "one self-contained HTML page about one or several runs"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; several are laid over each other")
    parser.add_argument("--out", help="the page; none takes report.html in the run, or beside several")
    parser.add_argument("--figure", metavar="STEM", help="also draw the first run as STEM.png and STEM.svg")


def run(args: argparse.Namespace) -> int:
    from surefoot.report import report

    print(report(args.runs, args.out))
    if args.figure:
        from surefoot.report.figures import run_figure

        for path in run_figure(args.runs[0], args.figure):
            print(path)
    return 0
