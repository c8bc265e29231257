"""Reward tables and MDPs from files (JSON, CSV, NPZ), and the examples that are built in."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from surefoot.errors import InputError, nearest
from surefoot.exact import cliff
from surefoot.exact.mdp import MDP
from surefoot.files import read_json

Table = Float[np.ndarray, "s a"]
STATE_NAMES, ACTION_NAMES = ("state", "prompt"), ("action", "response")


@dataclass(frozen=True)
class Problem:
    """An MDP with the names of what is in it.

    Attributes:
        name: of the file or the example.
        mdp: a reward table is an MDP with gamma = 0, started in each of its rows with the same probability.
        states, actions: their names.
        rewards: the named rewards that were combined; empty for a single one.
        weights: of each of them; not negative, 1 in sum.
        reference: a reference policy; None takes the uniform one.
    """

    name: str
    mdp: MDP
    states: tuple[str, ...]
    actions: tuple[str, ...]
    rewards: Mapping[str, Table] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    reference: Table | None = None


def read(path: str | Path, weights: Mapping[str, float] | None = None) -> Problem:
    """A problem from a file: `.json`, `.csv` or `.npz`.

    JSON: a table (list of rows, one number an action), or an object with `reward` (such a table) or `rewards`
    ({name: table}), and perhaps `weights`, `states`, `actions`, `reference`.
    CSV: a header of action names and one row a state (a first column without numbers holds their names); or one row a
    response, with a `state` or `prompt` column, an `action` or `response` column, and a column a reward.
    NPZ: `P` [s, a, s'], `R` [s, a], `gamma`, and perhaps `mu` [s].

    Raises:
        InputError: what is wrong, where, and what was expected.
    """
    path = Path(path)
    readers = {".json": _json, ".csv": _csv, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: unknown kind of file; expected .json, .csv, .npz or a run folder")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return readers[path.suffix.lower()](path, dict(weights or {}))


def table(
    name: str,
    rewards: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
    states: Sequence[str] | None = None,
    actions: Sequence[str] | None = None,
    reference: Any = None,
) -> Problem:
    """A problem from one or several reward tables of the same shape.

    Raises:
        InputError: tables that are not rectangular, not finite or not of one shape; weights or names that do not fit.
    """
    if not rewards:
        raise InputError(f"{name}: no reward; expected at least one table")
    tables = {k: _matrix(v, f"{name}: reward {k!r}") for k, v in rewards.items()}
    shape = next(iter(tables.values())).shape
    for k, v in tables.items():
        if v.shape != shape:
            raise InputError(f"{name}: reward {k!r} has shape {v.shape}; expected {shape} as the others have")
    share = _weights(name, tables, weights or {})
    combined = cliff.effective_reward(np.stack(list(tables.values())), np.array(list(share.values())))
    base = None if reference is None else _policy(_matrix(reference, f"{name}: reference"), shape, name)
    n = shape[0]
    stay = np.repeat(np.eye(n), shape[1], 0).reshape(n, shape[1], n)
    mdp = MDP(stay, combined, 0.0, np.full(n, 1 / n))
    several = len(tables) > 1
    return Problem(
        name,
        mdp,
        _names(name, "states", states, n),
        _names(name, "actions", actions, shape[1]),
        tables if several else {},
        share if several else {},
        base,
    )


def three_arm() -> Problem:
    """The paper's smallest cliff: two equally good arms and a bad one."""
    return table("three-arm", {"reward": [[1, 1, 0]]}, states=["prompt"], actions=["a", "b", "c"])


def gridworld() -> Problem:
    """The 4 by 3 grid of Russell and Norvig: 0.8 ahead, 0.1 to each side, -0.04 a step, exits of +1 and -1."""
    exits = {(3, 2): 1.0, (3, 1): -1.0}
    cells = [(x, y) for y in range(3) for x in range(4) if (x, y) not in {(1, 1), *exits}]
    moves = {"up": (0, 1), "right": (1, 0), "down": (0, -1), "left": (-1, 0)}
    place, steps, end = {cell: i for i, cell in enumerate(cells)}, list(moves.values()), len(cells)
    p, r = np.zeros((end + 1, 4, end + 1)), np.full((end + 1, 4), -0.04)
    p[end, :, end], r[end] = 1, 0
    for (x, y), i in place.items():
        for a in range(4):
            for turn, chance in ((0, 0.8), (1, 0.1), (3, 0.1)):
                dx, dy = steps[(a + turn) % 4]
                to = (x + dx, y + dy)
                p[i, a, end if to in exits else place.get(to, i)] += chance
                r[i, a] += chance * exits.get(to, 0.0)
    start = np.eye(1, end + 1)[0]
    names = [f"({x + 1},{y + 1})" for x, y in cells] + ["end"]
    return Problem("gridworld", MDP(p, r, 0.99, start), tuple(names), tuple(moves))


EXAMPLES = {"three-arm": three_arm, "gridworld": gridworld}


def example(name: str) -> Problem:
    """A built-in example.

    Raises:
        InputError: no such example.
    """
    if name not in EXAMPLES:
        raise InputError(f"unknown example {name!r}{nearest(name, EXAMPLES)}")
    return EXAMPLES[name]()


def parse_weights(text: str) -> dict[str, float]:
    """`a=0.7,b=0.3` as a dict.

    Raises:
        InputError: not of that form.
    """
    out = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        try:
            out[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"weights: {item!r}; expected NAME=NUMBER,NAME=NUMBER")
    return out


def _json(path: Path, weights: dict[str, float]) -> Problem:
    data: Any = read_json(path)
    if isinstance(data, list):
        data = {"reward": data}
    if not isinstance(data, dict) or not ({"reward", "rewards"} & data.keys()):
        raise InputError(f'{path}: expected a list of rows, or an object with "reward" or "rewards"')
    known = {"reward", "rewards", "weights", "states", "actions", "reference"}
    for key in data.keys() - known:
        raise InputError(f"{path}: unknown key {key!r}{nearest(key, known)}")
    rewards = data.get("rewards", {"reward": data.get("reward")})
    if not isinstance(rewards, dict):
        rewards = {"reward": rewards}
    return table(
        str(path),
        rewards,
        weights or data.get("weights"),
        data.get("states"),
        data.get("actions"),
        data.get("reference"),
    )


def _csv(path: Path, weights: dict[str, float]) -> Problem:
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = [row for row in csv.reader(f) if any(cell.strip() for cell in row)]
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; expected CSV") from None
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} rows; expected a header and at least one row of rewards")
    header = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputError(f"{path} row {number}: {len(row)} cells; expected {len(header)} as in the header")
    state = next((c for c in header if c.lower() in STATE_NAMES), None)
    action = next((c for c in header if c.lower() in ACTION_NAMES), None)
    if state and action:
        return _long(path, header, rows[1:], state, action, weights)
    named = any(not _is_number(row[0]) for row in rows[1:])
    body = [
        [_number(cell, path, i, header[j]) for j, cell in enumerate(row) if not (named and j == 0)]
        for i, row in enumerate(rows[1:], 2)
    ]
    return table(str(path), {"reward": body}, weights, [r[0] for r in rows[1:]] if named else None, header[named:])


def _long(
    path: Path, header: list[str], rows: list[list[str]], state: str, action: str, weights: dict[str, float]
) -> Problem:
    """One row a (state, action), one column a reward."""
    names = [c for c in header if c not in (state, action)]
    where = {c: header.index(c) for c in header}
    states = list(dict.fromkeys(row[where[state]] for row in rows))
    actions = list(dict.fromkeys(row[where[action]] for row in rows))
    rewards = {k: np.full((len(states), len(actions)), np.nan) for k in names}
    for number, row in enumerate(rows, 2):
        s, a = states.index(row[where[state]]), actions.index(row[where[action]])
        for k in names:
            if not math.isnan(rewards[k][s, a]):
                raise InputError(f"{path} row {number}: {states[s]!r}, {actions[a]!r} is there twice")
            rewards[k][s, a] = _number(row[where[k]], path, number, k)
    for s, a in np.argwhere(np.isnan(rewards[names[0]])) if names else ():
        raise InputError(f"{path}: no row for {states[s]!r}, {actions[a]!r}; expected every action in every state")
    return table(str(path), rewards, weights, states, actions)


def _npz(path: Path, weights: dict[str, float]) -> Problem:
    if weights:
        raise InputError(f"{path}: weights are for tables with several rewards, not for an MDP")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {k: np.asarray(data[k]) for k in data.files}
    except (ValueError, OSError, zipfile.BadZipFile):
        raise InputError(f"{path}: cannot be read; expected arrays P, R, gamma, mu of numpy.savez") from None
    for key in ("P", "R", "gamma"):
        if key not in arrays:
            raise InputError(f"{path}: no array {key!r}; expected P, R, gamma and perhaps mu")
    reward = _matrix(arrays["R"], f"{path}: R")
    states, actions = reward.shape
    p, gamma = np.asarray(arrays["P"], float), float(np.ravel(arrays["gamma"])[0])
    if p.shape != (states, actions, states):
        raise InputError(f"{path}: P has shape {p.shape}; expected {(states, actions, states)} to go with R")
    if not 0 <= gamma < 1:
        raise InputError(f"{path}: gamma is {gamma:g}; expected at least 0 and below 1")
    _distributions(p, f"{path}: P")
    mu = np.asarray(arrays.get("mu", np.full(states, 1 / states)), float)
    if mu.shape != (states,):
        raise InputError(f"{path}: mu has shape {mu.shape}; expected ({states},)")
    _distributions(mu, f"{path}: mu")
    return Problem(
        str(path),
        MDP(p, reward, gamma, mu),
        _names(str(path), "states", None, states),
        _names(str(path), "actions", None, actions),
    )


def _matrix(value: Any, where: str) -> Table:
    """A finite [s, a] array; one row may come without its brackets."""
    try:
        found = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected rows of numbers, all of the same length") from None
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or not found.size:
        raise InputError(f"{where}: shape {found.shape}; expected [states, actions]")
    for s, a in np.argwhere(~np.isfinite(found)):
        raise InputError(f"{where}: {found[s, a]} at row {s}, column {a}; expected finite numbers")
    return found


def _distributions(p: np.ndarray, where: str) -> None:
    total = p.sum(-1)
    for at in np.argwhere(~(np.abs(total - 1) < 1e-8) | (p < 0).any(-1)):
        spot = f"[{', '.join(map(str, at))}]" if len(at) else ""
        raise InputError(f"{where}{spot} sums to {total[tuple(at)]:.6g}; expected probabilities that sum to 1")


def _policy(reference: Table, shape: tuple[int, ...], name: str) -> Table:
    if reference.shape == (1, shape[1]):
        reference = np.repeat(reference, shape[0], 0)
    if reference.shape != shape:
        raise InputError(f"{name}: reference has shape {reference.shape}; expected {shape} as the rewards have")
    _distributions(reference, f"{name}: reference")
    return reference


def _weights(name: str, rewards: Mapping[str, Table], weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of all rewards, scaled to 1 in sum; equal where none are given."""
    if not isinstance(weights, Mapping):
        raise InputError(f"{name}: weights; expected one number a named reward")
    for key in weights.keys() - rewards.keys():
        raise InputError(f"{name}: weight of unknown reward {key!r}{nearest(key, rewards)}")
    try:
        found = {k: float(weights.get(k, 0.0 if weights else 1.0)) for k in rewards}
    except (TypeError, ValueError):
        raise InputError(f"{name}: weights; expected one number a named reward") from None
    total = sum(found.values())
    if any(not w >= 0 for w in found.values()) or not 0 < total < math.inf:
        raise InputError(f"{name}: weights {found}; expected numbers of at least 0, not all 0")
    return {k: w / total for k, w in found.items()}


def _names(name: str, what: str, given: Sequence[str] | None, n: int) -> tuple[str, ...]:
    if given is None:
        return tuple(str(i) for i in range(n))
    if len(given) != n:
        raise InputError(f"{name}: {len(given)} {what} named; expected {n}")
    return tuple(map(str, given))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, path: Path, row: int, column: str) -> float:
    if not _is_number(cell):
        raise InputError(f"{path} row {row}, column {column!r}: {cell!r}; expected a number")
    value = float(cell)
    if not math.isfinite(value):
        raise InputError(f"{path} row {row}, column {column!r}: {cell}; expected a finite number")
    return value
