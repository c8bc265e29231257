"""Markov decision processes on tables, and their exact solution in float64.

One Bellman backup serves everything: `Q = R + gamma next(choose.value(Q))`, with `choose` from `operators` (the best
action, a soft maximum, a given policy) and `next` the mean over next states or a worst case from `robust`.

Shapes: S states, A actions; `P` dense [S, A, S] or sparse [S * A, S] (row `s * A + a`), `R` and `Q` [S, A], `V` [S],
policies [S, A] with rows that sum to 1. An episode's end is a state that every action keeps, paying 0.
Sources: Puterman, Markov Decision Processes (1994), sections 6.3-6.6; Kakade and Langford (2002) for the performance
difference; Ziebart (2010) and Fox et al. (2016, arXiv 1512.08562) for soft values; arXiv 2507.20150 for the inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import bicgstab, splu

from surefoot.errors import InputError
from surefoot.exact.operators import GREEDY, Choice, Fixed, Soft, States, Table

NextState = Callable[[States], Table]
DIRECT = 2000  # states up to which a sparse system is factorised at once; random graphs fill in badly beyond


@dataclass(frozen=True, eq=False)
class MDP:
    """A discounted MDP.

    Attributes:
        P: chances of the next state, dense [S, A, S] or sparse [S * A, S].
        R: expected reward [S, A].
        gamma: discount, in [0, 1]; 1 needs every trajectory to end.
        mu: distribution of the first state [S].

    Raises:
        InputError: shapes that do not fit, chances that are negative or do not sum to 1, rewards that are not finite.
    """

    P: Float[np.ndarray, "s a s"] | sparse.csr_matrix
    R: Table
    gamma: float
    mu: States

    def __post_init__(self):
        P = sparse.csr_matrix(self.P, dtype=float) if sparse.issparse(self.P) else np.asarray(self.P, float)
        object.__setattr__(self, "P", P)
        object.__setattr__(self, "R", np.asarray(self.R, float))
        object.__setattr__(self, "mu", np.asarray(self.mu, float))
        self.validate()

    @property
    def states(self) -> int:
        return self.R.shape[0]

    @property
    def actions(self) -> int:
        return self.R.shape[1]

    @property
    def rows(self) -> np.ndarray | sparse.csr_matrix:
        """`P` as a matrix [S * A, S], without copying."""
        return self.P.reshape(-1, self.states) if isinstance(self.P, np.ndarray) else self.P

    def validate(self) -> None:
        """Refuse what is not an MDP; called on construction."""
        if self.R.ndim != 2:
            raise InputError(f"MDP: R has shape {self.R.shape}; expected [states, actions]")
        s, a = self.R.shape
        expected = (s * a, s) if sparse.issparse(self.P) else (s, a, s)
        if self.P.shape != expected:
            raise InputError(f"MDP: P has shape {self.P.shape}; expected {expected} with R of {self.R.shape}")
        if self.mu.shape != (s,):
            raise InputError(f"MDP: mu has shape {self.mu.shape}; expected {(s,)}")
        if not 0 <= self.gamma <= 1:
            raise InputError(f"MDP: gamma {self.gamma}; expected a number in [0, 1]")
        if not np.isfinite(self.R).all():
            raise InputError("MDP: R has entries that are not finite")
        chances = self.P if isinstance(self.P, np.ndarray) else np.asarray(self.P.data)
        sums = np.asarray(self.rows.sum(1)).ravel()
        # Written so that NaN fails too.
        if not ((chances >= 0).all() and (np.abs(sums - 1) < 1e-8).all()):
            worst = int(np.argmax(np.nan_to_num(np.abs(sums - 1), nan=np.inf)))
            raise InputError(
                f"MDP: P of state {worst // a}, action {worst % a} sums to {sums[worst]:.6g}; "
                "expected chances of at least 0 that sum to 1"
            )
        if not ((self.mu >= 0).all() and abs(self.mu.sum() - 1) < 1e-8):
            raise InputError(f"MDP: mu sums to {self.mu.sum():.6g}; expected chances of at least 0 that sum to 1")

    def expect(self, V: States) -> Table:
        """`E[V(s') | s, a]`, the mean next-state operator."""
        return (self.rows @ V).reshape(self.R.shape)

    def backup(self, Q: Table, choose: Choice = GREEDY, next_state: NextState | None = None) -> Table:
        """`R + gamma next(choose.value(Q))`."""
        return self.lookahead(choose.value(Q), next_state)

    def lookahead(self, V: States, next_state: NextState | None = None) -> Table:
        """`R + gamma next(V)`."""
        return self.R + self.gamma * (next_state or self.expect)(V)

    def under(self, policy: Table) -> np.ndarray | sparse.csr_matrix:
        """`P_pi` [S, S]: chances of the next state under a policy."""
        if isinstance(self.P, np.ndarray):
            return np.einsum("sa,sat->st", policy, self.P)
        s, a = np.nonzero(policy)
        pick = sparse.csr_matrix((policy[s, a], (s, s * self.actions + a)), (self.states, self.R.size))
        return sparse.csr_matrix(pick @ self.P)

    def reachable(self, allowed: Bool[np.ndarray, "s a"] | None = None) -> Bool[np.ndarray, "s"]:
        """States met with a chance above 0 from `mu` by some policy, or by some policy within `allowed`.

        With `allowed = optimal_actions(Q)`: the states that some optimal policy meets, whatever its tie-break.
        """
        allowed = np.ones(self.R.shape, bool) if allowed is None else allowed
        # One more state, the last, starts every search at once.
        moves = sparse.coo_matrix(self.under(allowed.astype(float)))
        starts = np.flatnonzero(self.mu > 0)
        source = np.concatenate([moves.row, np.full(len(starts), self.states)])
        target = np.concatenate([moves.col, starts])
        used = np.concatenate([moves.data > 0, np.ones(len(starts), bool)])
        graph = sparse.csr_matrix((np.ones(used.sum()), (source[used], target[used])), (self.states + 1,) * 2)
        found = np.zeros(self.states + 1, bool)
        found[breadth_first_order(graph, self.states, return_predecessors=False)] = True
        return found[:-1]

    def ends(self) -> Bool[np.ndarray, "s"]:
        """States that every action keeps, paying 0."""
        rows = np.arange(self.states * self.actions)
        stay = np.asarray(self.rows[rows, rows // self.actions]).reshape(self.R.shape)
        return (stay == 1).all(1) & (self.R == 0).all(1)


@dataclass(frozen=True, eq=False)
class Solution:
    """An optimal (or soft-optimal) solution.

    Attributes:
        Q, V: optimal values; `V = choose.value(Q)`.
        policy: `choose.policy(Q)`.
        iterations: backups, or policies evaluated.
        error: no entry of V is further than this from the truth, rounding apart; infinite where nothing is known
            (gamma = 1 without a fixed point).
    """

    Q: Table
    V: States
    policy: Table
    iterations: int
    error: float


def value_iteration(
    mdp: MDP,
    tol: float = 1e-10,
    choose: Choice = GREEDY,
    next_state: NextState | None = None,
    max_iterations: int = 1_000_000,
) -> Solution:
    """The fixed point of the backup, by repeating it.

    Stops by the bounds of MacQueen (1966; Puterman 6.6.2): with `d = V_new - V`, the truth lies between
    `V_new + c min d` and `V_new + c max d`, `c = gamma / (1 - gamma)`. The midpoint is returned, so what has to shrink
    is the spread of d, not its size: on graphs that mix this takes tens of backups where the sup norm takes hundreds.

    Args:
        tol: largest error allowed in V. At gamma = 1 it bounds the last change instead.

    Raises:
        InputError: no convergence, as at gamma = 1 where some trajectory never ends.

    >>> chain = MDP(np.array([[[0, 1.]], [[0, 1.]]]), np.array([[1.], [2.]]), .5, np.array([1., 0]))
    >>> value_iteration(chain).V
    array([3., 4.])
    """

    def backup(V: States) -> States:
        return choose.value(mdp.lookahead(V, next_state))

    V, iterations, error = fixed_point(backup, np.zeros(mdp.states), mdp.gamma, tol, max_iterations)
    Q = mdp.lookahead(V, next_state)
    return Solution(Q, choose.value(Q), choose.policy(Q), iterations, error)


def fixed_point(
    backup: Callable[[States], States], V: States, gamma: float, tol: float, max_iterations: int = 1_000_000
) -> tuple[States, int, float]:
    """V with `backup(V) = V`, the number of backups, and a bound on its error; see `value_iteration` for the bound.

    Args:
        backup: monotone, with `backup(V + c) = backup(V) + gamma c`.
    """
    for iteration in range(1, max_iterations + 1):
        new = backup(V)
        low, high = float((new - V).min()), float((new - V).max())
        V = new
        if gamma < 1:
            reach = gamma / (1 - gamma)
            shift, error = reach * (high + low) / 2, reach * (high - low) / 2
            # Past this the spread is rounding, and no further backup shrinks it.
            settled = high - low <= 4 * np.finfo(float).eps * max(1.0, np.abs(V).max())
        else:
            shift, error = 0.0, 0.0 if high == low == 0 else np.inf
            settled = max(-low, high) <= tol
        if error <= tol or settled:
            return V + shift, iteration, error
    raise InputError(
        f"value iteration: no convergence in {max_iterations} backups; "
        "expected gamma below 1, or an end to every trajectory"
    )


def policy_iteration(mdp: MDP, choose: Choice = GREEDY, depth: int = 50, max_iterations: int = 1000) -> Solution:
    """Howard's method, to rounding: evaluate, improve, until no state improves. With `Soft`, soft policy iteration.

    At depth 1 it is Newton's method on the Bellman equation (Puterman 6.4). The improved policy looks `depth` steps
    ahead, which no policy loses by (Efroni et al. 2018, arXiv 1802.03654) and a backup costs far less than a solve:
    where rewards are far away, depth 1 carries news of them one state a solve. The test is on values: policies may
    wander among tied actions for ever.
    """
    policy = choose.policy(mdp.R)
    for iteration in range(1, max_iterations + 1):
        V, Q = evaluate(mdp, policy, choose)
        best = choose.value(Q)
        improvement, tol = float((best - V).max()), 1e-12 * max(1.0, np.abs(V).max())
        if improvement <= tol:
            error = max(0.0, improvement) / (1 - mdp.gamma) if mdp.gamma < 1 else np.inf
            return Solution(Q, best, choose.policy(Q), iteration, error)
        for _ in range(depth - 1):
            Q = mdp.backup(Q, choose)
        policy = choose.policy(Q)
    raise InputError(f"policy iteration: not settled after {max_iterations} policies")


def soft_value_iteration(mdp: MDP, alpha: float, reference: Table | None = None, tol: float = 1e-10) -> Solution:
    """`Q = R + gamma E[V]`, `V = alpha log sum_a ref exp(Q / alpha)`, policy `ref exp(Q / alpha) / Z`.

    Args:
        alpha: strength of the entropy bonus, or of the KL penalty a step where there is a reference (called beta then).
        reference: a policy [S, A]; None is the entropy bonus, which is the uniform reference plus `alpha log A` a step:
            the same policy, values higher by `alpha log A / (1 - gamma)`.

    >>> root = MDP(np.ones((1, 2, 1)), np.array([[.1, -.1]]), 0., np.ones(1))
    >>> soft_value_iteration(root, .1).policy.round(6)
    array([[0.880797, 0.119203]])
    """
    return value_iteration(mdp, tol, Soft(alpha, reference))


def evaluate(mdp: MDP, policy: Table, under: Choice = GREEDY) -> tuple[States, Table]:
    """`V^pi` and `Q^pi`, by a linear solve: `V = (I - gamma P_pi)^-1 sum_a pi (R + bonus)`, `Q = R + gamma P V`.

    Args:
        under: whose bonus counts: none (`Greedy`), or that of `Soft`. Then `V = sum_a pi (Q + bonus)`.
    """
    policy = np.asarray(policy, float)
    V = _solve(mdp, policy, (policy * (mdp.R + under.bonus(policy))).sum(1))
    return V, mdp.lookahead(V)


def soft_evaluate(mdp: MDP, policy: Table, alpha: float, reference: Table | None = None) -> tuple[States, Table]:
    """`V^pi` and `Q^pi` with alpha times the entropy of each step added, or alpha times its KL to a reference taken."""
    return evaluate(mdp, policy, Soft(alpha, reference))


def occupancy(mdp: MDP, policy: Table) -> States:
    """Discounted visits `d(s) = sum_t gamma^t P(s_t = s)` [S], not normalised: they sum to `1 / (1 - gamma)`.

    At gamma = 1 the ends, whose visits are infinite, are given as 0.
    """
    return _solve(mdp, np.asarray(policy, float), mdp.mu, transposed=True)


def performance(mdp: MDP, policy: Table, under: Choice = GREEDY) -> float:
    """`J(pi) = sum_s mu(s) V^pi(s)`."""
    return float(mdp.mu @ evaluate(mdp, policy, under)[0])


def performance_difference(mdp: MDP, new: Table, old: Table) -> float:
    """`J(new) - J(old) = sum_s d^new(s) sum_a new(a | s) A^old(s, a)` (Kakade and Langford 2002, lemma 6.1)."""
    V, Q = evaluate(mdp, old)
    return float(occupancy(mdp, new) @ (new * (Q - V[:, None])).sum(1))


def inverse_bellman(mdp: MDP, Q: Table, choose: Choice = GREEDY) -> Table:
    """The only reward whose optimal action values are Q: `Q - gamma E[choose.value(Q)]` (arXiv 2507.20150, sec. 2)."""
    return Q - mdp.gamma * mdp.expect(choose.value(Q))


def optimal_actions(Q: Table, tie_tol: float = 1e-9) -> Bool[np.ndarray, "s a"]:
    """Actions within `tie_tol` of the best. It must exceed the error of Q and lie well below what matters."""
    return Q >= Q.max(-1, keepdims=True) - tie_tol


def gaps(Q: Table, tie_tol: float | None = None) -> States:
    """Best less second-best value in each state, 0 at a tie; infinite where there is one action.

    With a tolerance, best less the best of the actions that are not optimal; infinite where all are.

    >>> gaps(np.array([[3., 3, 1], [2, 0, 1]])), gaps(np.array([[3., 3, 1]]), 1e-9)
    (array([0., 1.]), array([2.]))
    """
    if tie_tol is not None:
        return Q.max(-1) - np.where(optimal_actions(Q, tie_tol), -np.inf, Q).max(-1)
    if Q.shape[-1] == 1:
        return np.full(Q.shape[:-1], np.inf)
    ordered = np.partition(Q, -2, -1)
    return ordered[..., -1] - ordered[..., -2]


def uniform_policy(allowed: Bool[np.ndarray, "s a"]) -> Table:
    """The same probability for every allowed action."""
    return allowed / allowed.sum(-1, keepdims=True)


@dataclass(frozen=True, eq=False)
class FiniteHorizon:
    """An MDP that ends after H steps, perhaps with other dynamics at each.

    Attributes:
        stages: one MDP a step; their discounts count, their `mu` do not. A single one repeated for fixed dynamics.
        mu: distribution of the first state [S].
    """

    stages: tuple[MDP, ...]
    mu: States

    @property
    def horizon(self) -> int:
        return len(self.stages)

    def unroll(self) -> MDP:
        """The same problem as one MDP on states `t * S + s` and an end, the last; stages of one discount."""
        first, H = self.stages[0], self.horizon
        S, A = first.states, first.actions
        if any(m.gamma != first.gamma for m in self.stages):
            raise InputError("unroll: expected stages of one discount")
        # Blocks above the diagonal lead from each step to the next; the last step and the end lead to the end.
        ahead = sparse.block_diag([sparse.csr_matrix(m.rows) for m in self.stages[:-1]] or [sparse.csr_matrix((0, 0))])
        last = sparse.csr_matrix(np.ones((S * A + A, 1)))
        nowhere = sparse.csr_matrix((S * A * (len(self.stages) - 1), S)), sparse.csr_matrix((S * A + A, S))
        blocks: list[Any] = [[nowhere[0], ahead, None], [nowhere[1], None, last]]
        P = sparse.csr_matrix(sparse.bmat(blocks))
        R = np.concatenate([m.R for m in self.stages] + [np.zeros((1, A))])
        return MDP(P, R, first.gamma, np.concatenate([self.mu, np.zeros((H - 1) * S + 1)]))


def finite_horizon(mdp: MDP, horizon: int) -> FiniteHorizon:
    """An MDP stopped after `horizon` steps."""
    return FiniteHorizon((mdp,) * horizon, mdp.mu)


def backward_induction(
    problem: FiniteHorizon, choose: Choice | Sequence[Choice] = GREEDY, next_state: NextState | None = None
) -> tuple[Float[np.ndarray, "h+1 s"], Float[np.ndarray, "h s a"]]:
    """Optimal `V` [H + 1, S] (0 after the last step) and `Q` [H, S, A], from the last step to the first.

    Args:
        choose: one for all steps, or one a step.
    """
    choices = choose if isinstance(choose, Sequence) else [choose] * problem.horizon
    V = np.zeros((problem.horizon + 1, len(problem.mu)))
    Q = np.zeros((problem.horizon, *problem.stages[0].R.shape))
    for t in reversed(range(problem.horizon)):
        Q[t] = problem.stages[t].lookahead(V[t + 1], next_state)
        V[t] = choices[t].value(Q[t])
    return V, Q


def evaluate_finite(
    problem: FiniteHorizon, policy: Float[np.ndarray, "h s a"], under: Choice | Sequence[Choice] = GREEDY
) -> tuple[Float[np.ndarray, "h+1 s"], Float[np.ndarray, "h s a"]]:
    """`V^pi` [H + 1, S] and `Q^pi` [H, S, A] of a policy a step."""
    unders = under if isinstance(under, Sequence) else [under] * problem.horizon
    return backward_induction(problem, [Fixed(p, u) for p, u in zip(policy, unders, strict=True)])


def occupancy_finite(problem: FiniteHorizon, policy: Float[np.ndarray, "h s a"]) -> Float[np.ndarray, "h s"]:
    """`P(s_t = s)` [H, S]; each row sums to 1, discounts are not in it."""
    d = np.zeros((problem.horizon, len(problem.mu)))
    d[0] = problem.mu
    for t in range(problem.horizon - 1):
        d[t + 1] = problem.stages[t].rows.T @ (d[t][:, None] * policy[t]).ravel()
    return d


def _solve(mdp: MDP, policy: Table, b: States, transposed: bool = False) -> States:
    """`(I - gamma P_pi)^-1 b`, or with the transposed matrix.

    Dense and small systems are factorised. Large sparse ones are tried by BiCGStab first, because a random graph's LU
    fills in; those on which it does not converge (long chains, gamma near 1) are factorised, and they fill in little.
    """
    if mdp.gamma == 1:
        return _solve_ending(mdp, policy, b, transposed)
    matrix = mdp.under(policy)
    if not sparse.issparse(matrix):
        system = np.eye(mdp.states) - mdp.gamma * matrix
        return np.linalg.solve(system.T if transposed else system, b)
    system = sparse.csr_matrix(sparse.eye(mdp.states) - mdp.gamma * (matrix.T if transposed else matrix))
    return _solve_sparse(system, b)


def _solve_ending(mdp: MDP, policy: Table, b: States, transposed: bool) -> States:
    """The undiscounted case: the ends, worth 0, leave the system."""
    open_states = np.flatnonzero(~mdp.ends())
    matrix = sparse.csr_matrix(mdp.under(policy))[open_states][:, open_states]
    system = sparse.csc_matrix(sparse.eye(len(open_states)) - (matrix.T if transposed else matrix))
    x = np.zeros(mdp.states)
    try:
        x[open_states] = splu(system, permc_spec="MMD_AT_PLUS_A").solve(b[open_states])
    except RuntimeError:
        raise InputError("evaluate: the policy never ends from some state; expected gamma below 1") from None
    return x


def _solve_sparse(system: sparse.csr_matrix, b: States) -> States:
    if len(b) > DIRECT:
        x = np.zeros(len(b))
        for _ in range(6):
            residual = b - system @ x
            if np.abs(residual).max() <= 4e-15 * max(np.abs(b).max(), np.abs(x).max()):
                return x
            correction, failed = bicgstab(system, residual, rtol=1e-8, maxiter=100)
            if failed:
                break
            x = x + correction
    return splu(sparse.csc_matrix(system), permc_spec="MMD_AT_PLUS_A").solve(b)
