"""Agreement with d3rlpy's IQL: the three losses and their gradients on the same networks and transitions.

Where d3rlpy differs from us: it takes V and the critics in one step, as we do, but the actor after it, with the newer
V. Its critics' loss averages over transitions and sums over critics, as ours does. Its Gaussian has a log-deviation
that does not depend on the state, between -20 and 2, and a tanh on the mean, as the authors' code.
"""

import numpy as np
import pytest
import torch

from surefoot.methods.offline.iql import IQL
from surefoot.objective.aggregation import TokenMean
from surefoot.policies.gaussian import Gaussian
from surefoot.rollouts import Rollouts

d3rlpy = pytest.importorskip("d3rlpy", reason="needs d3rlpy: see `make parity`")
from d3rlpy.models.encoders import VectorEncoderFactory  # noqa: E402
from d3rlpy.torch_utility import TorchMiniBatch  # noqa: E402

N, D, A = 64, 5, 2


def _theirs():
    rng = np.random.default_rng(0)
    data = d3rlpy.dataset.MDPDataset(
        rng.normal(size=(N, D)).astype(np.float32),
        rng.uniform(-1, 1, (N, A)).astype(np.float32),
        rng.normal(size=N).astype(np.float32),
        (np.arange(N) % 8 == 7) * 1.0,
    )
    width = VectorEncoderFactory([16, 16])
    config = d3rlpy.algos.IQLConfig(
        actor_encoder_factory=width, critic_encoder_factory=width, value_encoder_factory=width
    )
    algo = config.create(device=False)
    algo.build_with_dataset(data)
    drawn = data.sample_transition_batch(N)
    batch = TorchMiniBatch.from_batch(drawn, gamma=0.99, compute_returns_to_go=False, device="cpu")
    return algo.impl, batch


def _copy(ours, theirs):
    """Weights of their linear layers, in order, into ours."""
    mine = [m for m in ours.modules() if isinstance(m, torch.nn.Linear)]
    other = [m for m in theirs.modules() if isinstance(m, torch.nn.Linear)]
    assert len(mine) == len(other)
    for a, b in zip(mine, other, strict=True):
        a.load_state_dict(b.state_dict())
    return [(a, b) for a, b in zip(mine, other, strict=True)]


def test_losses_and_gradients_are_d3rlpys():
    impl, batch = _theirs()
    policy = Gaussian(D, A, hidden=(16, 16), activation="relu", squash=True, critics=2)
    policy.critic()
    modules, model = impl._modules, policy.model
    pairs = _copy(model["mean"], modules.policy)
    pairs += _copy(model["value"], modules.value_func)
    for i in range(2):
        pairs += _copy(model[f"q{i}"], modules.q_funcs[i])
        _copy(model[f"target_q{i}"], modules.targ_q_funcs[i])
        for p, q in zip(model[f"target_q{i}"].parameters(), modules.targ_q_funcs[i].parameters(), strict=True):
            noise = 0.3 * torch.randn_like(p)
            p.data.add_(noise), q.data.add_(noise)
    log_std = modules.policy.get_logstd_parameter() if hasattr(modules.policy, "get_logstd_parameter") else None
    action = modules.policy(batch.observations)
    model["spread"]["log_std"].data.copy_((log_std if log_std is not None else action.logstd[0]).flatten())

    theirs = impl.compute_critic_loss(batch, impl.compute_target(batch))
    actor = impl.compute_actor_loss(batch, action).actor_loss
    (theirs.critic_loss + actor).backward()

    one = torch.ones(N, 1, dtype=torch.bool)
    table = Rollouts(
        {
            "states": batch.observations[:, None],
            "next_states": batch.next_observations[:, None],
            "actions": batch.actions[:, None],
            "step_reward": batch.rewards,
            "ended": batch.terminals > 0,
            "mask": one,
        }
    )
    table = table.having(**policy.score(table, set(policy.live)))
    weights = TokenMean()(table)
    losses = [(weights * part(table)).sum() for part in (IQL.surrogate, *IQL.regularizers)]
    for mine, other in zip(losses, (actor, theirs.v_loss, theirs.q_loss), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    sum(losses).backward()
    for a, b in pairs:
        torch.testing.assert_close(a.weight.grad, b.weight.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.bias.grad, b.bias.grad, rtol=1e-4, atol=1e-6)
