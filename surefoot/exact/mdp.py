"""Tabular Markov decision processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse


@dataclass(frozen=True)
class MDP:
    """States s, actions a; float64.

    Attributes:
        P: probability of the next state, dense [s, a, s'] or sparse rows [s * a, s'].
        R: expected reward [s, a].
        gamma: discount, at least 0 and below 1.
        mu: distribution of the first state [s].
    """

    P: Float[np.ndarray, "s a s"] | sparse.spmatrix
    R: Float[np.ndarray, "s a"]
    gamma: float
    mu: Float[np.ndarray, "s"]
