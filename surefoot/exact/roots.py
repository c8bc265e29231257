"""Roots of many increasing functions of one number, at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def bracketed_root(f: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where each entry of an elementwise, increasing f crosses 0 between `low` and `high`, to rounding.

    Chandrupatla (1997): inverse quadratic interpolation where it is safe, bisection otherwise; about 10 evaluations.
    An entry that is positive all the way gives `low`, one that is negative all the way gives `high`.

    >>> bracketed_root(lambda x: x**2 - np.array([2., 9.]), np.zeros(2), np.full(2, 4.)).round(6)
    array([1.414214, 3.      ])
    """
    a, b = np.array(high, float), np.array(low, float)
    fa, fb = f(a), f(b)
    # Where there is no crossing, the bracket is closed at once.
    a, fa = np.where(fb >= 0, b, a), np.where(fb >= 0, 0.0, fa)
    b = np.where(fa <= 0, a, b)
    c, fc, t = a, fa, np.full(a.shape, 0.5)
    for _ in range(200):
        tol = 2 * np.finfo(float).eps * np.maximum(np.abs(a), np.abs(b)) + np.finfo(float).tiny
        done = (np.abs(b - a) <= tol) | (fa == 0)
        if done.all():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.where(done, 0.5, tol / (2 * np.abs(b - a)))
        x = np.where(done, a, a + np.clip(t, least, 1 - least) * (b - a))
        fx = np.where(done, fa, f(x))
        same = np.sign(fx) == np.sign(fa)
        c, fc = np.where(same, a, b), np.where(same, fa, fb)
        b, fb = np.where(same, b, a), np.where(same, fb, fa)
        a, fa = x, fx
        with np.errstate(divide="ignore", invalid="ignore"):
            xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
            safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
            curved = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        t = np.where(safe & np.isfinite(curved), curved, 0.5)
    return np.where(np.abs(fa) <= np.abs(fb), a, b)
