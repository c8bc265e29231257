"""Zero-sum games, exactly: matrix games, preference games, Markov games; Nash and its regularised form.

`A` [m, n] is what the row player gets and the column player pays; strategies x [m] and y [n] are distributions.
Sources: von Neumann (1928) by linear programming; McKelvey and Palfrey (1995) for quantal responses; Munos et al.
(2024, arXiv 2312.00886) for general preferences with a reference; Shapley (1953) for Markov games.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog

from surefoot.errors import InputError
from surefoot.exact.divergence import KL
from surefoot.exact.mdp import MDP, fixed_point, value_iteration
from surefoot.exact.operators import log_mean_exp, log_or_minus_inf, softmax

Matrix = Float[np.ndarray, "m n"]
Rows = Float[np.ndarray, "m"]
Columns = Float[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """Strategies of both players, and what the row player gets: regularised where the game was."""

    x: Rows
    y: Columns
    value: float


def nash(A: Matrix) -> Equilibrium:
    """A Nash equilibrium by one linear program; the column player's strategy is its dual.

    Where there are several, it is a vertex that the solver chose. The value is unique.

    >>> rock_paper_scissors = np.array([[0., -1, 1], [1, 0, -1], [-1, 1, 0]])
    >>> nash(rock_paper_scissors).x.round(6)
    array([0.333333, 0.333333, 0.333333])
    """
    A = _matrix(A)
    m, n = A.shape
    # max v  with  x A >= v in every column, x a distribution; variables (x, v).
    found = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.hstack([-A.T, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
        method="highs",
    )
    if not found.success:
        raise InputError(f"nash: the linear program failed: {found.message}")
    x, y = np.maximum(found.x[:m], 0), np.maximum(-found.ineqlin.marginals, 0)
    return Equilibrium(x / x.sum(), y / y.sum(), -float(found.fun))


def exploitability(A: Matrix, x: Rows, y: Columns) -> float:
    """What both players together could gain by best responses: `max_i (A y)_i - min_j (x A)_j`; 0 only at Nash."""
    return float((A @ y).max() - (x @ A).min())


def quantal_response(
    A: Matrix, alpha: float, reference_x: Rows | None = None, reference_y: Columns | None = None, tol: float = 1e-12
) -> Equilibrium:
    """The one saddle point of `x A y - alpha KL(x | ref_x) + alpha KL(y | ref_y)`; without a reference, of entropies.

    There `x = ref_x exp(A y / alpha) / Z` and `y = ref_y exp(-x A / alpha) / Z`. Newton's method on the logits of y,
    whose Jacobian `I + B` has eigenvalues of at least 1 (B is similar to a product of semidefinite matrices), along a
    path of falling alpha.

    Args:
        tol: largest difference between y's log-probabilities and those of its response to x, divided by the size of
            `A / alpha` where that is above 1.

    Raises:
        InputError: an alpha that is not positive, or no convergence.

    >>> quantal_response(np.array([[1., 0.], [0., 0.]]), 1.).x.round(6)
    array([0.588319, 0.411681])
    """
    A = _matrix(A)
    if not alpha > 0:
        raise InputError(f"alpha {alpha}; expected a number above 0 (0 is nash)")
    m, n = A.shape
    log_x = np.full(m, -np.log(m)) if reference_x is None else log_or_minus_inf(np.asarray(reference_x, float))
    log_y = np.full(n, -np.log(n)) if reference_y is None else log_or_minus_inf(np.asarray(reference_y, float))
    rows, columns = np.isfinite(log_x), np.isfinite(log_y)
    small, log_x, log_y = A[np.ix_(rows, columns)], log_x[rows], log_y[columns]

    size = max(float(np.ptp(small)), np.finfo(float).tiny)
    path = (
        np.append(np.geomspace(size, alpha, 2 + int(4 * np.log10(size / alpha)))[:-1], alpha)
        if alpha < size
        else np.array([alpha])
    )
    logits = log_y
    for a in path:
        logits = _respond(small, a, log_x, log_y, logits, tol * max(1.0, size / a))

    y_ = softmax(logits)
    x, y = np.zeros(m), np.zeros(n)
    x[rows], y[columns] = softmax(log_x + small @ y_ / alpha), y_
    # The value of the game at its saddle point, from the column player's side.
    value = alpha * log_mean_exp(small @ y_ / alpha, 1.0, log_x) + alpha * y_ @ (np.log(y_) - log_y)
    if reference_x is None:
        value += alpha * np.log(m)
    if reference_y is None:
        value -= alpha * np.log(n)
    return Equilibrium(x, y, float(value))


def _respond(A: Matrix, alpha: float, log_x: Rows, log_y: Columns, w: Columns, tol: float) -> Columns:
    """Logits w of y that are its own response: `w = log_y - A^T x / alpha`, `x = softmax(log_x + A y / alpha)`."""
    B = A / alpha

    def residual(w: Columns) -> tuple[Columns, Rows, Columns]:
        y = softmax(w)
        x = softmax(log_x + B @ y)
        r = w - log_y + x @ B
        return r - r.mean(), x, y

    r, x, y = residual(w)
    for _ in range(500):
        if np.abs(r).max() <= tol:
            return w
        spread_x, spread_y = np.diag(x) - np.outer(x, x), np.diag(y) - np.outer(y, y)
        step = np.linalg.solve(np.eye(len(w)) + B.T @ spread_x @ B @ spread_y, -r)
        length = 1.0
        while length > 1e-12:
            trial = residual(w + length * step)
            if np.linalg.norm(trial[0]) < (1 - 1e-4 * length) * np.linalg.norm(r):
                break
            length /= 2
        else:
            break
        w, (r, x, y) = w + length * step, trial
    raise InputError(f"quantal response: no convergence at alpha {alpha:g}, residual {np.abs(r).max():.2g}")


# Preferences: P(y > y'), which may be circular, as a game between two policies


def preference_payoff(P: Float[np.ndarray, "a a"]) -> Float[np.ndarray, "a a"]:
    """`P - 1/2`, antisymmetric: the game of whose answer is preferred.

    Raises:
        InputError: chances outside [0, 1], or `P + P^T` other than 1.
    """
    P = np.asarray(P, float)
    if P.ndim != 2 or P.shape[0] != P.shape[1] or not ((P >= 0).all() and (P <= 1).all()):
        raise InputError(f"preferences of shape {P.shape}; expected a square of chances")
    if not np.allclose(P + P.T, 1, atol=1e-9):
        raise InputError("preferences: P(a > b) + P(b > a) is not 1; expected that of every pair")
    return P - 0.5


def preference_nash(P: Float[np.ndarray, "a a"], beta: float = 0.0, reference: Rows | None = None) -> Rows:
    """The policy that no policy is preferred to; with `beta > 0` the one of the game with KL to a reference.

    At `beta > 0` it is the fixed point `pi = ref exp(P pi / beta) / Z`, and unique (arXiv 2312.00886, prop. 1).
    """
    A = preference_payoff(P)
    if beta == 0:
        return nash(A).x
    return quantal_response(A, beta, reference, reference).x


def preference_step(P: Float[np.ndarray, "a a"], policy: Rows, reference: Rows, tau: float, eta: float) -> Rows:
    """One step of mirror descent on `-E[P(y > policy)] + tau KL(pi | ref)`, `eta` the weight of KL(pi | policy).

    `ref^(tau/eta) policy^(1 - tau/eta) exp(P policy / eta) / Z` (INPO, arXiv 2407.00617, eq. 5); at `eta = tau` it is
    the best response.

    >>> P = np.array([[.5, .8, .3], [.2, .5, .9], [.7, .1, .5]])
    >>> preference_step(P, np.array([.4, .4, .2]), np.array([.5, .3, .2]), .2, .5).round(6)
    array([0.506759, 0.324961, 0.16828 ])
    """
    log_ref, log_policy = log_or_minus_inf(np.asarray(reference, float)), log_or_minus_inf(np.asarray(policy, float))
    rest = (1 - tau / eta) * log_policy if eta != tau else 0.0  # 0 * -inf
    return softmax(P @ policy / eta + (tau / eta * log_ref if tau else 0.0) + rest)


def preference_gap(P: Float[np.ndarray, "a a"], policy: Rows, reference: Rows, tau: float) -> float:
    """Duality gap of (policy, policy) in `E[P(y1 > y2)] - tau KL(pi1 | ref) + tau KL(pi2 | ref)`: 0 only at Nash."""
    best = log_mean_exp(P @ policy, tau, log_or_minus_inf(reference)) + tau * KL(policy, reference)
    return float(2 * (best - 0.5))


# Markov games


@dataclass(frozen=True, eq=False)
class MarkovGame:
    """A zero-sum game on states.

    Attributes:
        P: [S, M, N, S]; R: [S, M, N], what the row player gets; gamma: below 1; mu: [S].
    """

    P: Float[np.ndarray, "s m n s"]
    R: Float[np.ndarray, "s m n"]
    gamma: float
    mu: Float[np.ndarray, "s"]

    def __post_init__(self):
        if not 0 <= self.gamma < 1:
            raise InputError(f"MarkovGame: gamma {self.gamma}; expected a number in [0, 1)")
        S, M, N = self.R.shape
        MDP(self.P.reshape(S, M * N, S), self.R.reshape(S, M * N), self.gamma, self.mu)

    def against(self, y: Float[np.ndarray, "s n"]) -> MDP:
        """The row player's MDP when the column player's strategy is fixed."""
        return MDP(np.einsum("smnt,sn->smt", self.P, y), np.einsum("smn,sn->sm", self.R, y), self.gamma, self.mu)

    def turned(self) -> MarkovGame:
        """The same game seen by the column player."""
        return MarkovGame(self.P.transpose(0, 2, 1, 3), -self.R.transpose(0, 2, 1), self.gamma, self.mu)


@dataclass(frozen=True, eq=False)
class MarkovEquilibrium:
    """Strategies [S, M] and [S, N], values [S] of the row player, and the most that a value is wrong by."""

    x: Float[np.ndarray, "s m"]
    y: Float[np.ndarray, "s n"]
    V: Float[np.ndarray, "s"]
    error: float


def shapley(game: MarkovGame, tol: float = 1e-9, alpha: float = 0.0) -> MarkovEquilibrium:
    """Shapley's value iteration: each backup solves the matrix game `R + gamma E[V]` of each state.

    Args:
        alpha: above 0, quantal responses (entropy bonuses of both players) take the place of Nash.
    """

    def play(V: Float[np.ndarray, "s"]) -> list[Equilibrium]:
        return [quantal_response(A, alpha) if alpha > 0 else nash(A) for A in game.R + game.gamma * game.P @ V]

    V, _, error = fixed_point(lambda V: np.array([e.value for e in play(V)]), np.zeros(len(game.R)), game.gamma, tol)
    played = play(V)
    return MarkovEquilibrium(
        np.array([e.x for e in played]), np.array([e.y for e in played]), np.array([e.value for e in played]), error
    )


def markov_exploitability(game: MarkovGame, x: Float[np.ndarray, "s m"], y: Float[np.ndarray, "s n"]) -> float:
    """What both players together could gain from `mu` by best responses; 0 only at Nash (in the states met)."""
    best_row = value_iteration(game.against(y), 1e-12).V
    best_column = value_iteration(game.turned().against(x), 1e-12).V
    return float(game.mu @ (best_row + best_column))


def _matrix(A: Matrix) -> Matrix:
    A = np.asarray(A, float)
    if A.ndim != 2 or A.size == 0 or not np.isfinite(A).all():
        raise InputError(f"game of shape {A.shape}; expected a matrix of finite payoffs")
    return A
