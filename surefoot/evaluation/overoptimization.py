"""Proxy and gold: what is optimised, what was meant, and where they part.

A policy optimised against a proxy of the true ("gold") reward finds the proxy's errors: the proxy goes on rising while
gold falls. The curve is against how far optimisation went, in nats of KL from where it started. Best-of-n needs no
training, so its curve is exact up to the samples (Gao et al., arXiv 2210.10760, for the curve and the bound on the KL).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln

from surefoot.errors import InputError
from surefoot.evaluation.evaluate import sample_heldout
from surefoot.objective.rewards import Ensemble
from surefoot.rollout.native import Sampling
from surefoot.tasks.base import Task

RULES = {"mean": Ensemble(), "WCO": Ensemble(temperature=0.0), "UWO": Ensemble(penalty=0.5)}  # arXiv 2310.02743


def best_of_n(proxy: Float[np.ndarray, "*b s"], gold: Float[np.ndarray, "*b s"], n: int) -> Float[np.ndarray, "*b"]:
    """Expected gold of the sample that the proxy likes best of n, over all subsets of the s samples: unbiased.

    `sum_{i >= n} C(i - 1, n - 1) / C(s, n) g_(i)`, g_(i) the gold of the i-th smallest proxy (arXiv 2310.02743; the
    order of equal proxies is the order they stand in).

    Raises:
        ValueError: n outside 1..s.

    >>> [round(float(best_of_n(np.arange(4.), np.array([1., 3, 5, 2]), n)), 4) for n in (1, 2, 3, 4)]
    [2.75, 3.1667, 2.75, 2.0]
    """
    s = proxy.shape[-1]
    if not 1 <= n <= s:
        raise ValueError(f"best of {n} of {s} samples; expected 1 <= n <= {s}")
    i = np.arange(n, s + 1)
    log_weight = _log_choose(i - 1, n - 1) - _log_choose(s, n)
    ordered = np.take_along_axis(gold, proxy.argsort(-1, kind="stable"), -1)
    return ordered[..., n - 1 :] @ np.exp(log_weight)


def _log_choose(n: Any, k: int) -> Any:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def best_of_n_kl(n: float | np.ndarray) -> Any:
    """`log n - (n - 1) / n` nats: KL of best-of-n from its base, exact without ties, else a bound from above.

    >>> best_of_n_kl(np.array([1, 4, 16, 64, 256])).round(4)
    array([0.    , 0.6363, 1.8351, 3.1745, 4.5491])
    """
    return np.log(n) - (n - 1) / n


@dataclass(frozen=True, eq=False)
class Curve:
    """Proxy and gold along optimisation, one row a seed.

    Attributes:
        distance: KL from the start, nats [t].
        proxy, gold: [seeds, t].
    """

    distance: Float[np.ndarray, "t"]
    proxy: Float[np.ndarray, "s t"]
    gold: Float[np.ndarray, "s t"]

    @property
    def peak(self) -> Float[np.ndarray, "s"]:
        return self.gold.max(-1)

    @property
    def final(self) -> Float[np.ndarray, "s"]:
        return self.gold[:, -1]

    @property
    def gap(self) -> Float[np.ndarray, "s"]:
        """Peak minus final gold: the measure of over-optimisation, 0 where gold never fell."""
        return self.peak - self.final

    def draw(self, axes: Any, colour: str, label: str, proxy: bool = True) -> None:
        """Gold as a line, with a band of one deviation over seeds; the proxy dashed."""
        mean, spread = self.gold.mean(0), self.gold.std(0)
        axes.plot(self.distance, mean, "o-", color=colour, markersize=3, label=label)
        axes.fill_between(self.distance, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        if proxy:
            axes.plot(self.distance, self.proxy.mean(0), "--", color=colour, linewidth=1)


def best_of_n_curve(proxy: Float[np.ndarray, "b s"], gold: Float[np.ndarray, "b s"], sizes: Sequence[int]) -> Curve:
    """The curve of best-of-n over `sizes`, one row for each row of samples (a seed, or a prompt)."""
    found = [(best_of_n(proxy, proxy, n), best_of_n(proxy, gold, n)) for n in sizes]
    shown, meant = (np.stack(side, -1) for side in zip(*found, strict=True))
    return Curve(best_of_n_kl(np.asarray(sizes, float)), shown, meant)


def by_rule(members: Float[np.ndarray, "k *b"]) -> dict[str, Float[np.ndarray, "*b"]]:
    """The one score of each way to judge by several models: the first alone (`single`), and each of `RULES`."""
    scores = torch.from_numpy(members)
    return {"single": members[0]} | {name: rule.of(scores).numpy() for name, rule in RULES.items()}


def of_policy(
    policy: Any, task: Task, problems: int, k: int, seed: int = 0, sampling: Sampling | None = None
) -> dict[str, dict[str, Curve]]:
    """Best-of-n of a policy's held-out samples by the task's models (`tasks.scored`), for n = 1, 2, 4, ... k.

    Returns:
        for each thing that was meant (`gold`, where there is a gold model, and `correct`), a curve of each rule, with a
        row for each problem.

    Raises:
        InputError: a task without rewards of models.
    """
    sampling = sampling or Sampling(max_new_tokens=task.max_new_tokens)
    batches = sample_heldout(policy, task, problems, k, seed, sampling)
    names = [name for name in batches[0].rewards if name.startswith(Ensemble.members)]
    if not names:
        raise InputError(f"task {task.name!r}: has no reward of a model; expected a task of the kind 'scored'")

    def column(of: Any) -> Float[np.ndarray, "p k"]:
        return torch.cat([of(b).double() for b in batches]).view(-1, k).numpy()

    members = np.stack([column(lambda b, n=name: b.rewards[n]) for name in names])
    meant = {"gold": column(lambda b: b.rewards["gold"])} if "gold" in batches[0].rewards else {}
    meant["correct"] = column(lambda b: b.correct)
    sizes = [2**i for i in range(k.bit_length())]
    return {
        what: {rule: best_of_n_curve(score, gold, sizes) for rule, score in by_rule(members).items()}
        for what, gold in meant.items()
    }


def synthetic(
    samples: int,
    members: int,
    rng: np.random.Generator,
    shared: float = 0.3,
    own: float = 0.5,
    hacked: float = 0.01,
    bonus: float = 4.0,
    correlated: bool = False,
) -> tuple[Float[np.ndarray, "s"], Float[np.ndarray, "k s"]]:
    """Gold N(0, 1), and proxies that are gold with errors: the testbed where all is known.

    Args:
        shared, own: deviations of the noise that all members share, and of each one's own.
        hacked: chance that a member overrates a sample, by an exponential of mean `bonus`.
        correlated: all members overrate the same samples by the same, which no ensemble can see.
    """
    gold = rng.normal(size=samples)
    noise = shared * rng.normal(size=samples) + own * rng.normal(size=(members, samples))
    shape = (1 if correlated else members, samples)
    errors = np.where(rng.random(shape) < hacked, rng.exponential(bonus, shape), 0.0)
    return gold, gold + noise + errors
