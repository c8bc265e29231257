"""A run's samples through all nine estimators: per prompt, and pooled over prompts (bootstrap over prompts)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from surefoot.evaluation.intervals import bootstrap_interval, clopper_pearson
from surefoot.stability import from_samples as fs
from surefoot.stability.from_samples import LEAST_ESS, Estimate
from surefoot.stability.samples import Samples

ITEMS = (
    "",
    "ties",
    "unseen mass",
    "slack drift",
    "optimality",
    "reward change",
    "two policies",
    "flip margins",
    "group normalisation",
    "verifier error",
)


@dataclass(frozen=True)
class Question:
    """What the analyst knows besides the samples.

    Attributes:
        beta: coefficient on the KL divergence of whole responses to the reference; 0 without one.
        ceiling: the largest reward there can be; None when it is not known.
        tie_tol: rewards this close count as tied.
        eps: a change of the reward, at most this large for any response, to be robust against.
        primary: the reward that the run is about (others break ties); None takes the combined one.
        group_eps: the constant in (r - mean) / (std + eps); None where advantages are not divided by a deviation.
        accepts_wrong, rejects_right: audited error rates of the verifier; None when it was not audited.
        audit: (wrong, audited) accepted answers of this very policy; None when there was no audit.
    """

    beta: float = 0.0
    ceiling: float | None = None
    tie_tol: float = 0.0
    eps: float = 0.01
    primary: str | None = None
    group_eps: float | None = 1e-6
    accepts_wrong: float | None = None
    rejects_right: float | None = None
    audit: tuple[int, int] | None = None


@dataclass(frozen=True)
class Analysis:
    """Estimates of every prompt, and of the run."""

    prompts: list[Estimate]
    run: list[Estimate]
    responses: int
    groups: int


def analyse(samples: Samples, question: Question | None = None, history: Samples | None = None) -> Analysis:
    """All nine estimators. What the samples lack is said in `cannot_say` of the estimate that needed it.

    Responses of one prompt that come from different steps come from different policies: each (prompt, step) is a
    group of its own, and a prompt's number is the mean over its groups.

    Args:
        samples: responses of the policy in question (a few steps at the end of a run).
        question: what is known besides.
        history: responses of the whole run, for what moved over time; None takes `samples`.
    """
    question = question or Question()
    groups = [g for _, s in samples.by_prompt() for g in _by_step(s)]
    found = [estimate for group in groups for estimate in of_group(group, question)]
    prompts = list(_averaged(found))
    run = [_pooled(prompts, name) for name in dict.fromkeys(e.name for e in prompts)]
    run = [REPOOLED.get(e.name, _as_it_is)(e, groups) for e in run]
    run += [*_over_time(samples if history is None else history, question), *_of_run(samples, groups, question)]
    return Analysis(prompts, sorted(run, key=lambda e: e.item), len(samples), len(groups))


TO_REFERENCE = "distance to the reference"
ANYTHING = "mass of anything unseen"


def of_group(group: Samples, question: Question) -> Iterator[Estimate]:
    """The estimates of responses to one prompt from one policy."""
    for estimator in (_ties, _unseen, _drift, _optimality, _change, _reference, _margins, _normalisation):
        for estimate in estimator(group, question):
            yield replace(estimate, prompt=int(group.prompt[0]))


def _ties(group: Samples, q: Question) -> Iterator[Estimate]:
    n, found = len(group), fs.tie(group.reward, group.label, q.tie_tol, group.weight)
    best = round(found.share * n) if group.weight is None else None
    yield Estimate(
        1,
        "share at the best reward",
        found.share,
        clopper_pearson(best, n) if best is not None else None,
        n,
        None,
        "estimate",
        "share of responses with the best reward seen",
        "whether a better response exists",
    )
    yield Estimate(
        1,
        "classes in the tie",
        float(len(found.classes)),
        None,
        n,
        None,
        "lower bound",
        "different answers that earn the best reward seen",
        "answers not seen",
    )
    yield Estimate(
        1,
        "cliff height",
        found.height,
        None,
        n,
        None,
        "estimate",
        "jump of the policy if the tie broke towards its least likely class seen",
        "heights towards classes not seen, which are larger",
    )
    at_ceiling = q.ceiling is not None and float(group.reward.max()) >= q.ceiling - q.tie_tol
    if not at_ceiling or found.gap is None:
        why = (
            "one class only: no gap was seen"
            if found.gap is None
            else "the reward's ceiling is not known"
            if q.ceiling is None
            else "no response reached the ceiling"
        )
        yield _missing(1, "distance to the cliff", n, f"{why}: samples bound nothing")
    elif len(found.classes) > 1:
        yield Estimate(
            1,
            "distance to the cliff",
            found.gap / 2,
            None,
            n,
            None,
            "exact" if found.gap == 0 else "upper bound",
            "two classes tie at the reward's ceiling: an arbitrarily small change decides between them",
            "",
        )
    else:
        yield Estimate(
            1,
            "distance to the cliff",
            found.gap / 2,
            None,
            n,
            None,
            "upper bound",
            "a reward error this large can change the best answer",
            "a lower bound: responses not seen can close the gap",
        )


def _unseen(group: Samples, q: Question) -> Iterator[Estimate]:
    if group.weight is not None:
        return
    n, policy = len(group), "what the optimum could reach; this is about the policy that was sampled"
    yield Estimate(
        2,
        ANYTHING,
        fs.zero_events(n),
        (0.0, fs.zero_events(n)),
        n,
        None,
        "upper bound",
        "any one event that never occurred has at most this probability (95 %)",
        policy,
    )
    yield Estimate(
        2,
        "mass of unseen classes",
        fs.unseen_class_mass(group.label),
        None,
        n,
        None,
        "estimate",
        "Good-Turing: share of responses whose class was seen once",
        policy,
    )
    yield Estimate(
        2,
        "mass outside the seen range",
        fs.outside_range(n),
        (0.0, fs.outside_range(n)),
        n,
        None,
        "upper bound",
        "of any scalar, below the smallest or above the largest seen (95 %)",
        policy,
    )


def _drift(group: Samples, q: Question) -> Iterator[Estimate]:
    name, n = "drift along the tie", len(group)
    if group.log_ratio is None:
        yield _missing(3, name, n, NO_REFERENCE)
        return
    best = group.reward >= group.reward.max() - q.tie_tol
    weight = None if group.weight is None else group.weight[best]
    found = fs.slack_drift(group.label[best], group.log_ratio[best], weight)
    if weight is None and found.ess < LEAST_ESS:
        why = f"effective sample size {found.ess:.1f} is below {LEAST_ESS:.0f}: larger groups are needed"
        yield _missing(3, name, int(best.sum()), why, found.ess)
        return
    yield Estimate(
        3,
        name,
        found.distance,
        None,
        int(best.sum()),
        found.ess,
        "estimate",
        "movement inside the tie away from the reference's shares: no reward pays for it",
        "classes not seen; whether the movement is chance (compare checkpoints)",
    )


def _optimality(group: Samples, q: Question) -> Iterator[Estimate]:
    name, n = "KL to the regularised optimum", len(group)
    if group.log_ratio is None or q.beta <= 0:
        yield _missing(4, name, n, NO_REFERENCE if group.log_ratio is None else NO_BETA)
        return
    found = fs.residual(group.reward, group.log_ratio, q.beta, group.weight)
    if group.weight is None and found.ess < LEAST_ESS:
        yield _missing(
            4,
            name,
            n,
            f"effective sample size {found.ess:.1f} is below {LEAST_ESS:.0f}; std(e)/beta is "
            f"{found.spread:.2g}: the Lipschitz bound says nothing about this policy",
            found.ess,
        )
        return
    yield Estimate(
        4,
        name,
        found.kl,
        None,
        n,
        found.ess,
        "estimate" if group.weight is None else "exact",
        f"nats; small-residual form {found.small:.4g}",
        "" if group.weight is not None else "the true value can be larger: the estimate is biased low and heavy-tailed",
    )


def _change(group: Samples, q: Question) -> Iterator[Estimate]:
    n = len(group)
    if q.beta <= 0:
        yield _missing(5, f"change of reward up to {q.eps:g}", n, "beta is 0: no finite bound; see the ties (1)")
        return
    yield Estimate(
        5,
        f"change of reward up to {q.eps:g}",
        fs.reward_change_cap(2 * q.eps, q.beta),
        None,
        n,
        None,
        "upper bound",
        "the optimum moves at most this far (total variation)",
        "how far the trained policy moves: it need not be at the optimum (4)",
    )
    for name in group.rewards if len(group.rewards) > 1 else ():
        delta = -group.weights.get(name, 1.0) * group.rewards[name]
        distance, share = fs.reward_change(delta, q.beta, group.weight)
        yield Estimate(
            5,
            f"without reward {name!r}",
            distance,
            None,
            n,
            share * n,
            "estimate",
            "total variation to the optimum without this reward, if the policy is at its optimum (4)",
            "else it is one mirror step from this policy; responses not seen",
        )


def _reference(group: Samples, q: Question) -> Iterator[Estimate]:
    if group.log_ratio is None:
        yield _missing(6, TO_REFERENCE, len(group), NO_REFERENCE)
        return
    value = fs.total_variation(-group.log_ratio, group.weight)
    half = fs.hoeffding(len(group)) if group.weight is None else 0.0
    yield Estimate(
        6,
        TO_REFERENCE,
        value,
        (max(value - half, 0.0), min(value + half, 1.0)),
        len(group),
        None,
        "estimate" if group.weight is None else "exact",
        "total variation between policy and reference",
        "for long responses it is near 1 whatever happened; compare class shares",
    )


def _margins(group: Samples, q: Question) -> Iterator[Estimate]:
    name, n = "flip margin", len(group)
    if len(group.rewards) < 2:
        yield _missing(7, name, n, "the run has one reward; margins compare several")
        return
    weights = {k: group.weights.get(k, 1.0) for k in group.rewards}
    tops = [rows[np.argmax(group.reward[rows])] for rows in _classes(group.label)]
    if len(tops) < 2:
        yield _missing(7, name, n, "one class only: no other candidate was seen")
        return
    best = max(tops, key=lambda i: group.reward[i])
    scores = {i: {k: float(v[i]) for k, v in group.rewards.items()} for i in tops}
    margins = [fs.flip_margin(scores[best], scores[j], weights) for j in tops if j != best]
    least = min(margins, key=lambda m: m.all_err)
    yield Estimate(
        7,
        name,
        least.all_err,
        None,
        n,
        None,
        "upper bound",
        f"the best answer changes when every reward errs by this; decisive reward {least.decisive!r}, "
        f"alone {least.alone[least.decisive]:.4g}; weights may move {least.weights:.4g} (L1)",
        "candidates not seen can be nearer",
    )


def _normalisation(group: Samples, q: Question) -> Iterator[Estimate]:
    if q.group_eps is None:
        yield _missing(8, "gain of group normalisation", len(group), NO_DIVISION)
        return
    spread = float(np.sqrt(np.cov(group.reward, aweights=group.weight, ddof=0)))
    yield Estimate(
        8,
        "gain of group normalisation",
        1 / (spread + q.group_eps),
        None,
        len(group),
        None,
        "exact",
        "how many times a difference in reward is enlarged in this group",
        "",
    )


def _of_run(samples: Samples, groups: list[Samples], q: Question) -> Iterator[Estimate]:
    """What is about the run and not about any one prompt: items 8 and 9."""
    if q.group_eps is None:
        yield _missing(8, "tie-breaker share", len(samples), NO_DIVISION)
    elif q.primary is None:
        yield _missing(
            8,
            "tie-breaker share",
            len(samples),
            "no primary reward was named (--primary): a tie-breaker cannot be told from the reward",
        )
    else:
        pairs = [(g.reward, g.rewards[q.primary]) for g in groups]
        yield Estimate(
            8,
            "tie-breaker share",
            fs.tie_breaker_share(pairs, q.group_eps),
            None,
            len(samples),
            None,
            "exact",
            "share of all advantage from groups whose primary reward is constant: rising, the run "
            "is steered by whatever breaks ties",
        )
    yield from _verified(samples, q)


def _over_time(samples: Samples, q: Question) -> Iterator[Estimate]:
    """First against last checkpoint: drift inside ties (3), and class shares (6)."""
    drift, moved = "drift between checkpoints", "class shares, first to last checkpoint"
    both = [] if samples.step is None else list(_twice_answered(samples))
    if not both:
        why = "no prompt was answered at two checkpoints"
        yield _missing(3, drift, len(samples), why)
        yield _missing(6, moved, len(samples), why)
        return
    ties = [
        (x, late[best], labels[best])
        for x, late, labels, reward in both
        for best in [reward >= reward.max() - q.tie_tol]
        if 0 < late[best].sum() < best.sum()
    ]
    if ties:
        prompt = np.concatenate([np.full(len(late), x) for x, late, _ in ties])
        value, p = fs.drift_test(prompt, np.concatenate([t[1] for t in ties]), np.concatenate([t[2] for t in ties]))
        yield Estimate(
            3,
            drift,
            value,
            None,
            len(prompt),
            None,
            "estimate",
            f"class shares inside ties moved by this much on average; permutation p = {p:.3g}",
            "small groups move by chance: read the p value, not the distance",
        )
    else:
        yield _missing(3, drift, len(samples), "no tie was seen at both checkpoints")
    excess = np.array(
        [fs.class_distance(labels[~late], labels[late]) - fs.class_distance_null(labels) for _, late, labels, _ in both]
    )
    yield Estimate(
        6,
        moved,
        float(excess.mean()),
        bootstrap_interval(excess),
        sum(len(b[1]) for b in both),
        None,
        "estimate",
        "total variation of class shares beyond random halves of the same answers",
        "changes within a class",
    )


def _verified(samples: Samples, q: Question) -> Iterator[Estimate]:
    if q.audit is not None:
        wrong, n = q.audit
        yield Estimate(
            9,
            "wrong among accepted (audit)",
            wrong / n,
            (0.0, fs.audit_limit(wrong, n)),
            n,
            None,
            "estimate",
            "share of accepted answers that a person found wrong",
            "other policies' answers",
        )
    if q.accepts_wrong is None or q.rejects_right is None:
        yield _missing(
            9,
            "accuracy behind the pass rate",
            len(samples),
            "the verifier's error rates were not given (--false-accept, --false-reject)",
        )
        return
    passed = samples.reward if q.primary is None else samples.rewards[q.primary]
    if not np.all(np.isin(passed, (0.0, 1.0))):
        yield _missing(9, "accuracy behind the pass rate", len(samples), "the reward is not 0 or 1: no pass rate")
        return
    rate = _by_prompt_mean(samples, passed)
    low, high = bootstrap_interval(rate)
    of = [fs.verifier(v, q.accepts_wrong, q.rejects_right) for v in (float(rate.mean()), low, high)]
    yield Estimate(
        9,
        "accuracy behind the pass rate",
        of[0].accuracy,
        (of[1].accuracy, of[2].accuracy),
        len(samples),
        None,
        "estimate",
        f"wrong among accepted: {of[0].false_share:.3g}",
        "whether the error rates hold for this policy: audit fresh accepted answers",
    )


NO_REFERENCE = "the rollouts hold no ref_logp for every response: train with a KL term, or score the reference"
NO_DIVISION = "the method does not divide advantages by the group's deviation: no cliff of its own"
NO_BETA = "beta is 0 or unknown: no regularised optimum to compare with"


def _missing(item: int, name: str, n: int, why: str, ess: float | None = None) -> Estimate:
    return Estimate(item, name, None, None, n, ess, "estimate", "", why)


def _by_step(samples: Samples) -> Iterator[Samples]:
    if samples.step is None:
        yield samples
    else:
        yield from (samples.where(samples.step == step) for step in np.unique(samples.step))


def _classes(label: np.ndarray) -> list[np.ndarray]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(label):
        rows[str(name)].append(i)
    return [np.array(v) for v in rows.values()]


def _twice_answered(samples: Samples) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(prompt, is the later checkpoint, labels, rewards) of its first and last step, where there are two."""
    for prompt, own in samples.by_prompt():
        if own.step is not None and (first := own.step.min()) < (last := own.step.max()):
            ends = np.isin(own.step, (first, last))
            yield prompt, own.step[ends] == last, own.label[ends], own.reward[ends]


def _by_prompt_mean(samples: Samples, values: np.ndarray) -> np.ndarray:
    rows = [samples.prompt == x for x in np.unique(samples.prompt)]
    return np.array([np.average(values[r], weights=None if (w := samples.weight) is None else w[r]) for r in rows])


def _averaged(found: list[Estimate]) -> Iterator[Estimate]:
    """One estimate a prompt and name: the mean over the prompt's groups."""
    same: defaultdict[tuple[int | None, str], list[Estimate]] = defaultdict(list)
    for e in found:
        same[e.prompt, e.name].append(e)
    for group in same.values():
        known = [e for e in group if e.value is not None]
        if len(group) == 1 or not known:
            yield group[0]
            continue
        yield replace(
            known[0],
            value=float(np.mean([e.value for e in known if e.value is not None])),
            interval=None,
            n=sum(e.n for e in known),
            ess=_sum([e.ess for e in known]),
            kind=_loosest(known),
        )


def _pooled(prompts: list[Estimate], name: str) -> Estimate:
    """The mean over prompts with a bootstrap over prompts; says for how many prompts it could be given."""
    own = [e for e in prompts if e.name == name]
    known = [e for e in own if e.value is not None]
    if not known:
        return replace(own[0], prompt=None, n=sum(e.n for e in own), ess=None)
    values = np.array([e.value for e in known])
    interval = known[0].interval if len(values) == 1 else bootstrap_interval(values) if np.ptp(values) > 1e-12 else None
    left = f"{len(own) - len(known)} of {len(own)} prompts gave none; " if len(known) < len(own) else ""
    says = _summary(known, values)
    return replace(
        known[0],
        prompt=None,
        value=float(values.mean()),
        interval=interval,
        n=sum(e.n for e in known),
        ess=_sum([e.ess for e in known]),
        kind=_loosest(known),
        says=says,
        cannot_say=left + known[0].cannot_say,
    )


def _summary(known: list[Estimate], values: np.ndarray) -> str:
    """What a mean over prompts hides."""
    if len(values) == 1:
        return known[0].says
    if known[0].name == "distance to the cliff":
        return f"mean over prompts; {int((values == 0).sum())} of {len(values)} sit exactly on a tie"
    if known[0].name == "gain of group normalisation":
        low, mid, high = np.quantile(values, (0.1, 0.5, 0.9))
        return f"mean over groups; deciles {low:.3g}, {mid:.3g}, {high:.3g}"
    if known[0].name == "flip margin":
        smallest = known[int(values.argmin())]
        return f"mean over prompts; smallest {values.min():.4g} at prompt {smallest.prompt}: {smallest.says}"
    return f"{known[0].says} (mean over {len(values)} prompts)"


def _hoeffding(pooled: Estimate, groups: list[Samples]) -> Estimate:
    """Hoeffding's interval for these prompts: draws are independent, each weighs 1 / (prompts x own draws)."""
    if pooled.value is None or any(g.weight is not None for g in groups):
        return pooled
    effective = len(groups) ** 2 / sum(1 / len(g) for g in groups)
    half = fs.hoeffding(effective)
    return replace(pooled, interval=(max(pooled.value - half, 0.0), min(pooled.value + half, 1.0)))


def _unseen_anywhere(pooled: Estimate, groups: list[Samples]) -> Estimate:
    """Of the policy averaged over these groups: no event in all n draws has chance at most `(1 - mean mass)^n`."""
    bound = fs.zero_events(pooled.n)
    return replace(
        pooled,
        value=bound,
        interval=(0.0, bound),
        says="an event that never occurred in any response has at most this average probability (95 %)",
    )


def _as_it_is(pooled: Estimate, groups: list[Samples]) -> Estimate:
    return pooled


REPOOLED = {TO_REFERENCE: _hoeffding, ANYTHING: _unseen_anywhere}


def _sum(values: list[float | None]) -> float | None:
    given = [v for v in values if v is not None]
    return float(sum(given)) if given else None


def _loosest(estimates: list[Estimate]) -> fs.Kind:
    """The weakest statement among several: a mean of exact numbers and bounds is a bound."""
    kinds: set[fs.Kind] = {e.kind for e in estimates}
    if "estimate" in kinds or {"upper bound", "lower bound"} <= kinds:
        return "estimate"
    if "upper bound" in kinds:
        return "upper bound"
    return "lower bound" if "lower bound" in kinds else "exact"
