"""The bench's plumbing, on tiny work: counts, limits, curves, pages, refusals. No time is compared with anything."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from surefoot.bench import page, scaling
from surefoot.bench.cases import CASES, find, trivial_reward
from surefoot.bench.limits import decode_seconds, matmul_rates, step_flops, work
from surefoot.bench.sides import Arithmetic, make_trainer, model_calls, surefoot_settings
from surefoot.bench.versus import compared, quartiles, summary
from surefoot.cli import main
from surefoot.errors import InputError

TINY = replace(CASES["pebble-fixed"], prompts=2, group=2, limit=4)


def test_work_is_counted_once_a_group():
    shared = work(torch.tensor([5]), torch.tensor([3, 3]), torch.tensor([0, 0]))
    apart = work(torch.tensor([5, 5]), torch.tensor([3, 3]), torch.tensor([0, 1]))
    assert apart.fed - shared.fed == 5 and apart.scored == shared.scored
    assert apart.pairs - shared.pairs == 15


def test_a_step_of_the_case_and_its_limits():
    trainer = make_trainer(TINY, "cpu")
    batch = trainer.train_step().batch
    assert batch.present.sum(1).tolist() == [4] * 4, "exactly the limit"
    flops = step_flops(trainer.policy.model.config, batch)
    assert flops["step"] == 5 * flops["generation"], "generation, the reference, and an update worth three"
    assert decode_seconds(trainer.policy.model, batch) > 0
    rates = matmul_rates(size=64)
    assert rates["best"] >= rates["torch"] > 0
    settings = surefoot_settings(trainer)
    assert settings["group"] == 2 and settings["suppressed_tokens"] == [1] and settings["beta"] == 0.04


def test_settings_that_differ_are_shown():
    sides = {"surefoot": {"lr": 1, "clip": 0.2, "loaded_mb": 5}, "trl": {"lr": 1, "clip": 0.3, "loaded_mb": 9}}
    assert compared(sides) == {"equal": {"lr": 1}, "different": {"clip": [0.2, 0.3]}}


def test_reward_differs_within_a_group():
    assert len(set(trivial_reward(["a", "b", "c"]))) == 3


def test_quartiles():
    assert quartiles([2.0]) == [2.0, 2.0] and quartiles([1, 2, 3, 4, 5]) == [2, 4]


def test_slope_is_the_exponent():
    assert scaling.slope([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    assert scaling.slope([1, 10, 100], [7, 7, 7]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("group", (2, 3)),
        ("length", (3, 5)),
        ("parts", (1, 2)),
        ("vocabulary", (104, 130)),
        ("judge", (1, 5)),
        ("judge-ahead", (1, 5)),
    ],
)
def test_a_curve_changes_what_it_says(axis, values):
    trainers = []

    def make(axis, value):
        trainers.append(scaling.trainer_at(axis, value, TINY))
        return trainers[-1]

    found = scaling.curve(axis, values, steps=1, make=make)
    assert found["values"] == list(values) and all(s > 0 for s in found["seconds"]["total"])
    sizes = {
        "group": lambda t: t.method.prompts.group,
        "length": lambda t: t.task.max_new_tokens,
        "parts": lambda t: len(t.method.regularizers),
        "vocabulary": lambda t: t.policy.model.get_output_embeddings().weight.shape[0],
        "judge": lambda t: round(1000 * t.task.reward.seconds),
        "judge-ahead": lambda t: round(1000 * t.task.reward.seconds) * t.settings.ahead,
    }
    assert [sizes[axis](t) for t in trainers] == list(values)
    assert all(t.signals.passes == {"reference": 2} for t in trainers), "one pass of the reference a step"
    if axis.startswith("judge"):
        assert all(s >= v / 1000 for s, v in zip(found["seconds"]["total"], values, strict=True)), "the wait counts"
    assert scaling.table(found).count("\n") == 4


def _versus():
    record = dict(total=2.0, cpu=1.5, generation=1.0, scoring=0.5, update=0.5, tokens=8, longest=4, prompt_tokens=9)
    slow = {k: 2 * v for k, v in record.items()}
    settings = {side: {"lr": 1e-6, "threads": 2, "loaded_mb": 1.0, "passes": ["a", ""]} for side in ("surefoot", "trl")}
    found = summary({"surefoot": [record], "trl": [slow]}, {"surefoot": 10.0, "trl": 20.0}, settings)
    case = {"name": "c", "prompts": 2, "group": 2, "fixed": True, "limit": 4, "beta": 0.04}
    rest = {"settings": compared(settings), "limits": {"step_over_limit": 1.5}}
    return {"case": case, "steps": 1, "warmup": 0, "device": "cpu"} | found | rest


def test_a_page_from_json(tmp_path, capsys):
    curves = [scaling.curve("parts", (1, 2), 1, lambda a, v: scaling.trainer_at(a, v, TINY))]
    (tmp_path / "v.json").write_text(json.dumps([_versus()]))
    (tmp_path / "s.json").write_text(json.dumps(curves))
    (tmp_path / "p.notes.md").write_text("## Notes\n\nby hand\n")
    out = tmp_path / "p.md"
    assert main(["bench", "page", str(tmp_path / "v.json"), str(tmp_path / "s.json"), "--out", str(out)]) == 0
    text = out.read_text()
    assert "| step | 2.000 | 4.000 | 2.00 |" in text and "0.50 of TRL's" in text
    assert "log-log slope" in text and text.endswith("by hand\n") and (tmp_path / "p.png").stat().st_size > 1000
    assert page.machine() in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bench", "trl", "--case", "pebble-fixd"], "pebble-fixed"),
        (["bench", "scaling", "--axis", "lenght"], "length"),
        (["bench", "scaling", "x.json"], "takes no files"),
        (["bench", "page"], "expected files"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_one_line(capsys):
    assert main(["bench", "gpu"]) == 2
    assert capsys.readouterr().err == "surefoot: bench gpu: no CUDA device here (torch.cuda.is_available() is false)\n"


def test_unknown_case():
    with pytest.raises(InputError, match="smollm2"):
        find("smolm2")


@pytest.mark.parametrize("fast", [True, False])
def test_what_computes_the_model_is_counted_as_arithmetic(fast, engine, monkeypatch):
    """An engine whose forwards are not counted would look like overhead."""
    trainer = make_trainer(replace(TINY, limit=6), "cpu", fast)
    called = Counter()

    def counting(function, name):
        return lambda *args, **kwargs: called.update([name]) or function(*args, **kwargs)

    for owner, name in model_calls(trainer):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name), name))
    trainer.train_step()
    assert called["score"] == 2, "the reference, and the update"
    assert called["backward"] == called["clip_grad_norm_"] == 1
    assert called["step"] == 5 + 1, "of the engine after the first token, and of the optimizer"
    assert called["prefill"] == fast
    before = Arithmetic(trainer)
    trainer.train_step()
    assert before.seconds > 0
