"""Figures of runs."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.errors import InputError
from surefoot.report.figures import run_figure, smoothed
from tests.report.folders import make_run


def test_picture_of_a_run_is_the_same_each_time(tmp_path):
    folder = make_run(tmp_path / "run", rollouts=False)
    png, drawing = run_figure(folder, tmp_path / "a")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and drawing.suffix == ".svg"
    again = run_figure(folder, tmp_path / "b")
    assert [p.read_bytes() for p in again] == [png.read_bytes(), drawing.read_bytes()]


def test_a_run_without_evaluation_or_steps(tmp_path):
    bare = make_run(tmp_path / "bare", rollouts=False, evaluation=False)
    assert all(p.is_file() for p in run_figure(bare, tmp_path / "bare-figure"))
    (bare / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="no steps to draw"):
        run_figure(bare, tmp_path / "none")


def test_smoothing_keeps_constants_and_does_not_lag():
    assert smoothed(np.ones(50)) == pytest.approx(np.ones(50))
    ramp = np.arange(50.0)
    assert smoothed(ramp)[10:40] == pytest.approx(ramp[10:40])
