"""A reward model from pairs to a reward: trained by the one trainer, saved with its head, scoring any text."""

import json

import pytest
import torch

import surefoot as sf
from surefoot import policies, tasks
from surefoot.errors import InputError
from surefoot.methods.preference.reward_model import REWARD_MODEL
from surefoot.methods.preference.rm_ensembles import RM_ENSEMBLES
from surefoot.objective.preferences import EndValue
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.tasks.scored import RewardModel, Scored
from tests.conftest import digits_task, tiny_policy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    rows = [{"prompt": f"say {i}", "chosen": "7" * (2 + i % 3), "rejected": "no"} for i in range(16)]
    sides = [r | {"split": "heldout" if i > 11 else "train"} for i, r in enumerate(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sides))
    method = REWARD_MODEL.but(prompts=Uniform(prompts=8, rollouts=2))
    settings = {"train.lr": 3e-3, "train.warmup": 1}
    sf.train(tiny_policy(), f"prefs:{folder}/pairs.jsonl", method, steps=8, set=settings, out=folder / "run")
    return folder / "run"


def test_the_score_is_the_value_before_the_last_step():
    value = torch.tensor([[1.0, 2, 3], [4, 5, float("nan")], [7, 8, 9]])
    mask = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    assert EndValue()(Rollouts({"value": value, "mask": mask})).tolist() == [3, 5, 0]


def test_a_reward_model_ranks_what_it_never_saw_and_is_saved_with_its_head(run):
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["preference_accuracy"] == 1
    model = RewardModel(policies.load(str(run)))
    scores = model(["say 30", "say 31", "say 30"], ["7777", "no", "no"])
    assert scores[0] > scores[1] + 0.5 and scores[0] > scores[2] + 0.5 and not scores.requires_grad
    torch.testing.assert_close(model(["say 30"], ["7777"], chunk=1), scores[:1])
    with pytest.raises(InputError, match="'tiny': no value head; expected a run of --method reward-model"):
        RewardModel(tiny_policy())


def test_models_as_rewards_are_standardised_and_the_judge_only_watches(run):
    model = RewardModel(policies.load(str(run)))
    task = Scored("scored", digits_task(), {"proxy1": model, "proxy2": model}, tiny_policy(), problems=8, samples=4)
    mean, deviation = task.scales["proxy1"]
    problem = task.train[0]
    blank = Rollouts({"mask": torch.ones(2, 1, dtype=torch.bool)}, notes={"completion": ["77", "no"]})
    judged = task.judge([problem] * 2, blank)
    raw = model([problem.question] * 2, ["77", "no"])
    torch.testing.assert_close(judged.rewards["proxy1"], (raw - mean) / deviation)
    assert judged.correct.tolist() == [True, False] and set(judged.rewards) == {"proxy1", "proxy2"}


def test_ppo_against_an_ensemble(run, tmp_path):
    model = RewardModel(policies.load(str(run)))
    task = Scored("scored", digits_task(length=6), {"proxy1": model, "proxy2": model}, tiny_policy(), problems=4)
    method = RM_ENSEMBLES.but(prompts=Uniform(prompts=8, rollouts=1))
    before = {k: p.clone() for k, p in model.policy.model.state_dict().items()}
    settings = {"train.lr": 3e-3, "train.final_samples": 0, "train.eval_every": 0}
    sf.train(tiny_policy(), task, method, steps=3, set=settings, out=tmp_path / "run", progress=False)
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(metrics["rewards"]) == {"proxy1", "proxy2"} and metrics["grad_norm"] > 0
    for name, tensor in model.policy.model.state_dict().items():
        assert tensor.equal(before[name]), "the models are frozen"


def test_bad_specifications(run):
    tasks.register("digits-to-score")(lambda: digits_task(length=6))
    assert tasks.load(f"scored:by={run},digits-to-score").max_new_tokens == 6
    with pytest.raises(InputError, match="expected scored:by=RUN"):
        tasks.load("scored:rg:gcd")
    with pytest.raises(InputError, match="no option 'problem'; did you mean 'problems'"):
        tasks.load(f"scored:by={run},problem=3,rg:gcd")
    (run.parent / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="a run folder without a checkpoint"):
        policies.load(str(run.parent / "empty"))


def test_best_of_n_by_models_on_a_policys_own_samples(run, tmp_path, capsys):
    import numpy as np

    from surefoot.cli import main
    from surefoot.evaluation.evaluate import sample_heldout
    from surefoot.evaluation.overoptimization import of_policy
    from surefoot.rollout.native import Sampling

    model = RewardModel(policies.load(str(run)))
    task = Scored("scored", digits_task(), {"proxy1": model, "gold": model}, tiny_policy(), problems=8, samples=4)
    found = of_policy(tiny_policy(), task, problems=5, k=8)
    assert set(found) == {"gold", "correct"} and set(found["gold"]) == {"single", "mean", "WCO", "UWO"}
    batch = sample_heldout(tiny_policy(), task, 5, 8, 0, Sampling(max_new_tokens=12))[0]
    best = batch.rewards["gold"].view(5, 8).max(1).values
    np.testing.assert_allclose(found["gold"]["WCO"].final, best, rtol=1e-5)  # the proxy is the gold model
    assert (np.diff(found["gold"]["single"].gold, axis=1) >= 0).all() and found["gold"]["mean"].gold.shape == (5, 4)
    with pytest.raises(InputError, match="has no reward of a model"):
        of_policy(tiny_policy(), digits_task(), 2, 2)
    assert main(["eval", "pebble", "--best-of", "--k", "2", "--problems", "2"]) == 2
    assert "expected a task of the kind 'scored'" in capsys.readouterr().err
