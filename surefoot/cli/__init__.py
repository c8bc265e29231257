"""The command: one small file a verb; each is imported only when it is called."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from pathlib import Path

from surefoot.errors import InputError, SurefootError, nearest

# Threads that wait by spinning cost most of a core once another process runs; libgomp reads this when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

VERBS = tuple(sorted(p.stem for p in Path(__file__).parent.glob("[!_]*.py")))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(f"{self.prog}: {message}")


def main(argv: list[str] | None = None) -> int:
    """Run `surefoot VERB ...`; returns the exit status (0, 1, 2, 3 or 130; see the README)."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv)
    except SurefootError as e:
        print(f"surefoot: {_one_line(e)}", file=sys.stderr)
        return e.status
    except KeyboardInterrupt:
        print("surefoot: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        print(f"surefoot: {e.strerror}: {e.filename or 'output'}; what was written before is kept", file=sys.stderr)
        return 2


def _dispatch(argv: list[str]) -> int:
    import surefoot

    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"surefoot {surefoot.__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        raise InputError(f"unknown verb {verb!r}{nearest(verb, VERBS)}; see surefoot --help")
    module = importlib.import_module(f"surefoot.cli.{verb}")
    parser = _Parser(
        prog=f"surefoot {verb}", description=module.HELP, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    module.arguments(parser)
    return module.run(parser.parse_args(rest))


def _overview() -> str:
    lines = [f"  {verb:<11} {importlib.import_module(f'surefoot.cli.{verb}').HELP}" for verb in VERBS]
    return "\n".join(
        [
            "surefoot: policy optimization that keeps its footing",
            "",
            *lines,
            "",
            "surefoot VERB --help tells more; surefoot train with no flags runs the main job.",
        ]
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
