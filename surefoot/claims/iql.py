"""IQL: an upper expectile of in-sample values carries reward back along the one good trajectory (arXiv 2110.06169).

A. A 7 x 7 grid with a wall; data of 1 optimal and 99 uniformly random episodes of at most 50 steps; IQL exact on the
   empirical model, and the exact return of its policy on the true one.
B. Hopper, logged by the package itself (`offline:Hopper-v5:quality=mixed`; random and medium data too in the full
   size): IQL with networks, through the trainer, beside cloning (the same with equal weights) and d3rlpy's IQL where
   that is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import mean_and_spread, over_seeds
from surefoot.errors import InputError
from surefoot.evaluation.evaluate import evaluate
from surefoot.exact.episodes import episodes
from surefoot.exact.generators import gridworld
from surefoot.exact.mdp import MDP, finite_horizon, performance, value_iteration
from surefoot.methods.offline.iql import IQL, exact_iql

TAUS = (0.5, 0.7, 0.9, 0.95, 0.99)
LAYOUT = ("S......", ".......", ".......", ".#####.", ".......", ".......", "......G")
CARD = {0.5: 0.60, 0.7: 1.50, 0.9: 2.01, 0.99: 2.07}  # means of its three seeds
EPISODES, LENGTH, BETA = 100, 50, 10.0
UPDATES = {"quick": 600, "full": 2000}
QUALITIES = {"quick": ("mixed",), "full": ("random", "medium", "mixed")}


def maze(slip: float = 0.25, gamma: float = 0.9) -> MDP:
    """10 for entering the goal; with probability `slip` the move is replaced by a uniform one of the four."""
    sure = gridworld(LAYOUT, {"G": 10.0}, gamma=gamma)
    P = np.asarray(sure.rows.todense()).reshape(sure.states, 4, sure.states)  # pyright: ignore[reportAttributeAccessIssue]
    P, R = ((1 - slip) * x + slip * x.mean(1, keepdims=True) for x in (P, sure.R))
    return MDP(P, R, gamma, sure.mu)


def collected(true: MDP, n: int, rng: np.random.Generator) -> tuple[MDP, np.ndarray]:
    """The empirical model and behaviour of 1 optimal and n - 1 random episodes.

    State-action pairs that nobody tried lead to the end and pay nothing; the behaviour never takes them, except in
    states that nobody saw, where it is uniform.
    """
    problem, (S, A) = finite_horizon(true, LENGTH), true.R.shape
    best = value_iteration(true).policy
    count, paid = np.zeros((S, A, S)), np.zeros((S, A))
    for policy, k in ((best, 1), (np.full((S, A), 1 / A), n - 1)):
        seen = episodes(problem, np.broadcast_to(policy, (LENGTH, S, A)), k, rng)
        s, a, after = seen.states[:, :-1].ravel(), seen.actions.ravel(), seen.states[:, 1:].ravel()
        before_end = s != S - 1
        np.add.at(count, (s[before_end], a[before_end], after[before_end]), 1)
        np.add.at(paid, (s[before_end], a[before_end]), 10.0 * (after[before_end] == S - 1))
    visits = count.sum(-1)
    tried = visits > 0
    P = np.where(tried[..., None], count / np.maximum(visits, 1)[..., None], np.eye(S)[S - 1])
    mu = np.where(visits.sum(1, keepdims=True) > 0, visits / np.maximum(visits.sum(1, keepdims=True), 1), 1 / A)
    return MDP(P, paid / np.maximum(visits, 1), true.gamma, true.mu), mu


def returns(seed: int, n: int = EPISODES) -> dict[str, float]:
    """Exact returns at the start of cloning, of IQL by tau, and of the optimum."""
    true = maze()
    model, mu = collected(true, n, np.random.default_rng(seed))
    found = {"cloning": performance(true, mu), "optimal": performance(true, value_iteration(true).policy)}
    return found | {f"tau {tau}": performance(true, exact_iql(model, mu, tau, BETA)[0]) for tau in TAUS}


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """A on ten grids a seed; B on the first three seeds, with more updates and qualities of data in the full size."""
    grids = [returns(10 * s + j) for s in seeds for j in range(10)]
    few = [returns(10 * s + j, 30) for s in seeds for j in range(10)]
    measured = [over_seeds(f"A: return, {name}", [g[name] for g in grids]) for name in grids[0]]
    for row in measured:
        tau = float(row["name"].split()[-1]) if "tau" in row["name"] else None
        row |= {"expected": CARD[tau]} if tau in CARD else {}
    measured += [over_seeds(f"A: return, 30 episodes, tau {tau}", [g[f"tau {tau}"] for g in few]) for tau in TAUS]
    notes = ""
    for quality in QUALITIES[size]:
        hopper, notes = on_hopper(seeds[:3], UPDATES[size], quality)
        measured += [over_seeds(f"B: Hopper, {quality} data, return, {name}", each) for name, each in hopper.items()]
    pictures = [_draw(report, grids, few)] if report else []
    return Outcome(verdict(grids), measured, pictures, notes)


def verdict(grids: Sequence[dict[str, float]]) -> Verdict:
    """Part A's: tau .9 against tau .5 on the same data, and both against cloning."""
    gain = [g["tau 0.9"] - g["tau 0.5"] for g in grids]
    if np.mean([x <= 0 for x in gain]) >= 2 / 3:
        return "refuted"
    mean, error = mean_and_spread(gain)
    over_cloning, its_error = mean_and_spread([g["tau 0.5"] - g["cloning"] for g in grids])
    return "reproduced" if mean > 2 * error and over_cloning > 2 * its_error else "not reproduced"


def on_hopper(seeds: Sequence[int], updates: int, quality: str = "mixed") -> tuple[dict[str, list[float]], str]:
    """Mean return over 16 held-out starts, by arm and seed, from logged data of that quality."""
    from surefoot import tasks

    try:
        task = tasks.load(f"offline:Hopper-v5:quality={quality}")
    except InputError as e:
        return {}, f"B was left out: {e}"
    clone = IQL.set("surrogate.beta", 1e9)
    found = {
        "cloning": [ours(task, clone, s, updates) for s in seeds],
        "IQL": [ours(task, IQL, s, updates) for s in seeds],
    }
    try:
        import d3rlpy  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found, "d3rlpy is not installed: its IQL was left out"
    found["IQL of d3rlpy"] = [theirs(task, s, updates) for s in seeds]
    return (
        found,
        f"B: {updates} updates of batches of 256 and networks of 64 x 64 in every arm; d3rlpy {d3rlpy.__version__}",
    )


def ours(task: Any, method: Any, seed: int, updates: int) -> float:
    """Return of IQL's own policy kind after so many updates, through the trainer."""
    from surefoot import policies
    from surefoot.training.settings import Settings
    from surefoot.training.trainer import Trainer

    torch.manual_seed(seed)
    policy = policies.load(method.home.policy, task)
    settings = Settings(**(dict(method.home.train) | {"seed": seed, "schedule": "constant"}))
    trainer = Trainer(policy, task, method, settings)
    for _ in range(updates // method.update.minibatches):
        trainer.train_step()
    return evaluate(policy, task, 16, 1)["return"]


def theirs(task: Any, seed: int, updates: int) -> float:
    """Return of d3rlpy's IQL on the same data, in the same units, with networks of the same size."""
    import d3rlpy  # pyright: ignore[reportMissingImports]
    import structlog  # pyright: ignore[reportMissingImports]

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    data, (mean, scale) = task.data, task.scale()
    states, ended = ((data["states"] - mean) / scale).numpy(), data["ended"].numpy()
    breaks = np.append((data["next_states"][:-1] != data["states"][1:]).any(1).numpy(), True)
    logged = d3rlpy.dataset.MDPDataset(
        states, data["actions"].numpy(), (task.unit * data["reward"]).numpy(), ended * 1.0, (breaks & ~ended) * 1.0
    )
    width = d3rlpy.models.encoders.VectorEncoderFactory([64, 64])
    d3rlpy.seed(seed)
    algo = d3rlpy.algos.IQLConfig(
        actor_encoder_factory=width, critic_encoder_factory=width, value_encoder_factory=width
    ).create(device=False)
    algo.build_with_dataset(logged)
    for _ in range(updates):
        algo.update(logged.sample_transition_batch(256))

    class Theirs:
        width = task.actions

        def act(self, states: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            actions = torch.from_numpy(algo.predict(((states - mean) / scale).numpy()))
            return actions, torch.zeros(len(actions)), actions

    return evaluate(Theirs(), task, 16, 1)["return"]


def _draw(folder: Path, grids: Sequence[dict[str, float]], few: Sequence[dict[str, float]]) -> Path:
    from surefoot.report.figures import canvas, save

    with canvas(5.2, 3.4) as figure:
        axes = figure.subplots()
        for label, rows in (("100 episodes", grids), ("30 episodes", few)):
            means = [mean_and_spread([g[f"tau {tau}"] for g in rows]) for tau in TAUS]
            axes.errorbar(range(len(TAUS)), [m for m, _ in means], [2 * e for _, e in means], marker="o", label=label)
        for name, style in (("optimal", "--"), ("cloning", ":")):
            axes.axhline(float(np.mean([g[name] for g in grids])), linestyle=style, color="0.4", label=name)
        axes.set_xticks(range(len(TAUS)), [str(t) for t in TAUS])
        axes.set(xlabel="tau", ylabel="return on the true model", title="IQL on the grid with a wall")
        axes.legend()
        return save(figure, folder / "iql")[0]


CLAIM = Claim(
    slug="iql",
    statement="Fitting V to an upper expectile of in-sample action values carries a reward back through the best of "
    "the data, where one-step learning (tau 1/2) and cloning do not.",
    refuted_if="tau = .9 is at or below tau = .5 on two thirds of the data sets of the grid or more",
    run=run,
)
