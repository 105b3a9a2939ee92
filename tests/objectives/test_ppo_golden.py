"""PPO says what TRL 0.7.1 said: its recorded values."""

import jax
import numpy as np
import pytest

from alol_jax.objectives.ppo import PPOTargets, ppo, ppo_advantages, ppo_token_rewards
from tests.objectives.test_losses_golden import golden, golden_cases

CASES = golden_cases("baselines.npz", "ppo")
HYPER = {"clip": 0.2, "value_clip": 0.2, "value_weight": 0.1}


def _close(found, recorded):
    np.testing.assert_allclose(found, recorded, rtol=2e-5, atol=2e-5)


def test_two_rollouts_are_recorded():
    assert len(CASES) == 2


@pytest.mark.parametrize("case", CASES)
def test_the_token_rewards_of_trl_are_met(case):
    arrays = golden("baselines.npz")[case]
    given = (arrays[name] for name in ("scores", "old_logps", "ref_logps", "mask"))
    found = ppo_token_rewards(*given, kl_coef=arrays["kl_coef"])
    inside = arrays["mask"] > 0
    _close(found[inside], arrays["token_rewards"][inside])


@pytest.mark.parametrize("case", CASES)
def test_the_advantages_and_returns_of_trl_are_met(case):
    arrays = golden("baselines.npz")[case]
    given = (arrays[name] for name in ("token_rewards", "values", "mask"))
    advantages, returns = ppo_advantages(*given, gamma=1.0, lam=0.95)
    inside = arrays["mask"] > 0
    _close(advantages[inside], arrays["advantages"][inside])
    _close(returns[inside], arrays["returns"][inside])


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_trl_and_its_gradients_are_met(case):
    arrays = golden("baselines.npz")[case]
    fields = ("mask", "old_logps", "values", "advantages", "returns")
    targets = PPOTargets(*(arrays[name] for name in fields))
    valued = jax.value_and_grad(lambda *a: ppo(*a, targets, **HYPER), (0, 1), has_aux=True)
    (loss, metrics), grads = valued(arrays["new_logps"], arrays["new_values"])
    _close(loss, arrays["loss"])
    _close(metrics["policy_loss"], arrays["pg_loss"])
    _close(0.1 * metrics["value_loss"], arrays["vf_loss_scaled"])
    _close(metrics["fraction_clipped"], arrays["clipfrac"])
    _close(grads[0], arrays["grad_new_logps"])
    _close(grads[1], arrays["grad_new_values"])
