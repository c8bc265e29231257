"""`docs/algebra.md`, generated from the code: `python -m surefoot.report.algebra > docs/algebra.md`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields
from typing import Any

import surefoot.objective
import surefoot.rollout
from surefoot import methods
from surefoot.method import SLOTS, Method, callable_name
from surefoot.objective.divergences import Generator
from surefoot.parts import Part
from surefoot.rollouts import COLUMNS


def first_sentence(obj: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(obj) or "").split("\n\n")[0].split())


def modules() -> list:
    """The modules that hold parts and functions."""
    return [
        importlib.import_module(m.name)
        for package in (surefoot.objective, surefoot.rollout)
        for m in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ]


def public(module) -> list[tuple[str, Any]]:
    """Public functions and parts defined in a module, in the order of its text."""
    found = [
        (name, obj)
        for name, obj in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(obj) or inspect.isclass(obj) and issubclass(obj, Part))
        and obj.__module__ == module.__name__
    ]
    return sorted(
        found,
        key=lambda pair: (
            pair[1].__code__.co_firstlineno if inspect.isfunction(pair[1]) else inspect.getsourcelines(pair[1])[1]
        ),
    )


def defaults(part: type[Part]) -> str:
    """`low=0.2, high=None`."""
    shown = [
        f"{f.name}={_brief(f.default)}"
        for f in fields(part)
        if f.init and f.default is not inspect.Parameter.empty and "MISSING" not in repr(f.default)
    ]
    return ", ".join(shown)


def _brief(value: object) -> str:
    if isinstance(value, Part):
        return compact(value)
    if isinstance(value, Generator):
        return value.name
    return callable_name(value) if callable(value) else repr(value)


def compact(part: Part) -> str:
    """A part as one writes it, with the fields that are not at their defaults."""
    shown = []
    for f in fields(part):
        value = getattr(part, f.name)
        if f.init and (value != f.default or "MISSING" in repr(f.default)) and value != {}:
            shown.append(f"{f.name}={_brief(value)}")
    return f"{type(part).__name__}({', '.join(shown)})"


def composition(method: Method) -> list[tuple[str, str]]:
    """Slot and part, for showing."""
    rows = []
    for slot in SLOTS:
        value = getattr(method, slot)
        if isinstance(value, tuple):
            rows += [(slot, compact(part)) for part in value]
        else:
            rows.append((slot, compact(value)))
    return rows


def markdown() -> str:
    """The whole page."""
    lines = [
        "# The algebra",
        "",
        "Generated from the code by `python -m surefoot.report.algebra > docs/algebra.md`.",
        "",
        "## Methods",
        "",
    ]
    for slug in methods.names():
        method = methods.find(slug)
        link = (
            f" ([arXiv {method.paper.arxiv}](https://arxiv.org/abs/{method.paper.arxiv}))"
            if (method.paper and method.paper.arxiv)
            else ""
        )
        lines += [f"### {slug}{link}", "", "| slot | part |", "|---|---|"]
        lines += [f"| {slot} | `{part}` |" for slot, part in composition(method)]
        lines.append("")
    lines += ["## Parts and functions", ""]
    for module in modules():
        rows = public(module)
        if not rows:
            continue
        lines += [
            f"### `{module.__name__}`",
            "",
            first_sentence(module),
            "",
            "| name | what | defaults |",
            "|---|---|---|",
        ]
        for name, obj in rows:
            values = defaults(obj) if inspect.isclass(obj) and issubclass(obj, Part) else ""
            lines.append(f"| `{name}` | {_cell(first_sentence(obj))} | {_cell(f'`{values}`' if values else '')} |")
        lines.append("")
    lines += ["## Columns", "", "| column | axes | kind | made by | meaning |", "|---|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.axes} | {c.kind} | {c.source} | {c.meaning} |" for c in COLUMNS.values()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
