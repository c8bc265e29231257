"""Methods: composition, overrides with types, TOML in and out, suggestions."""

import tomllib

import pytest
import tomli_w

from surefoot import methods
from surefoot.errors import InputError
from surefoot.method import Method
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.advantages import GroupCentred
from surefoot.objective.divergences import k2
from surefoot.parts import Part
from surefoot.rollouts import COLUMNS

ALL = methods.names()


def test_the_first_methods_are_there():
    assert {"reinforce", "rloo", "ppo", "grpo", "dr-grpo", "dapo", "gspo", "cispo"} <= set(ALL)


@pytest.mark.parametrize("slug", ALL)
def test_a_method_survives_toml(slug):
    method = methods.find(slug)
    assert Method.from_dict(tomllib.loads(tomli_w.dumps(method.to_dict()))) == method


@pytest.mark.parametrize("slug", ALL)
def test_a_method_reads_known_columns_in_their_phase(slug):
    method = methods.find(slug).check()
    assert set(method.readers()) <= set(COLUMNS)


def test_but_changes_one_slot_and_leaves_the_original():
    variant = GRPO.but(name="mine", advantage=GroupCentred())
    assert isinstance(variant.advantage, GroupCentred) and variant.surrogate == GRPO.surrogate
    assert GRPO.name == "grpo"
    with pytest.raises(InputError, match="did you mean 'advantage'"):
        GRPO.but(advantages=GroupCentred())


def test_set_reads_text_by_the_field_type():
    assert GRPO.set("surrogate.low", "0.3").surrogate.low == 0.3
    assert GRPO.set("prompts.rollouts", "4").prompts.rollouts == 4
    assert GRPO.set("rollout.max_new_tokens", "none").rollout.max_new_tokens is None
    assert GRPO.set("regularizers.kl.coef", "0.1").regularizers[0].coef == 0.1
    assert GRPO.set("regularizers.kl.estimator", "k2").regularizers[0].estimator is k2
    assert GRPO.set("advantage", "GroupCentred").advantage == GroupCentred()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("surogate.low", "1", "did you mean 'surrogate'"),
        ("surrogate.lo", "1", "did you mean 'low'"),
        ("prompts.rollouts", "many", "prompts.rollouts: got 'many', expected int"),
        ("prompts.rollouts", "2.5", "expected int"),
        ("regularizers.kk.coef", "1", "did you mean 'kl'"),
        ("advantage", "GroupCentered", "did you mean 'GroupCentred'"),
        ("surrogate.low", "x", "expected float"),
    ],
)
def test_bad_overrides_name_the_place_and_the_nearest(path, value, message):
    with pytest.raises(InputError, match=message):
        GRPO.set(path, value)


def test_unknown_methods_get_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'grpo'"):
        methods.find("gpro")


def test_memory_belongs_to_a_run_and_survives_a_controller():
    part = Part()
    part.memory["seen"] = 3
    assert part.fresh().memory == {} and part.having().memory is part.memory
    other = Part()
    other.load_state_dict(part.state_dict())
    assert other.memory == {"seen": 3} and other.memory is not part.memory


def test_a_batch_part_may_not_read_a_live_column():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Eager(Part):
        reads = ("logp",)

    with pytest.raises(InputError, match="'old_logp'"):
        GRPO.but(advantage=Eager()).check()


def test_a_divergence_is_chosen_by_its_constants_name():
    from surefoot.objective.divergences import JEFFREYS, FullDivergence

    method = GRPO.but(regularizers=(FullDivergence(),)).set("regularizers.fulldivergence.generator", "JEFFREYS")
    assert method.regularizers[0].generator is JEFFREYS
    assert Method.from_dict(tomllib.loads(tomli_w.dumps(method.to_dict()))) == method
