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


INTRODUCTION = """# The algebra

Generated from the code by `python -m surefoot.report.algebra > docs/algebra.md`.

A published method is a composition of parts, one a slot. This page lists the parts that exist, the losses and methods
that are made of them, and the columns through which they speak. `surefoot show SLUG` prints one method with its
equations; every function's docstring has its source, its shapes and a worked number, which a test checks.

| slot | what it does | when |
|---|---|---|
| prompts, rollout | draw prompts; sample and judge trajectories | once a batch |
| reward | named rewards to one | once a batch, detached |
| advantage | credit of every step | once a batch, detached |
| select | which steps train | once a batch, detached |
| surrogate | loss of every step | every minibatch, with gradient |
| regularizers | losses that are added | every minibatch, with gradient |
| aggregate | weight of every step: the loss is `sum(weights * loss)` | every minibatch |
| controllers | metrics in, new coefficients out | after the update |
| update, reference | how often and how far; what the `ref_*` columns are of | |

In the formulas pi is the policy, old the policy that sampled, rho = pi / old a ratio, A an advantage, r a reward, and
sg stops the gradient. Axes are n trajectories by t steps, G trajectories of one prompt to a group, v candidates.
Everything is in nats.
"""

COMMON = {"Uniform()", "OnPolicy()", "Sum()", "Everything()", "Update()", "Start()"}  # what most methods have


def constants(module) -> list[tuple[str, Part]]:
    """Compositions that a module names (`DPO`)."""
    return [(k, v) for k, v in vars(module).items() if k.isupper() and k[0] != "_" and isinstance(v, Part)]


def reads(part: type[Part]) -> str:
    """The columns that a part reads at its defaults; nothing for one that cannot be made without fields."""
    try:
        found = part().reads
    except (TypeError, ValueError):
        return ""
    return ", ".join(f"`{c}`" for c in found)


def markdown() -> str:
    """The whole page."""
    shown = [(module, public(module)) for module in modules() if public(module)]
    lines = [INTRODUCTION, "## Parts and functions", "", "| module | what is in it |", "|---|---|"]
    for module, _ in shown:
        name = module.__name__.removeprefix("surefoot.")
        lines.append(f"| [`{name}`](#{name.replace('.', '')}) | {_cell(first_sentence(module))} |")
    for module, rows in shown:
        name = module.__name__.removeprefix("surefoot.")
        lines += ["", f"### `{name}`", "", "| name | what | reads | defaults |", "|---|---|---|---|"]
        for name, obj in rows:
            part = obj if inspect.isclass(obj) and issubclass(obj, Part) else None
            values = defaults(part) if part else ""
            what, columns = _cell(first_sentence(obj)), reads(part) if part else ""
            lines.append(f"| `{name}` | {what} | {columns} | {_cell(f'`{values}`' if values else '')} |")
        if named := constants(module):
            lines += ["", "| composition | of |", "|---|---|"]
            lines += [f"| `{name}` | {_cell(f'`{compact(part)}`')} |" for name, part in named]
    lines += ["", "## Methods", "", f"Slots that hold {_listed(COMMON)}, as in most methods, are left out."]
    for slug in methods.names():
        method = methods.find(slug)
        paper = method.paper
        source = f"[{paper.title or paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper and paper.arxiv else ""
        lines += ["", f"### {slug}", "", *([source, ""] if source else []), "| slot | part |", "|---|---|"]
        lines += [f"| {slot} | {_cell(f'`{part}`')} |" for slot, part in composition(method) if part not in COMMON]
    lines += ["", "## Columns", "", "| column | axes | kind | made by | meaning |", "|---|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.axes} | {c.kind} | {c.source} | {c.meaning} |" for c in COLUMNS.values()]
    return "\n".join(lines) + "\n"


def _listed(parts: set[str]) -> str:
    return ", ".join(f"`{p}`" for p in sorted(parts))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
