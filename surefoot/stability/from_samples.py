"""What samples say about the cliff, and what they cannot say: nine estimators.

"The Policy Cliff" (arXiv 2507.20150) is about optimal policies of known rewards. A trained run shows only responses,
their rewards and their probabilities; the identities here connect the two (derived from the paper, checked against
enumeration in tests/stability). Each number comes as an `Estimate`, which says whether it is exact, a bound or an
estimate. Samples alone never give a lower bound on the distance to a cliff: "no cliff seen" is not "safe".

The functions of one prompt take `weight`, the policy's probability of each response, where the responses are
enumerated; without it they are a sample and count the same. Rewards are raw, `beta` is the coefficient on the KL
divergence of whole responses.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import fisher_exact

from surefoot.errors import InputError
from surefoot.evaluation.intervals import Interval, clopper_pearson
from surefoot.exact.operators import log_mean_exp, log_or_minus_inf, softmax
from surefoot.exact.roots import bracketed_root

Kind = Literal["exact", "upper bound", "lower bound", "estimate"]
Array = Float[np.ndarray, "n"]
Labels = Sequence[str] | np.ndarray
LEAST_ESS = 10.0


@dataclass(frozen=True)
class Estimate:
    """One number about a prompt or a run.

    Attributes:
        item: which of the nine estimators (1 to 9).
        name: what it measures.
        value: the number; None where it cannot be given, and `cannot_say` tells why.
        interval: 95 % interval, where there is one.
        n: responses it rests on.
        ess: effective sample size of the weights; None where they are equal.
        kind: what the number is, relative to the truth.
        says: one sentence on what it means.
        cannot_say: what it leaves open.
        prompt: the prompt; None for the run.
    """

    item: int
    name: str
    value: float | None
    interval: Interval | None
    n: int
    ess: float | None
    kind: Kind
    says: str
    cannot_say: str = ""
    prompt: int | None = None


def effective_size(log_weight: Array) -> float:
    """Effective sample size `(sum w)^2 / sum w^2` (Kish 1965), from log weights."""
    w = np.asarray(log_weight, float)
    return float(np.exp(2 * np.logaddexp.reduce(w) - np.logaddexp.reduce(2 * w)))


def _probabilities(weight: Array | None, n: int) -> Array:
    return np.full(n, 1 / n) if weight is None else np.asarray(weight, float) / np.sum(weight)


# 1. Ties


@dataclass(frozen=True)
class Tie:
    """The responses with the best reward seen.

    Attributes:
        share: of all responses.
        classes: share of each class among them.
        gap: best reward minus the best of another class (0 where two classes tie); None when only one was seen.
    """

    share: float
    classes: dict[str, float]
    gap: float | None

    @property
    def height(self) -> float:
        """How far the policy would jump if the tie broke towards its least likely class: `max_b 1 - p_b`."""
        return 1 - min(self.classes.values())


def tie(reward: Array, label: Labels, tol: float = 0.0, weight: Array | None = None) -> Tie:
    """The best responses seen, the classes among them, and the gap to the best response of another class.

    >>> found = tie(np.array([1., 1., 1., 0.]), ["4", "4", "four", "5"])
    >>> round(found.share, 2), round(found.height, 2), found.gap
    (0.75, 0.67, 0.0)
    """
    reward, p = np.asarray(reward, float), _probabilities(weight, len(reward))
    best = reward >= reward.max() - tol
    classes: defaultdict[str, float] = defaultdict(float)
    for name, share in zip(np.asarray(label, dtype=object)[best], p[best] / p[best].sum(), strict=True):
        classes[str(name)] += float(share)
    tops: dict[str, float] = {}
    for name, r in zip(label, reward, strict=True):
        tops[str(name)] = max(float(r), tops.get(str(name), -math.inf))
    ranked = sorted(tops.values(), reverse=True)
    return Tie(float(p[best].sum()), dict(classes), ranked[0] - ranked[1] if len(ranked) > 1 else None)


# 2. What was not seen


def zero_events(n: int, level: float = 0.95) -> float:
    """Largest mass of an event never seen in n draws: `1 - (1 - level)^(1/n)`.

    >>> round(zero_events(59), 4), round(zero_events(299), 5)
    (0.0495, 0.00997)
    """
    return 1 - (1 - level) ** (1 / n)


def unseen_class_mass(label: Labels) -> float:
    """Mass of the classes not seen: share of draws whose class was seen once (Good 1953).

    >>> unseen_class_mass(["a", "a", "b", "c"])
    0.5
    """
    return sum(c == 1 for c in Counter(map(str, label)).values()) / len(label)


def range_confidence(n: int, mass: Any) -> Any:
    """Confidence that at most `mass` lies outside the smallest and largest of n draws of a scalar (Wilks 1941).

    >>> round(range_confidence(93, .05), 3), round(range_confidence(8, .05), 3)
    (0.95, 0.057)
    """
    return 1 - n * (1 - mass) ** (n - 1) + (n - 1) * (1 - mass) ** n


def outside_range(n: int, level: float = 0.95) -> float:
    """The mass that `range_confidence` reaches at `level`; 1 for fewer than two draws."""
    if n < 2:
        return 1.0
    return float(bracketed_root(lambda q: range_confidence(n, q) - level, np.array(0.0), np.array(1.0)))


# 3. Drift along the tie


@dataclass(frozen=True)
class Drift:
    """Class shares within the tie: the policy's, and those that the regularised optimum would keep.

    Attributes:
        now: the policy's.
        reference: the reference's, conditioned on the tie.
        distance: total variation between the two.
        ess: effective sample size of the reference shares.
    """

    now: dict[str, float]
    reference: dict[str, float]
    distance: float
    ess: float


def slack_drift(label: Labels, log_ratio: Array, weight: Array | None = None) -> Drift:
    """Drift of the responses within one tie away from the reference: movement that no reward pays for.

    With beta > 0 the optimum keeps the reference's distribution inside a tie, `pi*(b | T) = pi_ref(b | T)`. The right
    side is estimated from the policy's own samples, weighted by `exp(-log_ratio)`.
    """
    p = _probabilities(weight, len(label))
    log_weight = np.log(p) - np.asarray(log_ratio, float)
    now, reference = _shares(label, p), _shares(label, softmax(log_weight))
    distance = 0.5 * sum(abs(now[b] - reference[b]) for b in now)
    return Drift(now, reference, distance, effective_size(-np.asarray(log_ratio, float)))


def drift_test(prompt: Array, late: np.ndarray, label: Labels, draws: int = 999, seed: int = 0) -> tuple[float, float]:
    """Did the class shares move between two checkpoints? Labels of the checkpoint are permuted within prompts.

    Args:
        prompt, label: of each response within the ties.
        late: True for the later checkpoint.

    Returns:
        the mean over prompts of the total variation between the class shares, and its permutation p value.
    """
    prompt, late, names = np.asarray(prompt), np.asarray(late, bool), np.asarray(label, dtype=object)
    groups = [(late[prompt == x], names[prompt == x]) for x in np.unique(prompt)]
    groups = [(when, what) for when, what in groups if when.any() and not when.all()]
    if not groups:
        raise InputError("drift: no prompt was answered at both checkpoints")
    rng = np.random.default_rng(seed)

    def moved(shuffle: bool) -> float:
        turns = [rng.permutation(when) if shuffle else when for when, _ in groups]
        return float(np.mean([class_distance(what[~w], what[w]) for w, (_, what) in zip(turns, groups, strict=True)]))

    seen = moved(False)
    return seen, (1 + sum(moved(True) >= seen - 1e-12 for _ in range(draws))) / (1 + draws)


# 4. Is the policy at the regularised optimum?


@dataclass(frozen=True)
class Residual:
    """How far a policy is from the optimum of `E[r] - beta KL(. || reference)`.

    Attributes:
        kl: `KL(pi || pi*)` in nats.
        small: its small-residual form, `Var(e) / (2 beta^2)`.
        spread: `std(e) / beta`.
        ess: effective sample size of the weights `exp(e / beta)`, in responses.
    """

    kl: float
    small: float
    spread: float
    ess: float


def residual(reward: Array, log_ratio: Array, beta: float, weight: Array | None = None) -> Residual:
    """Distance to the optimum: `e = r - beta * log_ratio` is constant over responses iff the policy is optimal.

    `KL(pi || pi*) = log E_pi[exp(e / beta)] - E_pi[e] / beta`. From a sample it is biased low and heavy-tailed; trust
    it only where `ess` is at least 10.

    >>> pi, ref = np.array([.55, .15, .2, .1]), np.array([.5, .3, .15, .05])
    >>> found = residual(np.array([1., 0., 1., 1.]), np.log(pi / ref), .5, weight=pi)
    >>> round(found.kl, 7), round(found.small, 7)
    (0.0750058, 0.0924618)
    """
    p = _probabilities(weight, len(reward))
    e = (np.asarray(reward, float) - beta * np.asarray(log_ratio, float)) / beta
    mean = p @ e
    variance = p @ (e - mean) ** 2
    if weight is None and len(e) > 1:
        variance *= len(e) / (len(e) - 1)
    log_mean = float(log_mean_exp(e, 1.0, log_or_minus_inf(p)))
    kl = log_mean - float(mean)
    ess = len(e) * float(np.exp(2 * log_mean - log_mean_exp(2 * e, 1.0, log_or_minus_inf(p))))
    return Residual(max(kl, 0.0), float(variance) / 2, float(np.sqrt(variance)), ess)


# 5. What if the reward changed?


def reward_change(delta: Array, beta: float, weight: Array | None = None) -> tuple[float, float]:
    """Total variation between the optimum and the optimum for `r + delta`, and the effective share ESS/n.

    `TV = 1/2 E|w / E[w] - 1|` with `w = exp(delta / beta)`, in expectation over the present optimum. From another
    policy's samples it is one mirror-descent step from that policy.
    """
    p = _probabilities(weight, len(delta))
    log_w = np.asarray(delta, float) / beta
    log_mean = float(log_mean_exp(log_w, 1.0, log_or_minus_inf(p)))
    distance = 0.5 * float(p @ np.abs(np.exp(log_w - log_mean) - 1))
    return distance, float(np.exp(2 * log_mean - log_mean_exp(2 * log_w, 1.0, log_or_minus_inf(p))))


def reward_change_cap(span: float, beta: float) -> float:
    """Largest total variation when the change of the reward has this span (known beforehand): `tanh(span/(4 beta))`.

    1 at beta = 0: no bound.

    >>> round(reward_change_cap(.2, .5), 7)
    0.099668
    """
    return math.tanh(span / (4 * beta)) if beta > 0 else 1.0


# 6. Two policies


def total_variation(log_other_over_own: Array, weight: Array | None = None) -> float:
    """`E_{y ~ pi}[(1 - pi'(y) / pi(y))_+]`, unbiased and in [0, 1].

    >>> pi, other = np.array([.5, .5]), np.array([.8, .2])
    >>> round(total_variation(np.log(other / pi), weight=pi), 12)
    0.3
    """
    p = _probabilities(weight, len(log_other_over_own))
    return float(p @ -np.expm1(np.minimum(np.asarray(log_other_over_own, float), 0.0)))


def hoeffding(n: float, level: float = 0.95) -> float:
    """Half width of an interval of a mean of n independent numbers in [0, 1] (Hoeffding 1963).

    >>> round(hoeffding(1000), 3)
    0.043
    """
    return math.sqrt(math.log(2 / (1 - level)) / (2 * n))


def class_distance(first: Labels, second: Labels) -> float:
    """Total variation between class shares of two samples; biased up, see `class_distance_null`.

    >>> class_distance(["a", "a"], ["a", "b"])
    0.5
    """
    p, q = Counter(map(str, first)), Counter(map(str, second))
    return 0.5 * sum(abs(p[b] / len(first) - q[b] / len(second)) for b in p.keys() | q.keys())


def class_distance_null(labels: Labels, draws: int = 200, seed: int = 0) -> float:
    """Mean `class_distance` between random halves of one policy's samples: the bias to subtract."""
    names, rng = np.asarray(labels, dtype=object), np.random.default_rng(seed)
    half = len(names) // 2
    if not half:
        return 1.0
    shuffles = (rng.permutation(names) for _ in range(draws))
    return float(np.mean([class_distance(s[:half], s[half:]) for s in shuffles]))


def reward_effect(distance: Float[np.ndarray, "m m"], arm: np.ndarray) -> tuple[float, float]:
    """Effect of a reward beyond seed noise: mean distance across the two arms minus mean distance within an arm.

    Args:
        distance: total variation between each pair of trained policies.
        arm: which of two rewards each was trained on.

    Returns:
        the effect, and the p value over all relabellings (smallest: .100, .029, .008 with 3, 4, 5 seeds an arm).
    """
    arm = np.asarray(arm, bool)
    m, size = len(arm), int(np.sum(arm))
    if min(size, m - size) < 2:
        raise InputError(f"reward effect: {size} and {m - size} runs an arm; expected at least two on each side")

    def effect(chosen: Sequence[int] | np.ndarray) -> float:
        one = np.isin(np.arange(m), chosen)
        upper = np.triu(np.ones((m, m), bool), 1)
        across = one[:, None] != one[None, :]
        return float(distance[upper & across].mean() - distance[upper & ~across].mean())

    seen = effect(np.flatnonzero(arm))
    every = [effect(chosen) for chosen in combinations(range(m), size)]
    return seen, sum(e >= seen - 1e-12 for e in every) / len(every)


def collapse_test(first: int, of_first: int, second: int, of_second: int) -> float:
    """Do two rewards collapse onto a class equally often? Fisher's exact p value.

    >>> round(collapse_test(10, 24, 14, 24), 2)
    0.39
    """
    found: Any = fisher_exact([[first, of_first - first], [second, of_second - second]])
    return float(found.pvalue)


# 7. Several rewards


@dataclass(frozen=True)
class FlipMargin:
    """How much must go wrong before one candidate overtakes the best one.

    Attributes:
        margin: `sum_k w_k (r_k,best - r_k,other)`.
        all_err: the order flips when every reward errs by this.
        alone: by reward, when it alone errs by this.
        decisive: the reward with the smallest of these.
        weights: the order flips when the weights move by this much (L1); infinite when the best wins on every reward.
        exact: whether `weights` is exact (the donor has that much weight to give) or a lower bound.
    """

    margin: float
    all_err: float
    alone: dict[str, float]
    decisive: str
    weights: float
    exact: bool


def flip_margin(best: Mapping[str, float], other: Mapping[str, float], weights: Mapping[str, float]) -> FlipMargin:
    """Margins between two candidates under several weighted rewards.

    >>> m = flip_margin({"a": 1, "b": .2}, {"a": .9, "b": .6}, {"a": .9, "b": .1})
    >>> round(m.margin, 9), round(m.all_err, 9), round(m.alone["b"], 9), round(m.weights, 9)
    (0.05, 0.025, 0.25, 0.2)
    """
    if not weights or any(w < 0 for w in weights.values()):
        raise InputError("flip margin: weights must be named and not negative")
    d = {k: best[k] - other[k] for k in weights}
    margin = sum(weights[k] * d[k] for k in weights)
    total = sum(weights.values())
    alone = {k: margin / (2 * w) if w > 0 else math.inf for k, w in weights.items()}
    donor, taker = max(d, key=d.__getitem__), min(d, key=d.__getitem__)
    span = d[donor] - d[taker]
    possible = span > 0 and d[taker] <= 0
    moved = 2 * margin / span if possible else math.inf
    return FlipMargin(
        margin,
        margin / (2 * total),
        alone,
        min(alone, key=alone.__getitem__),
        moved,
        possible and moved / 2 <= weights[donor] + 1e-12,
    )


# 8. Group normalisation


def normalized_advantage(reward: Array, eps: float = 1e-6) -> Array:
    """`(r - mean) / (std + eps)` with the population standard deviation (GRPO).

    >>> r = np.ones(8); r[0] += 1e-3
    >>> [round(float(normalized_advantage(r, eps)[0]), 4) for eps in (1e-6, 1e-4)]
    [2.6378, 2.0315]
    """
    reward = np.asarray(reward, float)
    return (reward - reward.mean()) / (reward.std() + eps)


def tie_breaker_share(groups: Sequence[tuple[Array, Array]], eps: float = 1e-6, tol: float = 1e-12) -> float:
    """Share of all advantage that comes from groups whose primary reward is constant.

    Args:
        groups: (combined reward, primary reward) of each group.

    Returns:
        `sum |A| over groups with a constant primary reward / sum |A|`; 0 where nothing has an advantage.
    """
    size = [float(np.abs(normalized_advantage(r, eps)).sum()) if np.ptp(r) > tol else 0.0 for r, _ in groups]
    steered = [a for a, (_, primary) in zip(size, groups, strict=True) if np.ptp(primary) <= tol]
    return sum(steered) / sum(size) if sum(size) > 0 else 0.0


# 9. The verifier's errors


@dataclass(frozen=True)
class Verified:
    """What a pass rate means: accuracy, and the share of accepted answers that are wrong."""

    accuracy: float
    false_share: float


def verifier(passes: float, accepts_wrong: float, rejects_right: float) -> Verified:
    """Accuracy behind a pass rate, given the verifier's audited error rates.

    `p = (v - a) / (1 - a - b)`, clipped to [0, 1]; wrong among accepted: `a (1 - p) / v`.

    Raises:
        InputError: error rates that add up to 1 or more: passing says nothing about being right.

    >>> found = verifier(.6, .05, .1)
    >>> round(found.accuracy, 6), round(found.false_share, 6)
    (0.647059, 0.029412)
    """
    if not (0 <= accepts_wrong <= 1 and 0 <= rejects_right <= 1) or accepts_wrong + rejects_right >= 1:
        raise InputError(f"verifier: error rates {accepts_wrong} and {rejects_right}; expected a sum below 1")
    p = min(max((passes - accepts_wrong) / (1 - accepts_wrong - rejects_right), 0.0), 1.0)
    return Verified(p, min(accepts_wrong * (1 - p) / passes, 1.0) if passes > 0 else 0.0)


def wrong_share(right: float, wrong: float, beta: float, bonus: float = 0.0) -> float:
    """Share of systematically accepted wrong answers at the regularised optimum.

    Inside the tie the optimum keeps the reference's masses `right` and `wrong`; a bonus on the wrong ones multiplies
    their odds by `exp(bonus / beta)`.

    >>> round(wrong_share(.2, .002, .01), 6), round(wrong_share(.2, .002, .01, .05), 6)
    (0.009901, 0.597445)
    """
    log_odds = math.log(wrong / right) + bonus / beta
    return 1 / (1 + math.exp(-log_odds))


def audit_limit(wrong: int, audited: int) -> float:
    """Upper 95 % limit (one-sided) of the false share, from an audit of accepted answers (Clopper & Pearson 1934).

    >>> round(audit_limit(0, 59), 3)
    0.05
    """
    return clopper_pearson(wrong, audited, level=0.90)[1]


def _shares(label: Labels, p: Array) -> dict[str, float]:
    shares: defaultdict[str, float] = defaultdict(float)
    for name, mass in zip(label, p, strict=True):
        shares[str(name)] += float(mass)
    return dict(shares)
