"""Pebble: its corpus is right where it should be and wrong where it should be, it repeats, and it ships as promised."""

import hashlib
import itertools
import json
import random
import runpy
import sys
from pathlib import Path

import pytest
import reasoning_gym
import torch

from surefoot.policies.causal_lm import SHIPPED, CausalLM
from surefoot.pretraining import corpus, tokenizer
from surefoot.pretraining.corpus import TASKS
from surefoot.pretraining.pretrain import batches, new_model, train
from surefoot.tasks.reasoning_gym import ReasoningGym, parse_spec
from surefoot.tasks.splits import is_held_out

PEBBLE = SHIPPED["pebble"]


@pytest.mark.parametrize("spec", TASKS)
def test_careful_work_is_right_and_slips_are_mostly_wrong(spec):
    """Judged by the dataset's own score_answer. A slip may still land on the right answer (a gcd of 1)."""
    name, options = parse_spec(spec)
    data = reasoning_gym.create_dataset(name, seed=5, size=200, **options)
    rng, writer = random.Random(0), TASKS[spec].writer
    entries = [data[i] for i in range(100)]
    assert all(data.score_answer(writer(e, rng, False).answer, e) == 1 for e in entries)
    assert sum(data.score_answer(writer(e, rng, True).answer, e) < 1 for e in entries) >= 60


def test_the_corpus_mixes_habits_and_holds_nothing_held_out():
    exam = list(itertools.islice(corpus.examples(0, True), 2000))
    assert not any(is_held_out(prompt) for prompt, _ in exam if len(prompt) > 60)
    terse = sum(response.startswith("<answer>") for _, response in exam) / len(exam)
    assert terse == pytest.approx(1 - corpus.CAREFUL - corpus.SLIP, abs=0.04)
    textbook = list(itertools.islice(corpus.examples(0, False), 200))
    assert not any(response.startswith("<answer>") for _, response in textbook)


def test_the_tokenizer_is_a_character_a_token_and_round_trips():
    made = tokenizer.build()
    text = "Is 12*34 = 408?\n<answer>408</answer> ×"
    ids = made(text)["input_ids"]
    assert made.decode(ids) == text and len(ids) == len(text) - len("<answer></answer>") + 2
    assert made("é")["input_ids"] == [made.unk_token_id]
    assert made.decode([made.eos_token_id], skip_special_tokens=True) == ""


def test_the_first_steps_repeat_bit_for_bit():
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(train(new_model(104), 3, seed=0, tokens=512, total=100))
    assert losses[0] == losses[1] and all(x > 0 for x in losses[0])


def test_the_batches_are_those_that_pebble_was_made_from():
    recorded = json.loads((PEBBLE / "losses.json").read_text())
    first, learnt = next(batches(recorded["seed"], False))
    torch.manual_seed(recorded["seed"])
    assert len(tokenizer.build()) <= 104
    loss = train(new_model(104), 2, recorded["seed"], total=recorded["steps"])
    assert loss == pytest.approx(recorded["first"][:2], abs=2e-2), "bf16 sums differ a little between machines"
    assert first.shape == learnt.shape


def test_what_ships_is_small_and_loads_anywhere():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(PEBBLE)
    assert model.config.model_type == "llama" and sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert sum(f.stat().st_size for f in Path(PEBBLE).rglob("*")) <= 10_000_000
    assert AutoTokenizer.from_pretrained(PEBBLE).decode([5 + 17]) == "1"
    card = (PEBBLE / "README.md").read_text()
    assert all(word in card for word in ("seed", "loss", "pass@1", "surefoot pretrain", *TASKS))
    assert hashlib.sha256((PEBBLE / "model.safetensors").read_bytes()).hexdigest() in card


def test_every_task_of_the_corpus_fits_the_context_with_its_own_length_limit():
    policy = CausalLM.load("pebble")
    for spec in TASKS:
        task = ReasoningGym(spec, heldout=10)
        policy.encode([task.heldout[i].question for i in range(10)], room=task.max_new_tokens)


def test_the_module_runs_as_the_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "kept").touch()
    monkeypatch.setattr(sys, "argv", ["pretraining", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("surefoot.pretraining", run_name="__main__")
    assert stop.value.code == 2 and "not empty" in capsys.readouterr().err


def test_it_attempts_at_least_six_datasets():
    """Some samples are right on each; which share is in the model card."""
    from surefoot.evaluation.evaluate import sample_heldout
    from surefoot.rollout.native import Sampling

    policy = CausalLM.load("pebble")
    able = 0
    for spec in TASKS:
        batches = sample_heldout(policy, ReasoningGym(spec, heldout=12), 12, 8, 0, Sampling(max_new_tokens=96))
        able += any(b.correct.any() for b in batches)
    assert able >= 6
