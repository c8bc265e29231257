"""Names with options: `kind[:name][:key=value,...]`, as policies and tasks are named on the command line."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

from surefoot.errors import InputError, nearest


def read_options(text: str, where: str, form: str = "key=value,key=value") -> dict[str, Any]:
    """`"min_terms=2,max_terms=4"` -> `{"min_terms": 2, "max_terms": 4}`; values are Python literals, else text.

    >>> read_options("hidden=(64,64),squash=true,name=reach", "policy")
    {'hidden': (64, 64), 'squash': True, 'name': 'reach'}
    """
    options = {}
    for pair in re.split(r",(?=\w+=)", text) if text else []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{where}: cannot read {pair!r}; expected {form}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def leading_options(text: str, where: str) -> tuple[dict[str, Any], str]:
    """Options and what stands behind them: the specification of another thing.

    >>> leading_options("by=a+b,gold=c,rg:gcd:min_value=2,max_value=9", "task")
    ({'by': 'a+b', 'gold': 'c'}, 'rg:gcd:min_value=2,max_value=9')
    """
    given = re.match(r"(\w+=[^,]*,)*", text)
    end = given.end() if given else 0
    return read_options(text[: max(0, end - 1)], where), text[end:]


@cache
def kinds(package: str) -> dict[str, str]:
    """The kinds that live in a package: its modules with a function `load`, by name (`masked-diffusion`).

    Modules are named, not imported: a kind that nobody asked for costs nothing, and may lack what it needs.
    """
    home = Path(importlib.import_module(package).__file__ or "").parent
    files = sorted(p for p in home.glob("[!_]*.py") if re.search(r"^def load\(", p.read_text(encoding="utf-8"), re.M))
    return {p.stem.replace("_", "-"): f"{package}.{p.stem}" for p in files}


def call(function: Any, options: dict[str, Any], where: str, *args: Any) -> Any:
    """`function(*args, **options)`, where an unknown option is an error that names the nearest one."""
    parameters = list(inspect.signature(function).parameters.values())
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters[len(args) :]]
        for key in options:
            if key not in known:
                raise InputError(f"{where}: no option {key!r}{nearest(key, known)}")
    return function(*args, **options)
