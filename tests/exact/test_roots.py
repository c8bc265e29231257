import numpy as np
from numpy.testing import assert_allclose

from surefoot.exact.roots import bracketed_root


def count(f):
    calls = []

    def g(x):
        calls.append(1)
        return f(x)

    return g, calls


def test_many_roots_at_once_in_few_evaluations():
    target = np.geomspace(1e-9, 1e9, 50)
    f, calls = count(lambda x: np.log(x) - np.log(target))
    assert_allclose(bracketed_root(f, np.full(50, 1e-12), np.full(50, 1e12)), target, rtol=1e-12)
    assert len(calls) < 80
    f, calls = count(lambda x: np.exp(x) - 1 - np.linspace(0.1, 2, 20))
    assert_allclose(bracketed_root(f, np.zeros(20), np.full(20, 3.0)), np.log1p(np.linspace(0.1, 2, 20)), rtol=1e-14)
    assert len(calls) < 20


def test_steps_are_bisected():
    edge = np.array([0.1, 0.7, 1 / 3])
    f, calls = count(lambda x: np.where(x < edge, -1.0, 1.0))
    assert_allclose(bracketed_root(f, np.zeros(3), np.ones(3)), edge, rtol=1e-15)
    assert len(calls) < 80


def test_no_crossing_gives_the_nearer_end():
    root = bracketed_root(lambda x: x + np.array([10, -10, 0, -1]), np.zeros(4), np.ones(4))
    assert root.tolist() == [0, 1, 0, 1]


def test_shapes_are_kept():
    assert bracketed_root(lambda x: x - 0.5, np.zeros((3, 1)), np.ones((3, 1))).shape == (3, 1)
