"""Small worlds with known answers, and random ones of any size; what is random is fixed by its seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from surefoot.errors import InputError
from surefoot.exact.mdp import MDP
from surefoot.exact.tree import TokenTree

MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}


def chain(length: int, gamma: float = 0.95, reward: float = 1.0) -> MDP:
    """States in a row, actions left and right; `reward` for going right at the last state, which stays. Sparse.

    `V(s) = reward gamma^(length - 1 - s) / (1 - gamma)`.
    """
    states = np.arange(length)
    target = np.stack([np.maximum(states - 1, 0), np.minimum(states + 1, length - 1)], 1)
    R = np.zeros((length, 2))
    R[-1, 1] = reward
    return MDP(_deterministic(target), R, gamma, np.eye(1, length)[0])


def lock(length: int, actions: int = 2, consolation: float = 0.0, gamma: float = 1.0) -> MDP:
    """A combination lock: action 0 opens each of `length` steps, the last one pays 1, any other action ends it.

    Args:
        consolation: paid for a wrong first action; it deceives whoever plans fewer than `length` steps ahead
            (arXiv 2312.08369). `V* = max(gamma^(length - 1), consolation)`; the end is the last state.
    """
    target = np.full((length + 1, actions), length)
    target[:length, 0] = np.arange(length) + 1
    R = np.zeros((length + 1, actions))
    R[0, 1:] = consolation
    R[length - 1, 0] = 1
    return MDP(_deterministic(target), R, gamma, np.eye(1, length + 1)[0])


def gridworld(
    layout: Sequence[str],
    enter: Mapping[str, float] | None = None,
    step: float = 0.0,
    slip: float = 0.0,
    gamma: float = 0.95,
) -> MDP:
    """A grid drawn as text: `#` a wall, `S` the start, `G` and `X` exits, `C` a way back to the start, the rest open.

    Actions up, right, down, left. Whoever walks into a wall or the border stays. States are the open cells in reading
    order, and one end, the last. Sparse.

    Args:
        enter: what is paid for entering a cell of each letter; by default 1 for `G` and -1 for `X`.
        step: what every step costs or pays besides.
        slip: chance to go to one of the two sides instead.

    Raises:
        InputError: rows of different lengths, or no single `S`.

    >>> float(gridworld(["S.G"], gamma=.5).R.max()), gridworld(["S.G"]).states
    (1.0, 3)
    """
    enter = {"G": 1.0, "X": -1.0} if enter is None else enter
    if len({len(row) for row in layout}) != 1:
        raise InputError("gridworld: rows of different lengths; expected a rectangle")
    cells = np.array([list(row) for row in layout])
    if (cells == "S").sum() != 1:
        raise InputError(f"gridworld: {(cells == 'S').sum()} starts; expected one S")
    inside = np.isin(cells, ["#", "G", "X", "C"], invert=True)
    end = int(inside.sum())
    number = np.full(cells.shape, -1)
    number[inside] = np.arange(end)
    start = int(number[cells == "S"][0])
    goes = np.where(np.isin(cells, ["G", "X"]), end, np.where(cells == "C", start, number))
    pays = step + np.vectorize(lambda c: enter.get(c, 0.0), otypes=[float])(cells)

    row, column = np.nonzero(inside)
    target, paid = np.full((end + 1, 4), end), np.zeros((end + 1, 4))
    for a, (down, right) in enumerate(MOVES.values()):
        r, c = row + down, column + right
        on_grid = (r >= 0) & (r < cells.shape[0]) & (c >= 0) & (c < cells.shape[1])
        r, c = np.where(on_grid, r, row), np.where(on_grid, c, column)
        free = cells[r, c] != "#"
        r, c = np.where(free, r, row), np.where(free, c, column)
        target[:end, a] = goes[r, c]
        # Bumping is a step, not an entry.
        paid[:end, a] = np.where((r != row) | (c != column), pays[r, c], step)
    P = (1 - slip) * _deterministic(target)
    R = (1 - slip) * paid
    if slip:
        for turn in (1, 3):
            P = P + slip / 2 * _deterministic(np.roll(target, turn, 1))
            R = R + slip / 2 * np.roll(paid, turn, 1)
    return MDP(P, R, gamma, np.eye(1, end + 1, start)[0])


def open_grid(rows: int, columns: int, slip: float = 0.2, gamma: float = 0.95) -> MDP:
    """An empty grid, start at the top left, an exit that pays 1 at the bottom right."""
    layout = ["." * columns] * rows
    layout[0] = "S" + layout[0][1:]
    layout[-1] = layout[-1][:-1] + "G"
    return gridworld(layout, slip=slip, gamma=gamma)


def cliff_walk(gamma: float = 1.0) -> MDP:
    """Sutton and Barto, example 6.6: 4 by 12, -1 a step, off the cliff -100 and back to the start.

    `V*(start) = -13`.
    """
    return gridworld(["............"] * 3 + ["SCCCCCCCCCCG"], enter={"C": -99.0}, step=-1.0, gamma=gamma)


def river_swim(length: int = 6, gamma: float = 0.95) -> MDP:
    """Strehl and Littman (2008), with the chances of Osband, Russo and Van Roy (2013): swim right against the current.

    Left always succeeds and pays .005 in the first state; right pays 1 in the last. Right advances with chance .35 and
    loses ground with .05 (.6 and 0 in the first state, 0 and .4 in the last).
    """
    P = np.zeros((length, 2, length))
    for s in range(length):
        P[s, 0, max(s - 1, 0)] = 1
        P[s, 1, [max(s - 1, 0), s, min(s + 1, length - 1)]] = [0.05, 0.6, 0.35]
    P[0, 1, :2] = [0.4, 0.6]
    P[-1, 1, -2:] = [0.4, 0.6]
    R = np.zeros((length, 2))
    R[0, 0], R[-1, 1] = 0.005, 1.0
    return MDP(P, R, gamma, np.eye(1, length)[0])


def garnet(
    states: int, actions: int = 4, branching: int = 5, seed: int = 0, gamma: float = 0.95, rewarded: float = 0.1
) -> MDP:
    """A random sparse MDP (Archibald, McKinnon and Thomas 1995): `branching` distinct next states a (state, action).

    Their chances are the lengths between uniform cuts of [0, 1]; a share `rewarded` of pairs pays a normal amount.
    """
    if not 1 <= branching <= states:
        raise InputError(f"garnet: branching {branching}; expected from 1 to {states} next states")
    rng, n = np.random.default_rng(seed), states * actions
    # Floyd's sampling without replacement, for all rows at once.
    target = np.empty((n, branching), np.int64)
    for j in range(branching):
        top = states - branching + j
        drawn = rng.integers(0, top + 1, n)
        target[:, j] = np.where((target[:, :j] == drawn[:, None]).any(1), top, drawn)
    cuts = np.sort(rng.random((n, branching - 1)), 1)
    chances = np.diff(np.concatenate([np.zeros((n, 1)), cuts, np.ones((n, 1))], 1), axis=1)
    P = sparse.csr_matrix((chances.ravel(), target.ravel(), np.arange(n + 1) * branching), (n, states))
    R = np.where(rng.random((states, actions)) < rewarded, rng.normal(size=(states, actions)), 0.0)
    return MDP(P, R, gamma, np.full(states, 1 / states))


def random_mdp(states: int, actions: int, seed: int = 0, gamma: float = 0.9) -> MDP:
    """A dense MDP: next states uniform on the simplex, rewards standard normal, any start as likely."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.ones(states), (states, actions))
    return MDP(P, rng.normal(size=(states, actions)), gamma, np.full(states, 1 / states))


def token_tree(
    vocab: int = 4,
    depth: int = 4,
    correct: Sequence[int] | int = (5, 100, 201),
    concentration: float | None = None,
    seed: int = 0,
) -> TokenTree:
    """Sequences of which several are correct and pay 1: the tie that outcome rewards make.

    Args:
        correct: the correct leaves, or how many to draw. The default is the tree of arXiv 2507.20150's claim.
        concentration: each node's reference is drawn from this symmetric Dirichlet; None is uniform.
    """
    rng, leaves = np.random.default_rng(seed), vocab**depth
    chosen = rng.choice(leaves, correct, replace=False) if isinstance(correct, int) else np.asarray(correct)
    reward = np.zeros(leaves)
    reward[chosen] = 1
    tree = TokenTree(vocab, depth, reward)
    if concentration is None:
        return tree
    # As in the claim of arXiv 2205.11275's card: kept off the boundary.
    nodes = rng.dirichlet(np.full(vocab, concentration), tree.nodes) + 1e-3
    reference = np.exp(tree.log_leaves(np.log(nodes)))
    return TokenTree(vocab, depth, reward, reference / reference.sum())


def _deterministic(target: np.ndarray) -> sparse.csr_matrix:
    """`P` with one next state [S, A] each."""
    n = target.size
    return sparse.csr_matrix((np.ones(n), target.ravel(), np.arange(n + 1)), (n, len(target)))
