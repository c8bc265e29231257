"""VIMPO: the implied value says which token earned the reward, and wrong labels do less harm (arXiv 2606.20008).

A tree of six tokens over four, a reward for the right first and third token: credit belongs to two of six positions,
and the exact advantage of every token is known. Four groups of eight a batch. Labels are clean, or a quarter is
inverted, each by itself or whole groups at once (the authors' code).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import Table, learn, mean_and_spread, over_seeds, runs, trajectories
from surefoot.method import Method
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.methods.rlvr.vimpo import VIMPO, ImpliedCredit, ImpliedValueLoss
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.surrogates import Clip
from surefoot.objective.terms import Term
from surefoot.rollouts import Rollouts

TOKENS, DEPTH, GROUPS, GROUP, FLIPPED, BETA, ACTOR = 4, 6, 4, 8, 0.25, 0.2, 0.05
LEAVES = torch.arange(TOKENS**DEPTH)
RIGHT = ((LEAVES // TOKENS**5 == 0) & (LEAVES // TOKENS**3 % TOKENS == 0)).float()  # first and third token
LABELS = ("clean", "a quarter of the labels wrong", "a quarter of the groups wrong")


def vimpo(lam: float = 1.0, coef: float = ACTOR, beta: float = BETA) -> Method:
    """VIMPO with these settings."""
    actor = Term(Clip(0.2, 0.28, 10.0), coef, TokenMean())
    return VIMPO.but(advantage=ImpliedCredit(beta, 1.0, lam), surrogate=ImpliedValueLoss(beta), regularizers=(actor,))


class Arm(NamedTuple):
    """A method with the learning rate at which its first steps are about as large as the others'."""

    method: Method
    lr: float


JUDGED, BASE = "VIMPO, lam 1", "GRPO"
ARMS = {
    BASE: Arm(GRPO.but(regularizers=()), 12.0),
    JUDGED: Arm(vimpo(), 40.0),
    "VIMPO, lam 0": Arm(vimpo(lam=0.0), 40.0),
    "VIMPO, value loss alone": Arm(vimpo(coef=0.0), 40.0),
}
MORE = {
    "VIMPO, lam 1, c_A .3": Arm(vimpo(coef=0.3), 40.0),
    "VIMPO, lam 1, beta .05": Arm(vimpo(beta=0.05, coef=ACTOR / 4), 160.0),
    "VIMPO, lam 1, beta .5": Arm(vimpo(beta=0.5, coef=ACTOR * 2.5), 16.0),
    "GRPO, half the rate": Arm(GRPO.but(regularizers=()), 6.0),
    "GRPO, twice the rate": Arm(GRPO.but(regularizers=()), 24.0),
}


class Course(NamedTuple):
    """Exact return before every batch; correlation of the advantages with the exact ones, from the sixth batch on."""

    success: list[float]
    correlation: list[float]

    def area(self) -> float:
        """Return, averaged over the batches."""
        return float(np.mean(self.success))


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """120 batches; `full` takes 300, and more settings."""
    arms, batches = (ARMS, 120) if size == "quick" else (ARMS | MORE, 300)
    found = {
        name: {how: runs(lambda s, a=arm, h=how: course(a, s, batches, h), seeds) for how in LABELS}
        for name, arm in arms.items()
    }
    measured = [row for name, by_label in found.items() for row in _rows(name, by_label)]
    credit = [a - b for a, b in zip(*(_credit(found[name]) for name in (JUDGED, BASE)), strict=True)]
    harm = [a - b for a, b in zip(*(_harm(found[name]) for name in (BASE, JUDGED)), strict=True)]
    measured.append(over_seeds(f"{JUDGED}: correlation less {BASE}'s", credit))
    measured.append(over_seeds(f"{BASE}: loss of return by wrong labels less that of {JUDGED}", harm))
    pictures = [_draw(report, found)] if report else []
    return Outcome(verdict(credit, harm), measured, pictures, NOTES)


NOTES = (
    "Correlation is over the tokens of a batch with the exact advantage, clean labels, from the sixth batch until the "
    "return is .95. The loss by wrong labels is of the return averaged over the batches, and over both kinds of error. "
    "Half of the claim holds: credit is better, best in single terms (lam 0). But wrong labels cost VIMPO more: fresh "
    "errors shrink GRPO's expected gradient and leave its direction, while here they also move the regression's target."
)


def verdict(credit: Sequence[float], harm: Sequence[float]) -> Verdict:
    """From VIMPO's correlation above GRPO's, and the harm that it is spared, over seeds."""
    found = [mean_and_spread(x) for x in (credit, harm)]
    if any(mean <= 0 for mean, _ in found):
        return "refuted"
    return "reproduced" if all(mean > 2 * error for mean, error in found) else "not reproduced"


def _credit(by_label: dict[str, list[Course]]) -> list[float]:
    return [float(np.mean(c.correlation)) for c in by_label["clean"]]


def _harm(by_label: dict[str, list[Course]]) -> list[float]:
    noisy = np.mean([[c.area() for c in by_label[how]] for how in LABELS[1:]], axis=0)
    return list(np.array([c.area() for c in by_label["clean"]]) - noisy)


def course(arm: Arm, seed: int, batches: int, labels: str) -> Course:
    """Learn from `batches` batches, with labels of one of the three kinds."""
    generator = torch.Generator().manual_seed(seed)
    table, method = Table(torch.zeros((TOKENS**DEPTH - 1) // (TOKENS - 1), TOKENS)), arm.method.fresh()
    group, found = torch.arange(GROUPS).repeat_interleave(GROUP), Course([], [])
    for batch in range(batches):
        q, value = exact(table.policy())
        found.success.append(float(value[0]))
        states, actions = walk(table, len(group), generator)
        leaf = (actions * TOKENS ** torch.arange(DEPTH - 1, -1, -1)).sum(1)
        flips = torch.rand(len(group), generator=generator) < FLIPPED
        flips = {"clean": flips & False, LABELS[1]: flips, LABELS[2]: flips[:GROUPS][group]}[labels]
        judged = trajectories(actions, (RIGHT[leaf] - flips.float()).abs(), group)
        if labels == "clean" and batch >= 5 and max(found.success) < 0.95:
            advantage = q[states, actions] - value[states]
            found.correlation.extend(_correlation(guess(method, table, states, judged), advantage))
        learn(method, table, states, judged, arm.lr)
    return found


@torch.no_grad()
def guess(method: Method, table: Table, states: Int[Tensor, "n t"], batch: Rollouts) -> Float[Tensor, "n t"]:
    """The method's advantages of a batch, before whitening."""
    part = method.advantage
    if not isinstance(part, ImpliedCredit):
        return part(batch)
    live = table.columns(states, batch.tokens, {"kl"})
    ref = table.reference[states].gather(-1, batch.tokens[..., None])[..., 0]
    batch = batch.having(ref_logp=ref, old_logp=live["logp"], old_kl=live["kl"])
    return ImpliedCredit(part.beta, part.gamma, part.lam, whitened=False)(batch)["advantage"]


def walk(table: Table, n: int, generator: torch.Generator) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """States (numbered breadth first) and tokens of n trajectories."""
    state, states, actions = torch.zeros(n, dtype=torch.long), [], []
    for _ in range(DEPTH):
        action = table.draw(state, generator)
        states.append(state)
        actions.append(action)
        state = state * TOKENS + action + 1
    return torch.stack(states, 1), torch.stack(actions, 1)


def exact(policy: Float[Tensor, "s a"]) -> tuple[Float[Tensor, "s a"], Float[Tensor, "s"]]:
    """Expected reward of every action in every state, and of every state."""
    q, value, end = [RIGHT.view(-1, TOKENS)], [], len(policy)
    for depth in reversed(range(DEPTH)):
        start = end - TOKENS**depth
        value.append((policy[start:end] * q[-1]).sum(1))
        q.append(value[-1].view(-1, TOKENS) if depth else q[-1])
        end = start
    return torch.cat(q[DEPTH - 1 :: -1]), torch.cat(value[::-1])


def _correlation(a: Tensor, b: Tensor) -> list[float]:
    """Pearson's; nothing where one of the two is constant."""
    if a.std() < 1e-12 or b.std() < 1e-12:
        return []
    return [float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])]


def _rows(name: str, by_label: dict[str, list[Course]]) -> list[dict]:
    rows = [over_seeds(f"{name}: correlation with the exact advantage", _credit(by_label))]
    for how, courses in by_label.items():
        rows.append(over_seeds(f"{name}, {how}: mean return", [c.area() for c in courses]))
        rows.append(over_seeds(f"{name}, {how}: return at the end", [c.success[-1] for c in courses]))
    return rows


def _draw(folder: Path, found: dict[str, dict[str, list[Course]]]) -> Path:
    """Return by batch under each kind of label; means over seeds."""
    from surefoot.report.figures import COLOURS, canvas, save

    with canvas(10.2, 3.2) as figure:
        for axes, how in zip(figure.subplots(1, 3, sharey=True), LABELS, strict=True):
            for (name, by_label), colour in zip(found.items(), COLOURS, strict=False):
                axes.plot(np.mean([c.success for c in by_label[how]], axis=0), color=colour, label=name)
            axes.set(xlabel="batches", title=how)
        figure.axes[0].set(ylabel="exact return")
        figure.axes[0].legend(fontsize=7)
        return save(figure, folder / "vimpo")[0]


CLAIM = Claim(
    slug="vimpo",
    statement="The advantages implied by policy and reference agree better with the exact ones than GRPO's single "
    "advantage of a trajectory, and wrong labels do less harm.",
    refuted_if="their correlation with the exact advantages is not above that of GRPO's, or a quarter of wrong labels "
    "costs as much return as it costs GRPO",
    run=run,
    seeds=tuple(range(8)),
)
