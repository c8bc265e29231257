"""A rate: what was measured at several sizes, its slope on log-log axes, and the slope that the theory has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through (log x, log y); NaN where some y is not above 0.

    >>> round(log_log_slope([1, 10, 100], [5, .5, .05]), 6)
    -1.0
    """
    if min(y) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])


@dataclass(frozen=True, eq=False)
class Rate:
    """A quantity at several sizes.

    Attributes:
        name: what is measured.
        sizes: of the sample.
        values: one row a size, one column a run [sizes, runs].
        theory: slope that the theory gives; None where it gives none.
    """

    name: str
    sizes: Sequence[int]
    values: Float[np.ndarray, "sizes runs"]
    theory: float | None = None

    @property
    def mean(self) -> Float[np.ndarray, "sizes"]:
        return self.values.mean(1)

    @property
    def slope(self) -> float:
        """Of the means over runs."""
        return log_log_slope(self.sizes, list(self.mean))

    def spread(self, draws: int = 500) -> float:
        """Standard deviation of the slope over bootstrap draws of the runs."""
        rng, runs = np.random.default_rng(0), self.values.shape[1]
        redrawn = (self.values[:, rng.integers(runs, size=runs)].mean(1) for _ in range(draws))
        return float(np.std([log_log_slope(self.sizes, list(y)) for y in redrawn]))

    def row(self) -> dict[str, Any]:
        """The slope for a claim's table, with the theory's as `expected` and the means it was taken from."""
        row = {"name": f"{self.name}: slope", "value": self.slope, "spread": self.spread()}
        expected = {} if self.theory is None else {"expected": self.theory}
        return row | expected | {"at": dict(zip(self.sizes, self.mean.tolist(), strict=True))}

    def draw(self, axes: Axes, colour: str, label: str) -> None:
        """The means on log-log axes, and a dotted line of the theory's slope through the first of them."""
        slope = "no slope" if np.isnan(self.slope) else f"slope {self.slope:.2f}"
        axes.loglog(self.sizes, self.mean, "o-", color=colour, markersize=4, label=f"{label}: {slope}")
        if self.theory is not None:
            line = self.mean[0] * (np.asarray(self.sizes) / self.sizes[0]) ** self.theory
            axes.loglog(self.sizes, line, ":", color=colour, linewidth=1.2)
