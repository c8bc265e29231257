"""Controllers in the presence of metrics that come late, go missing or are not finite."""

import math

import pytest

from surefoot.errors import InputError
from surefoot.objective import controllers as c
from surefoot.objective.entropy import EntropyTarget
from tests.conftest import label

ALL = [
    c.AdaptiveKL(),
    c.DoublingKL(),
    c.DualAscent(),
    c.PID(),
    c.Hysteresis(metric="kl"),
    EntropyTarget(metric="kl"),
    c.Smoothed(c.AdaptiveKL(), decay=0.5),
    c.Smoothed(c.PID(), decay=0.5),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("controller", ALL, ids=label)
def test_a_metric_that_is_not_finite_moves_nothing_and_leaves_no_trace(controller, bad):
    hit, spared = controller.fresh(), controller.fresh()
    for kl in (0.3, 0.05):
        assert hit({"kl": kl}) == spared({"kl": kl})
    assert hit({"kl": bad}) == {}
    assert [hit({"kl": kl}) for kl in (0.2, 0.4)] == [spared({"kl": kl}) for kl in (0.2, 0.4)]


def test_an_average_of_a_metric_that_comes_late_is_not_drawn_to_zero():
    smoothed, plain = c.Smoothed(c.AdaptiveKL(), decay=0.9).fresh(), c.AdaptiveKL().fresh()
    for _ in range(50):
        assert smoothed({"loss": 1.0}) == {}
    assert smoothed({"kl": 0.3, "loss": 1.0}) == pytest.approx(plain({"kl": 0.3}))


def test_an_average_is_not_passed_on_when_its_metric_is_missing():
    smoothed = c.Smoothed(c.AdaptiveKL(), decay=0.9).fresh()
    assert smoothed({"kl": 0.3})
    before = smoothed.state_dict()
    assert smoothed({"loss": 1.0}) == {}
    assert smoothed.state_dict()["averages"]["kl"] == before["averages"]["kl"]
    assert smoothed.state_dict()["inside"] == before["inside"]


def test_phases_hold_from_their_first_step_on():
    part = c.Phases("f", starts=(1, 4, 5), values=(0.1, 0.2, 0.3)).fresh()
    at = {step + 1: part({}) for step in range(1, 6)}  # what the controller says after a step holds at the next
    assert [at[s]["f"] for s in (2, 3, 4, 5, 6)] == [0.1, 0.1, 0.2, 0.3, 0.3]
    late = c.Phases("f", starts=(3,), values=(0.5,)).fresh()
    assert late({}) == {} and late({}) == {"f": 0.5}
    with pytest.raises(InputError, match="expected as many values"):
        c.Phases(starts=(1, 2), values=(0.0,))


def test_warmup_stable_decay():
    part = c.Scheduled(start=0.0, end=2.0, steps=20, shape=c.warmup_stable_decay).fresh()
    found = [part({})["regularizers.kl.coef"] for _ in range(21)]
    assert found[:2] == pytest.approx([1.0, 2.0]) and found[2:16] == pytest.approx([2.0] * 14)
    assert found[16:] == pytest.approx([1.5, 1.0, 0.5, 0.0, 0.0])
