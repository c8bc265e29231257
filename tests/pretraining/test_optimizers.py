"""Pre-training by a named optimizer, the held-out loss at its end, and optimizers side by side."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from surefoot.claims.aro import at_the_end, leads, rows
from surefoot.cli import main
from surefoot.pretraining import compare as comparison
from surefoot.pretraining import pretrain
from surefoot.pretraining.compare import TUNING_SEED, Tuned, compare, end
from surefoot.pretraining.pretrain import HELDOUT, OPTIMIZERS, batches, by, heldout_loss, new_model, optimizers, train


def _model():
    torch.manual_seed(0)
    return new_model(104)


def test_a_part_steps_all_parameters_each_once_and_the_matrices_inside_its_own_way():
    model = _model()
    for name, part in OPTIMIZERS.items():
        (made,) = by(part, 0.02)(model)
        ids = [id(p) for group in made.param_groups for p in group["params"]]
        assert len(ids) == len(set(ids)) == len(list(model.parameters()))
        assert all(group["lr"] == 0.02 for group in made.param_groups)
        if name != "adamw":
            own = [p for group in made.param_groups if group["matrix"] for p in group["params"]]
            shipped = optimizers(model)[0].param_groups[0]["params"]
            assert {id(p) for p in own} == {id(p) for p in shipped}, "the same matrices as the shipped model's Muon"


def test_losses_differ_by_optimizer_from_the_second_step_on_and_repeat():
    losses = {n: train(_model(), 3, 0, 256, total=100, make=by(p, 0.1)) for n, p in OPTIMIZERS.items()}
    losses["shipped"] = train(_model(), 3, 0, 256, total=100)
    assert len({x[0] for x in losses.values()}) == 1 and len({x[-1] for x in losses.values()}) == 4
    assert losses["aro"] == train(_model(), 3, 0, 256, total=100, make=by(OPTIMIZERS["aro"], 0.1))


def test_the_heldout_loss_is_a_mean_over_tokens_of_an_exam_of_its_own():
    model, total, count = _model(), 0.0, 0
    stream = batches(HELDOUT, True)
    for ids, learnt in (next(stream), next(stream)):
        logits = model(input_ids=ids[:, :-1]).logits.float().detach()
        total += F.cross_entropy(logits[learnt[:, 1:]], ids[:, 1:][learnt[:, 1:]], reduction="sum").item()
        count += int(learnt.sum())
    assert heldout_loss(model, 2) == pytest.approx(total / count, abs=2e-3), "bfloat16"
    assert all(p.grad is None for p in model.parameters())


def test_tuning_takes_the_best_rate_of_its_own_run_and_the_seeds_at_it(monkeypatch):
    asked = []

    def fake(part, lr, seed, steps, tokens, heldout):
        asked.append((part, lr, seed))
        return abs(math.log(lr / (0.01 if part == "a" else 0.1))) + seed

    monkeypatch.setattr(comparison, "end", fake)
    found = compare({"x": "a", "y": "b"}, (0.001, 0.01, 0.1), (1, 2), 5, 64)  # pyright: ignore
    assert (found["x"].lr, found["x"].inside, found["x"].losses) == (0.01, True, [1.0, 2.0])
    assert (found["y"].lr, found["y"].inside) == (0.1, False), "at the edge of the grid"
    assert [a[2] for a in asked if a[0] == "a"] == [TUNING_SEED] * 3 + [1, 2]


def test_a_run_of_a_comparison_repeats_and_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (end(OPTIMIZERS["aro"], 0.01, seed, 1, 256, heldout=1) for seed in (0, 0, 1))
    assert first == again != other and torch.equal(before, torch.get_rng_state())


def test_the_verdict_of_pre_training():
    def found(aro, muon, adamw):
        return {n: Tuned({0.01: 1.0}, x) for n, x in (("adamw", adamw), ("muon", muon), ("aro", aro))}

    best = found([1.0, 1.1, 0.9], [1.2, 1.31, 1.1], [1.4, 1.5, 1.3])
    assert leads(best)["muon"] == pytest.approx([0.2, 0.21, 0.2]) and at_the_end(best) == "reproduced"
    assert at_the_end(found([1.0, 1.1, 0.9], [1.2, 1.0, 1.0], [1.4, 1.5, 1.3])) == "not reproduced"
    assert at_the_end(found([1.0, 1.1, 0.9], [0.9, 0.99, 0.8], [1.4, 1.5, 1.3])) == "refuted"
    assert at_the_end({}) == "reproduced" and rows({}) == [], "the quick size has no such part"
    assert [r["name"] for r in rows(best)][-2:] == ["C: held-out loss, adamw - aro", "C: held-out loss, muon - aro"]


def test_the_command_names_the_optimizer_and_keeps_what_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["surefoot.pretraining.pretrain"], "heldout_loss", lambda model: 4.0)
    pretrain(tmp_path / "a", steps=1, tokens=256, optimizer="aro")
    made = json.loads((tmp_path / "a" / "losses.json").read_text())
    assert (made["optimizer"], made["lr"], made["tokens"], made["heldout"]) == ("aro", 0.01, 256, 4.0)
    assert main(["pretrain", "--out", str(tmp_path / "b"), "--optimizer", "muno"]) == 2
    assert "did you mean 'muon'" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(tmp_path / "b"), "--lr", "0.1"]) == 2 and not (tmp_path / "b").exists()
