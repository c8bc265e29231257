"""Accuracy from repeated samples, and calibration: pure functions on numpy arrays.

Axes: `p` problems, `n` samples of each problem, `m` anything pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import comb
from scipy.stats import rankdata

from surefoot.evaluation.intervals import bootstrap_interval


def pass_at_k(correct: Int[np.ndarray, "p"], samples: int, k: int) -> Float[np.ndarray, "p"]:
    """Chance that at least one of `k` samples is right, given `correct` right ones among `samples`.

    The unbiased estimator `1 - C(n - c, k) / C(n, k)` in its product form, which cannot overflow
    (Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, eq. 1 and figure 3).

    >>> pass_at_k(np.array([0, 1, 4, 10]), samples=10, k=2).round(4).tolist()   # 1 - (9*8)/(10*9) = 0.2
    [0.0, 0.2, 0.6667, 1.0]

    Raises:
        ValueError: `k` outside 1..samples, or counts outside 0..samples.
    """
    correct = np.asarray(correct)
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples; expected 1 <= k <= {samples}")
    if correct.size and (correct.min() < 0 or correct.max() > samples):
        raise ValueError(f"counts from {correct.min()} to {correct.max()}; expected 0 to {samples}")
    wrong = samples - correct
    none_right = np.ones(correct.shape)
    for i in range(k):
        none_right = none_right * np.clip(wrong - i, 0, None) / (samples - i)
    return 1.0 - none_right


def maj_at_k(answers: Sequence[str | None], correct: Bool[np.ndarray, "n"], k: int) -> float:
    """Chance that the most frequent answer among `k` of the `n` samples is right, over all C(n, k) subsets, exactly.

    Majority vote of Wang et al., "Self-Consistency Improves Chain of Thought Reasoning", arXiv 2203.11171. A tie is
    broken by chance, so an answer that ties with one other counts half. `None` is no answer: it does not vote, and
    subsets where nobody votes count as wrong. An answer marked right in only some samples counts by its share.

    A subset is a draw of x_a samples of each answer a; the ways to have a winner with v votes and t answers tied are
    counted by multiplying polynomials, one factor `sum_x C(n_a, x) z^x` an answer.

    >>> maj_at_k(["7", "7", "9", "8"], np.array([True, True, False, False]), k=4)      # 7 has two votes
    1.0
    >>> maj_at_k(["7", "9"], np.array([True, False]), k=2)                             # a tie
    0.5
    >>> round(maj_at_k(["7", "7", "9"], np.array([True, True, False]), k=2), 4)        # {77}: 1, {79} twice: 1/2
    0.6667

    Raises:
        ValueError: `k` outside 1..n, unequal lengths, or more than 1000 samples (the counts would overflow).
    """
    n = len(answers)
    if len(correct) != n:
        raise ValueError(f"{len(correct)} verdicts for {n} answers")
    if not 1 <= k <= n or n > 1000:
        raise ValueError(f"maj@{k} of {n} samples; expected 1 <= k <= samples <= 1000")
    verdicts: dict[str, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            verdicts.setdefault(answer, []).append(bool(right))
    classes = [(len(v), sum(v) / len(v)) for v in verdicts.values()]
    if k == n:  # one subset
        most = max((size for size, _ in classes), default=0)
        return float(np.mean([share for size, share in classes if size == most])) if classes else 0.0
    silent = n - sum(size for size, _ in classes)
    votes = range(1, min(k, max((size for size, _ in classes), default=0)) + 1)
    return float(sum(_won_with(v, classes, silent, k) for v in votes) / comb(n, k))


def _won_with(v: int, classes: list[tuple[int, float]], silent: int, k: int) -> float:
    """Subsets of size `k` whose winner has `v` votes, each counted by the share of its tied answers that is right."""
    ties = k // v
    ways = np.zeros((ties + 1, k + 1))  # [answers that have v votes, samples drawn] -> subsets
    right = np.zeros_like(ways)  # the same, times the sum of shares over the tied answers
    ways[0] = comb(silent, np.arange(k + 1))
    for size, share in classes:
        below = np.asarray(comb(size, np.arange(v)))
        new_ways, new_right = _times(ways, below), _times(right, below)
        if size >= v:
            exact = comb(size, v)
            new_ways[1:, v:] += exact * ways[:-1, : k + 1 - v]
            new_right[1:, v:] += exact * (right[:-1, : k + 1 - v] + share * ways[:-1, : k + 1 - v])
        ways, right = new_ways, new_right
    return float((right[1:, k] / np.arange(1, ties + 1)).sum())


def _times(table: Float[np.ndarray, "t k"], factor: Float[np.ndarray, "x"]) -> Float[np.ndarray, "t k"]:
    out = np.zeros_like(table)
    for x, ways in enumerate(factor):
        out[:, x:] += ways * table[:, : table.shape[1] - x]
    return out


Binning = Callable[[Float[np.ndarray, "m"], int], Int[np.ndarray, "m"]]


def equal_width(confidence: Float[np.ndarray, "m"], bins: int) -> Int[np.ndarray, "m"]:
    """Bin of each confidence in [0, 1], bins of equal width, closed on the right (Guo et al., arXiv 1706.04599)."""
    return np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)


def equal_mass(confidence: Float[np.ndarray, "m"], bins: int) -> Int[np.ndarray, "m"]:
    """Bin of each confidence, bins of about equal counts (Nguyen & O'Connor, arXiv 1508.05154); ties stay together."""
    return np.clip(((rankdata(confidence) - 0.5) / len(confidence) * bins).astype(int), 0, bins - 1)


def ece(
    confidence: Float[np.ndarray, "m"], correct: Bool[np.ndarray, "m"], bins: int = 15, binning: Binning = equal_mass
) -> float:
    """Expected calibration error: mean over samples of |accuracy - mean confidence| of their bin (arXiv 1706.04599).

    >>> round(ece(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False]), 5, equal_width), 4)
    0.15
    """
    if not len(confidence):
        return 0.0
    index = binning(confidence, bins)
    gap = np.bincount(index, weights=correct.astype(float) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def auc(score: Float[np.ndarray, "m"], correct: Bool[np.ndarray, "m"]) -> float:
    """Chance that a right sample scores above a wrong one, ties one half (Mann & Whitney 1947); NaN without both kinds.

    >>> auc(np.array([-0.5, -0.2, -0.3, -0.9]), np.array([True, True, False, False]))
    0.75
    """
    right, wrong = int(correct.sum()), int((~correct).sum())
    if not right or not wrong:
        return float("nan")
    return float((rankdata(score)[correct].sum() - right * (right + 1) / 2) / (right * wrong))


def auc_within(score: Float[np.ndarray, "p n"], correct: Bool[np.ndarray, "p n"]) -> float:
    """Mean AUC over the problems that have both kinds, so that easy problems' likelihood does not count; else NaN."""
    mixed = correct.any(1) & ~correct.all(1)
    return (
        float(np.mean([auc(s, c) for s, c in zip(score[mixed], correct[mixed], strict=True)]))
        if mixed.any()
        else float("nan")
    )


def summarise(
    correct: Bool[np.ndarray, "p n"],
    logp: Float[np.ndarray, "p n"],
    length: Int[np.ndarray, "p n"],
    answers: Sequence[Sequence[str | None]],
    k: int,
    prompts: Sequence[int] | None = None,
) -> dict[str, Any]:
    """One side of `evaluation.json`, without its samples.

    Args:
        correct: the verifier's verdict on each sample.
        logp: log-probability of each sample, summed over its steps, nats.
        length: steps of each sample.
        answers: the answer read from each sample, for the vote; None where there is none.
        k: of pass@k and maj@k, at most n.
        prompts: index of each problem in its task; 0, 1, ... by default.

    Returns:
        n (problems), pass@1, pass@k and maj@k with 95 % intervals over problems, `ece` and `auc` of the likelihood
        per step `exp(logp / length)` against correctness, pooled over samples, `auc_within` problems, `entropy`
        (estimated, nats per step), mean `length` and the counts per problem. A number that does not exist is None.
    """
    correct = np.asarray(correct, dtype=bool)
    logp, length = np.asarray(logp, dtype=float), np.asarray(length)
    problems, samples = correct.shape
    if not problems:
        raise ValueError("no problems to summarise")
    counts = correct.sum(1)
    score = logp / np.maximum(length, 1)
    measured = {
        "pass@1": pass_at_k(counts, samples, 1),
        f"pass@{k}": pass_at_k(counts, samples, k),
        f"maj@{k}": np.array([maj_at_k(a, c, k) for a, c in zip(answers, correct, strict=True)]),
    }
    out: dict[str, Any] = {"n": problems}
    for name, values in measured.items():
        out[name] = float(values.mean())
        out[f"{name}_interval"] = list(bootstrap_interval(values))
    out |= {
        "ece": ece(np.exp(score).ravel(), correct.ravel()),
        "auc": _number(auc(score.ravel(), correct.ravel())),
        "auc_within": _number(auc_within(score, correct)),
        "entropy": float(-logp.sum() / max(1, length.sum())),
        "length": float(length.mean()),
        "per_problem": [
            {"prompt": int(i), "correct": int(c), "samples": samples}
            for i, c in zip(prompts if prompts is not None else range(problems), counts, strict=True)
        ],
    }
    return out


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
