"""Named rewards into one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import InputError, nearest
from surefoot.objective.groups import working
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def totals(rewards: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "n"]]:
    """Each named reward as one number a trajectory (step rewards are summed).

    >>> totals({"a": torch.tensor([1.0]), "b": torch.tensor([[0.5, 0.25]])})
    {'a': tensor([1.]), 'b': tensor([0.7500])}
    """
    return {name: r if r.ndim == 1 else r.sum(1) for name, r in rewards.items()}


def overlong_penalty(length: Int[Tensor, "n"], limit: int, buffer: int) -> Float[Tensor, "n"]:
    """DAPO's soft punishment (arXiv 2503.14476, eq. 13): 0 up to `limit - buffer`, then linear to -1 at `limit`.

    >>> overlong_penalty(torch.tensor([70, 80, 90, 100]), limit=100, buffer=20)
    tensor([ 0.0000,  0.0000, -0.5000, -1.0000])
    """
    over = length.float() - (limit - buffer)
    return 0.0 - (over / buffer).clamp(0, 1) if buffer else torch.zeros_like(over)


def last_step(mask: Bool[Tensor, "n t"]) -> Bool[Tensor, "n t"]:
    """The last chosen step of each trajectory.

    >>> last_step(torch.tensor([[True, False, True, False]]))
    tensor([[False, False,  True, False]])
    """
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def reward_at_last_step(reward: Float[Tensor, "n"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """The trajectory's reward on its last chosen step, 0 elsewhere.

    >>> reward_at_last_step(torch.tensor([5.0]), torch.tensor([[True, True, False]]))
    tensor([[0., 5., 0.]])
    """
    return reward[:, None] * last_step(mask).to(reward.dtype)


def shaped(
    step_reward: Float[Tensor, "n t"], potential: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], gamma: float = 1.0
) -> Float[Tensor, "n t"]:
    """`r + gamma Phi(s') - Phi(s)` (Ng, Harada, Russell 1999): leaves the optimal policy as it is.

    `potential` is that of the state before each step; after the last chosen step it is 0.

    >>> shaped(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.75]]), torch.ones(1, 2).bool())
    tensor([[0.2500, 0.2500]])
    """
    after = torch.zeros_like(potential)
    following = potential.new_zeros(len(potential))
    for t in reversed(range(potential.shape[1])):
        after[:, t] = following
        following = potential[:, t].where(mask[:, t], following)
    return (step_reward + gamma * after - potential).where(mask, 0.0)


def soft_min(rewards: Float[Tensor, "k n"], temperature: float) -> Float[Tensor, "n"]:
    """`-tau log mean_k exp(-r_k / tau)`: the worst reward at tau = 0, the mean at infinity.

    For large tau it is `mean - Var / (2 tau) + O(tau^-2)`, Var the population variance over k. In any tau it is
    computed from the differences to the worst, so that nothing cancels.

    >>> soft_min(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), 0.1)
    tensor([0.0693, 1.0000])
    """
    worst = rewards.min(0).values
    if temperature == 0:
        return worst
    if math.isinf(temperature):
        return rewards.mean(0)
    return worst - temperature * ((worst - rewards) / temperature).expm1().mean(0).log1p()


def disagreement(rewards: Float[Tensor, "k n"], ddof: int = 0) -> Float[Tensor, "n"]:
    """Variance over the members; 0 where there are not more than `ddof`.

    >>> disagreement(torch.tensor([[1.0], [3.0]])), disagreement(torch.ones(1, 2), ddof=1)
    (tensor([1.]), tensor([0., 0.]))
    """
    return rewards.var(0, correction=ddof) if len(rewards) > ddof else torch.zeros_like(rewards[0])


@dataclass(frozen=True)
class Sum(Part):
    """Weighted sum of the named rewards; a name without a weight counts once.

    Raises:
        InputError: no reward at all, or a weight for a reward that the task does not give.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def weighted(self, rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each named reward, of whatever shape, times its weight."""
        if not rewards:
            raise InputError(f"reward ({type(self).__name__}): the task gives no reward, expected at least one")
        for name in self.weights:
            if name not in rewards:
                raise InputError(f"reward: weight for {name!r}, which the task does not give{nearest(name, rewards)}")
        return {name: float(self.weights.get(name, 1.0)) * r for name, r in rewards.items()}

    def total(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        """The weighted sum."""
        return _stacked(self.weighted(totals(rollouts.rewards))).sum(0)

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"] | dict[str, Tensor]:
        return self.total(rollouts)


@dataclass(frozen=True)
class SoftMin(Sum):
    """`soft_min` of the weighted rewards: plenty of one reward does not buy another."""

    temperature: float = 0.1

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        return soft_min(_stacked(self.weighted(totals(rollouts.rewards))), self.temperature)


@dataclass(frozen=True)
class SelfNormalized(Sum):
    """Weighted sum of the rewards, each first standardised by its own running mean and deviation.

    The statistics run over all trajectories of the run so far, this batch included: rewards of any scale weigh alike,
    and a batch in which one of them hardly varies is not blown up.
    """

    eps: float = 1e-4

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        standard = {name: self._standard(name, r) for name, r in totals(rollouts.rewards).items()}
        return _stacked(self.weighted(standard)).sum(0)

    def _standard(self, name: str, reward: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Merge the batch's moments into the memory (Chan et al. 1979), and standardise by the merged ones."""
        count, mean, squares = self.memory.get(name, (0, 0.0, 0.0))
        r = reward.double()
        n, here = len(r), float(r.mean())
        gap, total = here - mean, count + n
        mean += gap * n / total
        squares += float((r - here).square().sum()) + gap**2 * count * n / total
        self.memory[name] = [total, mean, squares]
        return ((r - mean) / (math.sqrt(squares / max(1, total - 1)) + self.eps)).to(working(reward).dtype)


@dataclass(frozen=True)
class PerStep(Sum):
    """The weighted sum, and the same paid out step by step as `step_reward`.

    Rewards that the task gives a step stay on their steps; those of whole trajectories are paid at the last one.
    """

    reads = ("mask",)
    adds = ("step_reward",)

    def __call__(self, rollouts: Rollouts) -> dict[str, Tensor]:
        paid = [
            r if r.ndim == 2 else reward_at_last_step(r, rollouts.mask)
            for r in self.weighted(rollouts.rewards).values()
        ]
        return {"reward": self.total(rollouts), "step_reward": torch.stack(paid).sum(0)}


@dataclass(frozen=True)
class Shaped(PerStep):
    """Step rewards shaped by a potential (`shaped`); `reward`, which is reported, stays as the task gave it.

    Attributes:
        potential: the column that holds it, before each step.
        gamma: the discount of the advantage part that reads `step_reward`.
    """

    potential: str = "old_value"
    gamma: float = 1.0

    @property
    def reads(self) -> tuple[str, ...]:
        return ("mask", self.potential)

    def __call__(self, rollouts: Rollouts) -> dict[str, Tensor]:
        paid = super().__call__(rollouts)
        return paid | {"step_reward": shaped(paid["step_reward"], rollouts[self.potential], rollouts.mask, self.gamma)}


@dataclass(frozen=True)
class KLInReward(PerStep):
    """`r_t - coef log(pi / ref)` at every step: the KL penalty as a reward (InstructGPT, arXiv 2203.02155, eq. 2).

    Its policy gradient is that of the KL between whole sequences, what a KL loss at each step is not.
    """

    coef: float = 0.04

    @property
    def reads(self) -> tuple[str, ...]:
        return ("mask", "old_logp", "ref_logp") if self.coef else ("mask",)

    def __call__(self, rollouts: Rollouts) -> dict[str, Tensor]:
        paid = super().__call__(rollouts)
        if not self.coef:
            return paid
        price = self.coef * (rollouts.old_logp - rollouts.ref_logp).where(rollouts.mask, 0.0)
        return {"reward": paid["reward"] - price.sum(1), "step_reward": paid["step_reward"] - price}


@dataclass(frozen=True)
class Ensemble(KLInReward):
    """One conservative reward of several models that judge the same thing (arXiv 2310.02743), less the KL penalty.

    `soft_min(members, temperature) - penalty Var(members)`. Mean: the defaults; worst case (WCO): temperature 0;
    uncertainty-weighted (UWO): a penalty. Rewards of other names do not count (a gold reward that is only watched).

    Attributes:
        members: rewards whose names begin so.
        temperature: of `soft_min`: infinity is the mean, 0 the worst.
        penalty: weight of the members' variance (not of their deviation).
        ddof: 0 divides the variance by k, 1 by k - 1.

    Raises:
        InputError: no such reward.
    """

    members: str = "proxy"
    temperature: float = math.inf
    penalty: float = 0.0
    ddof: int = 0
    coef: float = 0.0

    def weighted(self, rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The one reward of the members (each times its weight)."""
        named = [r for name, r in super().weighted(rewards).items() if name.startswith(self.members)]
        if not named:
            raise InputError(
                f"reward (Ensemble): no reward named {self.members}...; the task gives {', '.join(rewards)} "
                "(--task scored:by=RUN+RUN,TASK has reward models give them; --set reward.members=NAME takes others)"
            )
        return {"ensemble": self.of(torch.stack(named))}

    def of(self, members: Float[Tensor, "k n"]) -> Float[Tensor, "n"]:
        """The members' scores as one."""
        agreed = soft_min(members, self.temperature)
        return agreed - self.penalty * disagreement(members, self.ddof) if self.penalty else agreed


def _stacked(named: Mapping[str, Float[Tensor, "n"]]) -> Float[Tensor, "k n"]:
    return torch.stack(list(named.values()))


@dataclass(frozen=True)
class OverlongPenalty(Sum):
    """The weighted sum, minus DAPO's punishment of responses near the length limit (`overlong_penalty`).

    Attributes:
        limit: length limit in steps; none takes the longest trajectory that was truncated (no punishment where none).
        share: of the limit over which the punishment grows (4096 of 20480 tokens in the paper).
    """

    limit: int | None = None
    share: float = 0.2
    reads = ("mask", "truncated")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        reward, length = self.total(rollouts), rollouts.mask.sum(1)
        if self.limit is None and not rollouts.truncated.any():
            return reward
        limit = self.limit or int(length[rollouts.truncated].max())
        return reward + overlong_penalty(length, limit, round(self.share * limit))
