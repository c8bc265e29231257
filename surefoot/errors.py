"""The errors a user can meet: one line each, saying what, where, and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SurefootError(Exception):
    """Base of every error that Surefoot raises on purpose; `status` is the command's exit status."""

    status = 1


class InputError(SurefootError, ValueError):
    """Wrong usage or bad input (exit status 2)."""

    status = 2


class GuardStop(SurefootError):
    """A guard stopped the training; a checkpoint is kept (exit status 3)."""

    status = 3


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name: `"; did you mean 'grpo'?"`, or the known names when nothing is near.

    >>> nearest("gpro", ["grpo", "rloo"])
    "; did you mean 'grpo'?"
    """
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=8, cutoff=0.5)
    if close:  # among the near ones, swapped letters are the likeliest slip
        best = max(close, key=lambda c: _likeness(name, c) + _likeness(sorted(name), sorted(c)))
        return f"; did you mean {best!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {shown}" if names else ""


def _likeness(a: Sequence[str], b: Sequence[str]) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
