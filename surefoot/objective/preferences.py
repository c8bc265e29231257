"""Preferences: the Bradley-Terry family as one composition, `shape(score of the chosen, score of the rejected)`.

A score is one number a response, made of its log-probability and those of anchors (none, one or two reference
policies, each with a weight) through a link. A shape turns the two scores of a pair into a loss, most of them through
the margin `score(chosen) - score(rejected)` alone:

    loss      score                                 shape
    DPO       log pi/ref                            logistic(beta m)
    IPO       log pi/ref                            (m - 1/(2 tau))^2
    SLiC      log pi                                relu(1 - beta m)
    SimPO     mean log pi                           logistic(beta m - gamma)
    chi-PO    phi(log pi/ref), phi(l) = e^l + l     logistic(beta m), clipped
    AlphaPO   (1 - e^(-a mean log pi)) / a          logistic(beta m - gamma)
    ORPO      log odds of the mean                  logistic(m), beside the likelihood of the chosen

The parts at the end (`DPO`, `IPO`, ...) write this table in code. Functions take scores or margins of pairs, [n], and
return losses of pairs, [n]. Sequence log-probabilities are sums over the response's own tokens, in float32 or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.objective.groups import joint_key, working
from surefoot.objective.ratios import LIMIT, anchored
from surefoot.objective.rewards import last_step
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

# --- scores: one number a response --------------------------------------------------------------------------------


def log_link(log_ratio: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """DPO's: the log-ratio itself. Its implied regulariser is the reverse KL.

    >>> log_link(torch.tensor([0.4]))
    tensor([0.4000])
    """
    return log_ratio


def chi_squared_link(log_ratio: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`phi(l) = e^l + l`, the chi-squared (and KL) regulariser's (chi-PO, arXiv 2407.13399, algorithm 1).

    The exponent is held at 20; above that the slope is 1 and not 1 + e^l (OUR CHOICE).

    >>> chi_squared_link(torch.tensor([0.4, -0.3]))
    tensor([1.8918, 0.4408])
    """
    return log_ratio.clamp(max=LIMIT).exp() + log_ratio


def forward_kl_link(log_ratio: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`1 - e^-l` (f-DPO, arXiv 2309.16240); e^-l is held at e^20.

    >>> forward_kl_link(torch.tensor([0.4, -0.3]))
    tensor([ 0.3297, -0.3499])
    """
    return -(-log_ratio).clamp(max=LIMIT).expm1()


def js_link(log_ratio: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`log(2 e^l / (1 + e^l))`: Jensen-Shannon's (f-DPO, arXiv 2309.16240).

    >>> js_link(torch.tensor([0.4, -0.3]))
    tensor([ 0.1801, -0.1612])
    """
    return math.log(2) + F.logsigmoid(log_ratio)


@dataclass(frozen=True)
class PowerLink(Part):
    """`(1 - e^(-a l)) / a`, whose limit at a = 0 is l itself; the exponent is held at 20.

    Of a log-ratio it is the alpha divergence's link (f-DPO, arXiv 2309.16240): the forward KL's at a = 1, the reverse
    KL's at a = 0. Of a mean log-probability it is AlphaPO's reward (arXiv 2501.03884).

    >>> PowerLink(0.5)(torch.tensor([0.4, -0.3]))
    tensor([ 0.3625, -0.3237])
    """

    alpha: float = 0.5

    def __call__(self, log_ratio: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        if self.alpha == 0:
            return log_ratio
        return -(-self.alpha * log_ratio).clamp(max=LIMIT).expm1() / self.alpha


def log_odds(mean_logp: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`log(p / (1 - p))`, with p the geometric mean of the token probabilities (ORPO, arXiv 2403.07691, eq. 4).

    A mean log-probability of 0 is taken as -1e-7.

    >>> log_odds(torch.tensor([0.75, 0.5]).log())
    tensor([1.0986, 0.0000])
    """
    mean_logp = mean_logp.clamp(max=-1e-7)
    return mean_logp - (-mean_logp.expm1()).log()


def sequence_logp(logp: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n"]:
    """Sum of the log-probabilities of a response's own tokens.

    >>> sequence_logp(torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([-3.])
    """
    return working(logp).where(mask, 0.0).sum(1)


def desensitised_logp(
    logp: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], shared: Int[Tensor, "n"], tail: float
) -> Float[Tensor, "n"]:
    """Sum over the first `shared` tokens, and `tail` times the rest (LD-DPO, arXiv 2409.06411).

    Args:
        shared: length of the shorter response of the pair.
        tail: weight of what the longer one says beyond that: 1 is DPO, 0 forgets it.

    >>> one = torch.ones(2, 3, dtype=torch.bool)
    >>> desensitised_logp(-torch.ones(2, 3), one, torch.tensor([1, 3]), tail=0.5)
    tensor([-2., -3.])
    """
    beyond = mask.long().cumsum(1) > shared[:, None]
    weight = torch.where(beyond, tail, 1.0)
    return (working(logp).where(mask, 0.0) * weight).sum(1)


def on_policy_weight(
    logp: Float[Tensor, "n t"], collision: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]
) -> Float[Tensor, "n"]:
    """How much a response looks like one of the policy's own (WPO, arXiv 2406.11827, eq. 2), detached.

    The geometric mean over its tokens of `pi(y_t) / sum_v pi(v)^2`, a ratio whose mean under pi is 1 at every step. A
    pair weighs the product of its two.

    Args:
        collision: `log sum_v pi(v)^2` at each step.

    >>> p = torch.tensor([0.5, 0.25, 0.25])
    >>> on_policy_weight(p[None, :1].log(), p.square().sum().log().view(1, 1), torch.ones(1, 1).bool())
    tensor([1.3333])
    """
    gap = (working(logp) - collision).detach().where(mask, 0.0)
    return (gap.sum(1) / mask.sum(1).clamp_min(1)).exp()


# --- shapes of a margin -------------------------------------------------------------------------------------------


def logistic(margin: Float[Tensor, "n"], flipped: float | Tensor = 0.0) -> Float[Tensor, "n"]:
    """`-(1 - e) log sigmoid(m) - e log sigmoid(-m)`: Bradley-Terry with soft labels.

    `flipped` is the probability e that the label is wrong (0: DPO, arXiv 2305.18290, eq. 7; above 0: conservative DPO;
    1/2: a tie). The gradient with respect to m is `e - sigmoid(-m)`: e > 0 makes margins finite.

    >>> logistic(torch.tensor([0.07, 2.0]), torch.tensor([0.0, 0.1]))
    tensor([0.6588, 0.3269])
    """
    return F.softplus(-margin) + flipped * margin


def robust_logistic(margin: Float[Tensor, "n"], flipped: float) -> Float[Tensor, "n"]:
    """Unbiased under label noise: `((1 - e) l(m) - e l(-m)) / (1 - 2e)` (robust DPO, arXiv 2403.00409).

    If labels are flipped with probability e < 1/2, its expectation over the flips is the clean logistic loss.

    >>> robust_logistic(torch.tensor([2.0]), 0.1)
    tensor([-0.1231])
    """
    return (logistic(margin) * (1 - flipped) - flipped * logistic(-margin)) / (1 - 2 * flipped)


def square(margin: Float[Tensor, "n"], target: float | Tensor) -> Float[Tensor, "n"]:
    """`(m - target)^2` (IPO, arXiv 2310.12036, eq. 17, with target `1 / (2 tau)`): margins are pulled to a value.

    >>> square(torch.tensor([0.0, 5.0]), 1 / (2 * 0.1))
    tensor([25.,  0.])
    """
    return (margin - target).square()


def hinge(margin: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`relu(1 - m)` (SLiC-HF, arXiv 2305.10425, its delta being 1/beta; with a reference RSO, arXiv 2309.06657).

    >>> hinge(torch.tensor([0.3, 2.0]))
    tensor([0.7000, 0.0000])
    """
    return (1 - margin).relu()


def exact_matching(margin: Float[Tensor, "n"], flipped: float) -> Float[Tensor, "n"]:
    """`KL(softmax over the pair || (1 - e, e))`, the reverse of logistic's KL (EXO, arXiv 2402.00856, eq. 16).

    Defined for 0 < e < 1 only: a hard label makes it infinite.

    >>> exact_matching(torch.tensor([0.0, 2.0]), 0.1)
    tensor([0.5108, 0.0019])
    """
    win, lose = F.logsigmoid(margin), F.logsigmoid(-margin)
    return win.exp() * (win - math.log1p(-flipped)) + lose.exp() * (lose - math.log(flipped))


def modulated(margin: Float[Tensor, "n"], temperature: float = 0.05) -> Float[Tensor, "n"]:
    """Between logistic and exponential by `g = sigmoid(m / temperature)` (DiscoPOP, arXiv 2406.08414, eq. 5).

    `(1 - g) logistic(m) + g e^-m`, the exponent held at 20. Found by search over
    code, and not monotone: at beta = temperature = .05 it pushes pairs with log-ratio margins between -2.37 and 1.44
    towards the lower end (the paper's section 6; tested).

    >>> modulated(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([1.3133, 0.8466, 0.3679])
    """
    gate = (margin / temperature).sigmoid()
    return (1 - gate) * logistic(margin) + gate * (-margin).clamp(max=LIMIT).exp()


# --- shapes of two scores -----------------------------------------------------------------------------------------


def noise_contrast(chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """NCA of a pair (arXiv 2402.05369): also stops the chosen from losing likelihood.

    `-log s(w) - log s(-w)/2 - log s(-l)/2`, with s the sigmoid.

    >>> noise_contrast(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([1.3863])
    """
    return F.softplus(-chosen) + 0.5 * F.softplus(chosen) + 0.5 * F.softplus(rejected)


def binary(chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"], shift: float | Tensor = 0.0):
    """BCO (arXiv 2404.04656): a classifier of each response, `-log s(w - d) - log s(d - l)`.

    Never below `logistic(w - l)`, whatever the shift d, and closest to it at d = (w + l) / 2: the paper takes a running
    mean of all scores (`Classifier`), TRL's `bco_pair` takes 0.

    >>> w, l = torch.tensor([3.0]), torch.tensor([2.0])
    >>> binary(w, l), binary(w, l, shift=2.5), logistic(w - l)
    (tensor([2.1755]), tensor([0.9482]), tensor([0.3133]))
    """
    return F.softplus(shift - chosen) + F.softplus(rejected - shift)


def self_play(chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"], target: float) -> Float[Tensor, "n"]:
    """SPPO with hard wins (arXiv 2405.00675, eq. 4.7): `(w - target)^2 + (l + target)^2`, target `1 / (2 beta)`.

    >>> self_play(torch.tensor([1.0]), torch.tensor([0.0]), target=5.0)
    tensor([41.])
    """
    return square(chosen, target) + square(rejected, -target)


def anchored_up(chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """APO-zero (arXiv 2408.06266, eq. 7): chosen up, rejected down; `s(-w) + s(l)`.

    >>> anchored_up(torch.tensor([1.0]), torch.tensor([-1.0]))
    tensor([0.5379])
    """
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def anchored_down(chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """APO-down (arXiv 2408.06266, eq. 8): both down, rejected further; `s(w) + s(l - w)`.

    >>> anchored_down(torch.tensor([1.0]), torch.tensor([-1.0]))
    tensor([0.8503])
    """
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def prospect(
    score: Float[Tensor, "n"],
    desirable: Bool[Tensor, "n"],
    origin: float | Tensor,
    gain: float = 1.0,
    loss: float = 1.0,
) -> Float[Tensor, "n"]:
    """KTO of single responses (arXiv 2402.01306): `gain s(z - r)` if desirable, else `loss s(r - z)`.

    The origin z is (beta times) the KL between policy and reference, detached and not below 0.

    >>> prospect(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), origin=0.0, gain=2.0)
    tensor([1.0000, 0.5000])
    """
    shortfall = torch.where(desirable, origin - score, score - origin)
    return torch.where(desirable, gain, loss) * shortfall.sigmoid()


def transport_margin(chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Margins between equal quantiles (AOT unpaired, arXiv 2406.05882): a convex loss of them asks the chosen
    scores to dominate the rejected ones as distributions.

    AOT paired is the same function of other arguments: the policy's own margins `log pi_w - log pi_l`, and the
    reference's.

    >>> transport_margin(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor([1., 1.])
    """
    return chosen.sort().values - rejected.sort().values


# --- lists --------------------------------------------------------------------------------------------------------


def plackett_luce(score: Float[Tensor, "n k"], listed: Bool[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """`-log P(this order)`, best first (DPO, arXiv 2305.18290, appendix A.3): each in turn wins a softmax of the rest.

    For lists of two it is `logistic` of the margin. `listed` is false on padding.

    >>> plackett_luce(torch.zeros(2, 3), torch.tensor([[True, True, True], [True, True, False]]))
    tensor([1.7918, 0.6931])
    """
    held = score.where(listed, -torch.inf)
    rest = held.flip(1).logcumsumexp(1).flip(1)
    return (rest - score).where(listed, 0.0).sum(1)


# --- parts: who is paired with whom -------------------------------------------------------------------------------


def pairs(group: Int[Tensor, "n"], reward: Float[Tensor, "n"]) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"]]:
    """Rows of the chosen and of the rejected in each group of two; of equal rewards the later row is rejected.

    Raises:
        InputError: a group that is not of two.

    >>> pairs(torch.tensor([7, 3, 7, 3]), torch.tensor([0.0, 1.0, 1.0, 0.0]))
    (tensor([1, 2]), tensor([3, 0]))
    """
    keys, row, count = group.unique(return_inverse=True, return_counts=True)
    if (count != 2).any():
        odd = int((count != 2).nonzero()[0])
        raise InputError(
            f"preference pairs: group {int(keys[odd])} has {int(count[odd])} trajectories, expected 2 "
            "(--set prompts.rollouts=2)"
        )
    two = row.argsort(stable=True).view(-1, 2)
    swap = reward[two[:, 1]] > reward[two[:, 0]]
    return two[:, 0].where(~swap, two[:, 1]), two[:, 1].where(~swap, two[:, 0])


@dataclass(frozen=True)
class LogRatio(Part):
    """`link(log pi - sum_k w_k log anchor_k)` of whole responses.

    Attributes:
        anchors, weights: columns of anchor log-probabilities and their weights; none for reference-free losses.
        link: `log_link` (DPO), `chi_squared_link` (chi-PO), `forward_kl_link`, `js_link`, `PowerLink()` (f-DPO).
        mean: divide by the response's length (SimPO), before the link.
        tail: weight of the tokens beyond the length of the shorter response of the pair (LD-DPO).
        column: whose log-probability stands for log pi.
    """

    anchors: tuple[str, ...] = ("ref_logp",)
    weights: tuple[float, ...] = (1.0,)
    link: Callable[[Tensor], Tensor] = log_link
    mean: bool = False
    tail: float = 1.0
    column: str = "logp"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column, *self.anchors, "mask")

    def __call__(self, rollouts: Rollouts, partner: Int[Tensor, "n"] | None = None) -> Float[Tensor, "n"]:
        gap, mask = working(rollouts[self.column]), rollouts.mask
        if self.anchors:
            gap = gap - anchored([working(rollouts[a]).detach() for a in self.anchors], self.weights)
        length = mask.sum(1)
        shared = length if partner is None else torch.minimum(length, length[partner])
        total = desensitised_logp(gap, mask, shared, self.tail)
        return self.link(total / length.clamp_min(1) if self.mean else total)


@dataclass(frozen=True)
class LogOdds(Part):
    """`log_odds` of the mean log-probability (ORPO): no reference."""

    reads = ("logp", "mask")

    def __call__(self, rollouts: Rollouts, partner: Int[Tensor, "n"] | None = None) -> Float[Tensor, "n"]:
        return log_odds(sequence_logp(rollouts.logp, rollouts.mask) / rollouts.mask.sum(1).clamp_min(1))


@dataclass(frozen=True)
class EndValue(Part):
    """The value head before the response's last step, which is its end token: a reward model's score of the whole.

    With `Logistic(beta=1)` this is the likelihood of Bradley-Terry's model (arXiv 2203.02155, eq. 1).
    """

    reads = ("value", "mask")

    def __call__(self, rollouts: Rollouts, partner: Int[Tensor, "n"] | None = None) -> Float[Tensor, "n"]:
        return working(rollouts.value).where(last_step(rollouts.mask), 0.0).sum(1)


@dataclass(frozen=True)
class OnPolicyWeight(Part):
    """`on_policy_weight` (WPO) of each response."""

    reads = ("logp", "collision", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        return on_policy_weight(rollouts.logp, rollouts.collision, rollouts.mask)


@dataclass(frozen=True)
class Logistic(Part):
    """`logistic(beta m - offset)`.

    Attributes:
        beta: strength of the implied KL to the anchors.
        flipped: probability that a label is wrong (conservative DPO).
        offset: wanted margin (SimPO's gamma).
        limit: the margin is clipped to +-limit (chi-PO: twice the range of rewards); none for no clip.
    """

    beta: float = 0.1
    flipped: float = 0.0
    offset: float = 0.0
    limit: float | None = None

    def margin(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """`beta m - offset`, before it is clipped."""
        return self.beta * (chosen - rejected) - self.offset

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        margin = self.margin(chosen, rejected)
        return logistic(margin if self.limit is None else margin.clamp(-self.limit, self.limit), self.flipped)


@dataclass(frozen=True)
class RobustLogistic(Part):
    """`robust_logistic(beta m)`, for labels flipped with a known probability below 1/2."""

    beta: float = 0.1
    flipped: float = 0.1

    def __post_init__(self):
        if not 0 <= self.flipped < 0.5:
            raise InputError(f"RobustLogistic.flipped: got {self.flipped}, expected a probability below 0.5")

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return robust_logistic(self.beta * (chosen - rejected), self.flipped)


@dataclass(frozen=True)
class Square(Part):
    """`square(m, 1 / (2 tau))`.

    TRL divides scores by the response's length first, which the paper does not say: `LogRatio(mean=True)` does too.
    """

    tau: float = 0.1

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return square(chosen - rejected, 1 / (2 * self.tau))


@dataclass(frozen=True)
class Hinge(Part):
    """`hinge(beta m)`."""

    beta: float = 0.1

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return hinge(self.beta * (chosen - rejected))


@dataclass(frozen=True)
class ExactMatching(Part):
    """`exact_matching(beta m)`."""

    beta: float = 0.1
    flipped: float = 1e-3

    def __post_init__(self):
        if not 0 < self.flipped < 1:
            raise InputError(f"ExactMatching.flipped: got {self.flipped}, expected a probability above 0, below 1")

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return exact_matching(self.beta * (chosen - rejected), self.flipped)


@dataclass(frozen=True)
class Modulated(Part):
    """`modulated(beta m)`."""

    beta: float = 0.05
    temperature: float = 0.05

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return modulated(self.beta * (chosen - rejected), self.temperature)


@dataclass(frozen=True)
class OfScores(Part):
    """Any function of the two scores times beta: `noise_contrast`, `binary`, `anchored_up`, `anchored_down`."""

    function: Callable[[Tensor, Tensor], Tensor] = noise_contrast
    beta: float = 0.1

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return self.function(self.beta * chosen, self.beta * rejected)


@dataclass(frozen=True)
class Classifier(Part):
    """`binary(beta w, beta l)`, shifted by a running mean of all scores, this minibatch's included.

    Attributes:
        decay: of the mean, at each minibatch (OUR READING: the paper does not give it).
    """

    beta: float = 0.1
    decay: float = 0.9

    whole_batch = True

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        chosen, rejected = self.beta * chosen, self.beta * rejected
        total, weight = self.memory.get("mean", (0.0, 0.0))
        if len(chosen):
            here = 0.5 * float((chosen + rejected).detach().mean())
            total, weight = (self.decay * old + (1 - self.decay) * new for old, new in ((total, here), (weight, 1.0)))
            self.memory["mean"] = [total, weight]
        return binary(chosen, rejected, total / weight if weight else 0.0)


@dataclass(frozen=True)
class SelfPlay(Part):
    """`self_play(w, l, 1 / (2 beta))`."""

    beta: float = 1e-3

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return self_play(chosen, rejected, 1 / (2 * self.beta))


@dataclass(frozen=True)
class Transport(Part):
    """AOT unpaired, a shape of `transport_margin`s: scores are matched by rank, over all pairs of the minibatch."""

    shape: Part = Logistic()

    whole_batch = True

    def __call__(self, chosen: Float[Tensor, "n"], rejected: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        margin = transport_margin(chosen, rejected)
        return self.shape(margin, torch.zeros_like(margin))


@dataclass(frozen=True)
class Preference(Part):
    """Surrogate of groups of two: the one of higher reward is chosen. The pair's loss stands on both of its rows.

    With `SequenceMean` the scalar loss is then the mean over pairs. Pairs of equal reward count 0.

    Attributes:
        score: `LogRatio` or `LogOdds`.
        shape: of two scores to a loss.
        weight: a factor of each response (`OnPolicyWeight`); a pair takes the product. None for no factor.
        coef: factor of the loss (ORPO's lambda).
    """

    score: Part = LogRatio()
    shape: Part = Logistic()
    weight: Part | None = None
    coef: float = 1.0

    whole_groups = True

    @property
    def reads(self) -> tuple[str, ...]:
        extra = self.weight.reads if self.weight else ()
        return tuple(dict.fromkeys((*self.score.reads, *extra, "group", "reward")))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        score, chosen, rejected = self._scored(rollouts)
        loss = self.coef * self.compare(score, chosen, rejected, rollouts)
        if self.weight is not None:
            weight = self.weight(rollouts)
            loss = loss * weight[chosen] * weight[rejected]
        return score.new_zeros(len(score)).index_add(0, chosen, loss).index_add(0, rejected, loss)

    def compare(
        self, score: Float[Tensor, "n"], chosen: Int[Tensor, "p"], rejected: Int[Tensor, "p"], rollouts: Rollouts
    ) -> Float[Tensor, "p"]:
        """Losses of pairs, given the scores of all rows and each pair's two rows."""
        return self.shape(score[chosen], score[rejected])

    def _scored(self, rollouts: Rollouts) -> tuple[Float[Tensor, "n"], Int[Tensor, "p"], Int[Tensor, "p"]]:
        """Scores of all rows, and the two rows of each pair of different reward."""
        chosen, rejected = pairs(rollouts.group, rollouts.reward)
        partner = torch.empty_like(rollouts.group)
        partner[chosen], partner[rejected] = rejected, chosen
        differ = rollouts.reward[chosen] != rollouts.reward[rejected]
        return self.score(rollouts, partner), chosen[differ], rejected[differ]

    @torch.no_grad()
    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Of the pairs of different reward: how often the chosen response has the higher score, the mean scores of
        both (what drifts where), and the share whose margin is clipped, where the shape clips."""
        score, chosen, rejected = self._scored(rollouts)
        high, low, count = score[chosen], score[rejected], max(1, len(chosen))
        found = {
            "preference_accuracy": float((high > low).sum() / count),
            "chosen_score": float(high.sum() / count),
            "rejected_score": float(low.sum() / count),
        }
        if isinstance(self.shape, Logistic) and self.shape.limit is not None:
            found["clipped"] = float((self.shape.margin(high, low).abs() > self.shape.limit).sum() / count)
        return found


@dataclass(frozen=True)
class PairedTransport(Preference):
    """AOT paired (arXiv 2406.05882): the policy's margins `log pi_w - log pi_l` should dominate the reference's.

    Both are sorted, so that a pair's margin is compared with the reference's of equal rank, not of the same pair; with
    one pair in a minibatch it is DPO.

    Attributes:
        score: the policy's, without anchors.
        reference: the score that the margins are compared with, detached.
    """

    score: Part = LogRatio(anchors=(), weights=())
    reference: Part = LogRatio(anchors=(), weights=(), column="ref_logp")

    whole_batch = True

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*super().reads, *self.reference.reads)))

    def compare(
        self, score: Float[Tensor, "n"], chosen: Int[Tensor, "p"], rejected: Int[Tensor, "p"], rollouts: Rollouts
    ) -> Float[Tensor, "p"]:
        other = self.reference(rollouts).detach()
        margin = transport_margin(score[chosen] - score[rejected], other[chosen] - other[rejected])
        return self.shape(margin, torch.zeros_like(margin))


@dataclass(frozen=True)
class ChosenLikelihood(Part):
    """Regularizer: `-coef` times the mean log-probability of the pair's chosen response, on both rows (CPO, ORPO, RPO).

    TRL's `sft` term is the mean over all chosen tokens of the batch instead: equal where lengths are.

    Attributes:
        mean: per token; otherwise of the whole response.
    """

    coef: float = 1.0
    mean: bool = True

    whole_groups = True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", "mask", "group", "reward") if self.coef else ()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        if not self.coef:
            return torch.zeros(len(rollouts), device=rollouts.mask.device)
        chosen, rejected = pairs(rollouts.group, rollouts.reward)
        total = sequence_logp(rollouts.logp, rollouts.mask)
        value = -self.coef * (total / rollouts.mask.sum(1).clamp_min(1) if self.mean else total)[chosen]
        return value.new_zeros(len(total)).index_add(0, chosen, value).index_add(0, rejected, value)


@dataclass(frozen=True)
class Prospect(Part):
    """KTO's loss of single responses (`prospect`); rewards above `threshold` are desirable.

    The origin is the mean log-ratio of the minibatch, detached and held at 0 from below: on the policy's own samples
    that is an unbiased estimate of KL(pi || ref). (KTO has no samples of the policy, and uses mismatched responses of
    its data set; TRL too.)
    """

    beta: float = 0.1
    gain: float = 1.0
    loss: float = 1.0
    threshold: float = 0.5
    score: Part = LogRatio()

    whole_batch = True

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.score.reads, "reward")))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        score = self.beta * self.score(rollouts)
        origin = score.detach().mean().clamp_min(0)
        return prospect(score, rollouts.reward > self.threshold, origin, self.gain, self.loss)


@dataclass(frozen=True)
class Ranking(Part):
    """`plackett_luce` of each group's responses in the order of their rewards; the loss stands on each of its rows.

    Equal rewards keep the order of their rows, which is noise: use it for rewards that rarely tie.
    """

    beta: float = 0.1
    score: Part = LogRatio()

    whole_groups = True

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.score.reads, "group", "reward")))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        row = joint_key(rollouts.group)
        order = rollouts.reward.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        size = row.bincount()
        place = torch.arange(len(row), device=row.device) - (size.cumsum(0) - size)[row[order]]
        score = self.beta * self.score(rollouts)
        table = score.new_zeros(len(size), int(size.max())).index_put((row[order], place), score[order])
        listed = torch.arange(table.shape[1], device=row.device) < size[:, None]
        return plackett_luce(table, listed)[row]


_FREE = LogRatio(anchors=(), weights=())  # reference-free

DPO = Preference()
CONSERVATIVE_DPO = Preference(shape=Logistic(flipped=0.1))
ROBUST_DPO = Preference(shape=RobustLogistic())
IPO = Preference(shape=Square())
SLIC = Preference(_FREE, Hinge(beta=1.0))
RSO = Preference(shape=Hinge())
SIMPO = Preference(LogRatio(anchors=(), weights=(), mean=True), Logistic(beta=2.0, offset=1.0))
CPO = Preference(_FREE)
ORPO = Preference(LogOdds(), Logistic(beta=1.0), coef=0.1)
CHI_PO = Preference(LogRatio(link=chi_squared_link), Logistic(beta=0.05, limit=2.0))
EXO = Preference(shape=ExactMatching())
NCA = Preference(shape=OfScores(noise_contrast))
BCO = Preference(shape=Classifier())
APO_ZERO = Preference(shape=OfScores(anchored_up))
APO_DOWN = Preference(shape=OfScores(anchored_down))
SPPO = Preference(shape=SelfPlay())
DISCOPOP = Preference(shape=Modulated())
AOT = Preference(shape=Transport())
AOT_PAIRED = PairedTransport()
WPO = Preference(weight=OnPolicyWeight())
LD_DPO = Preference(LogRatio(tail=0.5))
KTO = Prospect()
BRADLEY_TERRY = Preference(EndValue(), Logistic(beta=1.0))  # of a reward model
