"""Intervals for proportions and for means over problems."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import beta, norm

Interval = tuple[float, float]


def wilson(successes: float, trials: int, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson, JASA 22, 1927); (0, 1) without trials.

    >>> tuple(round(x, 4) for x in wilson(8, 10))
    (0.4902, 0.9433)
    """
    if trials == 0:
        return 0.0, 1.0
    z = norm.ppf((1 + level) / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Interval of a proportion that covers at least `level` whatever it is (Clopper & Pearson, Biometrika 26, 1934).

    >>> tuple(round(x, 4) for x in clopper_pearson(8, 10))
    (0.4439, 0.9748)
    """
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def bootstrap_interval(
    values: Float[np.ndarray, "p"], level: float = 0.95, draws: int = 4000, seed: int = 0
) -> Interval:
    """Percentile interval of the mean of one value a problem, problems drawn anew (Efron 1979).

    The problem is the unit: samples of one problem are not independent, so a value is already the mean over them
    (a cluster bootstrap). Where all values are 0 or all are 1 no redraw can differ, and Wilson's interval on the
    problems is returned instead.
    """
    values = np.asarray(values, dtype=float)
    p = len(values)
    if np.all(values == values[0]) and values[0] in (0.0, 1.0):
        return wilson(float(values.sum()), p, level)
    counts = np.random.default_rng(seed).multinomial(p, np.full(p, 1 / p), size=draws)
    low, high = np.quantile(counts @ values / p, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
