"""fit_policy_online: what is learned from rollouts, from where, in which order, and resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decoding.answers import one_per_prompt
from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import Interrupted, UserError
from alol_jax.rewards import reward as rewards
from alol_jax.stages import fit_policy_online as stage
from alol_jax.training.items import tokenise
from alol_jax.training.metrics import ROLLOUT_METRICS, WORK_METRICS
from alol_jax.training.online import logp_and_values
from alol_jax.types import Limits, RewardSpec, TrainingTable, Watch
from tests.packed import grid_of, unpacked
from tests.tiny_run import (
    TASK,
    context,
    fitted,
    scored_splits,
    setup,
    small_options,
    tiny_lm,
)

LIMITS = Limits(16, 6)
LM = tiny_lm(limits=LIMITS)
DECODE = {"max_new_tokens": 6, "end": tuple(range(200, 240))}  # responses of many lengths
JUDGED = dataclasses.replace(TASK, rewards=(RewardSpec("luck", "judge", "{response}", 1.0),))
SCORED = scored_splits(train=12)
FRESH = dataclasses.replace(fitted(LM), trained=LM.trainable(jax.random.key(0)))
TABLE = TrainingTable(tokenise(SCORED.train, TASK, LM.tokenizer, LIMITS)[0])


class Died(Exception):
    """What a killed process leaves is the same."""


class Judge:
    """Scores texts; counts how often it was asked, and may fail."""

    def __init__(self, score):
        self.score, self.calls, self.dies_at = score, 0, None

    def __call__(self, texts):
        self.calls += 1
        if self.calls == self.dies_at:
            raise Died
        return np.array([self.score(text) for text in texts], np.float64)


@pytest.fixture
def judge(monkeypatch):
    """Likes characters of the lower half of ASCII."""
    found = Judge(lambda text: np.mean([ord(c) < 100 for c in text]) if text else 0.0)
    monkeypatch.setitem(rewards.SCORERS, "judge", lambda train: found)
    return found


def _fit(folder, *, lm=LM, reference=None, luck=1.0, policy=(), optimizer=(), stopping=None, **ppo):
    config = small_options()
    config.decode.update(DECODE)
    config.policy.update({"validations": 2, "checkpoint_every": 100} | dict(policy))
    config.policy.optimizer.update({"schedule": "constant"} | dict(optimizer))
    small = {"rollouts": 4, "prompts": 8, "epochs": 2, "batch_size": 4}
    config.ppo.update(small | {"top_k": 0, "top_p": 1.0} | ppo)
    return stage.fit_policy_online(
        setup(lm, JUDGED, {"luck": luck}, config.decode),
        config.policy,
        config.ppo,
        SCORED,
        TABLE,
        fitted(lm) if reference is None else reference,
        context=context(folder, stopping=(lambda: False) if stopping is None else stopping),
    )


def _curve(policy, name):
    return np.array(next(curve.values for curve in policy.curves if curve.name == name))


def _same(one, other):
    assert one.trained.keys() == other.trained.keys()
    for path, leaf in one.trained.items():
        np.testing.assert_array_equal(leaf, other.trained[path], path)
    assert (one.step, one.validations, one.curves) == (other.step, other.validations, other.curves)
    assert dataclasses.replace(one.cost, seconds=0) == dataclasses.replace(other.cost, seconds=0)


# learning


def test_the_policy_learns_to_write_what_is_rewarded(tmp_path, judge):
    lm = tiny_lm(limits=LIMITS, rank=0)
    start = dataclasses.replace(fitted(LM), trained=lm.trainable(jax.random.key(0)))
    learning = {"optimizer": {"learning_rate": 1e-2}, "kl_coef": 0.0, "rollouts": 10}
    policy = _fit(tmp_path, lm=lm, reference=start, prompts=32, batch_size=32, epochs=4, **learning)
    score = _curve(policy, "score")
    assert score[:2].mean() < 0.6 and score[-2:].mean() > score[:2].mean() + 0.2
    divergence = _curve(policy, "kl_to_anchor")
    assert divergence[0] == pytest.approx(0.0, abs=1e-5) and divergence[-1] > 1.0


def test_the_values_learn_what_a_response_will_earn_and_equal_scores_move_no_policy(
    tmp_path, judge
):
    judge.score = lambda text: 0.5
    ppo = {"normalise_scores": False, "kl_coef": 0.0, "value_clip": 10.0, "value_weight": 1.0}
    policy = _fit(tmp_path, optimizer={"learning_rate": 3e-3}, rollouts=8, **ppo)
    errors = _curve(policy, "value_loss")
    assert 0.05 < errors[0] <= 0.125 and errors[-1] < 0.2 * errors[0]
    assert policy.step == 0
    assert policy.trained.keys() == fitted(LM).trained.keys()
    for path, leaf in fitted(LM).trained.items():
        np.testing.assert_array_equal(policy.trained[path], leaf)


def test_step_zero_is_the_reference_and_its_score_the_mean_reward_of_its_answers(
    judge, undisturbed
):
    policy, *_ = undisturbed
    config = small_options()
    config.decode.update(DECODE)
    config.decode.batch_size = 4
    given = setup(LM, JUDGED, {"luck": 1.0}, config.decode)
    asked, reward = one_per_prompt(SCORED.validation), given.reward(SCORED)
    rows = given.deterministic_sampler().answer(
        fitted(LM).trained, asked, reward, key=jax.random.key(9), watch=Watch("")
    )
    assert policy.validations[0].score == pytest.approx(np.mean([row.reward for row in rows]))
    assert [look.step for look in policy.validations] == [0, 2, 4]
    assert {look.metric for look in policy.validations} == {"mean validation reward"}


def test_before_the_first_step_every_ratio_is_one_even_where_adapters_have_dropout(tmp_path, judge):
    lm = tiny_lm(limits=LIMITS, dropout=0.5)
    policy = _fit(tmp_path, lm=lm, reference=fitted(LM), rollouts=1, epochs=1, batch_size=8)
    assert _curve(policy, "approx_kl")[0] == pytest.approx(0.0, abs=1e-9)
    assert _curve(policy, "fraction_clipped")[0] == 0.0


def test_the_anchor_is_the_reference_or_the_bare_base(tmp_path, judge):
    runs = {
        name: _fit(tmp_path / name, rollouts=1, anchor=name, kl_coef=0.5)
        for name in ("reference", "base")
    }
    kl = {name: _curve(policy, "kl_to_anchor")[0] for name, policy in runs.items()}
    assert kl["reference"] == pytest.approx(0.0, abs=1e-5) and abs(kl["base"]) > 1e-3
    rewarded = {name: _curve(policy, "token_reward")[0] for name, policy in runs.items()}
    assert rewarded["reference"] - rewarded["base"] == pytest.approx(0.5 * kl["base"], abs=1e-5)
    for name, policy in runs.items():
        assert _curve(policy, "score")[0] == _curve(runs["base"], "score")[0], name


def test_the_penalty_grows_while_the_divergence_is_above_its_target(tmp_path, judge):
    ppo = {"anchor": "base", "kl_horizon": 8.0, "rollouts": 3}
    above = _fit(tmp_path / "above", kl_target=1e-6, **ppo)
    below = _curve(_fit(tmp_path / "below", kl_target=1e6, **ppo), "kl_coef")
    np.testing.assert_allclose(below, 0.2 * 0.8 ** np.arange(3), rtol=1e-6)
    grown = np.where(_curve(above, "kl_to_anchor") > 0, 1.2, 0.8)  # an estimate may be negative
    expected = 0.2 * np.cumprod([1.0, *grown[:-1]])
    np.testing.assert_allclose(_curve(above, "kl_coef"), expected, rtol=1e-6)


def test_the_value_of_a_token_is_said_before_the_token_is_known():
    key = jax.random.normal(jax.random.key(0), (LM.transformer.config.width,))
    params = {**LM.frozen(), **FRESH.trained, "value/kernel": key, "value/bias": jnp.ones(())}
    written = np.full((7, 6), 70)
    written[np.arange(6) + 1, np.arange(6)] = 71  # response n + 1 has another token n
    grid, shape = grid_of([TABLE.rows[0].prompt] * 7, written[:, None])
    logp, values = logp_and_values(LM, params, grid, shape)
    for n in range(6):
        same = np.isclose(values[n + 1], values[0], atol=1e-5)
        assert same[: n + 1].all() and not same[n + 1 : n + 2].any()
        assert not np.isclose(logp[n + 1, n], logp[0, n], atol=1e-5)


# what is logged and counted


def test_every_logged_metric_is_explained_and_the_cost_is_their_sum(undisturbed):
    policy, *_ = undisturbed
    shared = {"loss", "fraction_clipped", "grad_norm"}
    told = {*ROLLOUT_METRICS, *WORK_METRICS}
    assert {curve.name for curve in policy.curves} == told | shared
    assert all(np.isfinite(curve.values).all() for curve in policy.curves)
    assert policy.cost.tokens == _curve(policy, "tokens").sum()
    assert policy.cost.computed == _curve(policy, "computed_tokens").sum()
    assert 0 < policy.cost.real == policy.cost.tokens / policy.cost.computed < 1
    prompt = np.mean([len(row.prompt) for row in TABLE.rows])
    written = _curve(policy, "response_length") * 8
    expected = 2 * (written + 8 * prompt)  # two epochs, and prompts of nearly one length
    np.testing.assert_allclose(_curve(policy, "tokens"), expected, rtol=0.1)
    assert policy.cost.flops == pytest.approx(_curve(policy, "flops").sum())
    assert policy.cost.seconds > 0


def test_scores_are_normalised_by_the_moments_of_all_rollouts_so_far(undisturbed):
    policy, *_ = undisturbed
    mean, std, shown = (_curve(policy, n) for n in ("score", "score_std", "normalised_score"))
    for n in range(1, 5):
        pooled = mean[:n].mean()
        squares = np.sum(8 * (std[:n] ** 2 + (mean[:n] - pooled) ** 2))
        expected = (mean[n - 1] - pooled) / np.sqrt(squares / (8 * n - 1))
        assert shown[n - 1] == pytest.approx(expected, abs=1e-4)
    assert np.abs(shown[1:]).max() > 1e-2


def test_more_epochs_cost_more_and_write_no_more(tmp_path, judge):
    once, twice, thrice = (
        _fit(tmp_path / str(epochs), rollouts=1, epochs=epochs) for epochs in (1, 2, 3)
    )
    assert twice.cost.tokens == 2 * once.cost.tokens
    step = twice.cost.flops - once.cost.flops
    assert thrice.cost.flops - twice.cost.flops == pytest.approx(step, rel=1e-6)
    assert once.cost.flops > 1.5 * step  # what is written and read besides


# minibatches


@pytest.fixture
def minibatches(monkeypatch):
    """What would be learned from, without learning."""
    found = []

    def update(train, frozen, batch):
        found.append(jax.device_get(batch))
        return train._replace(step=train.step + 1), {"loss": 0.0} | batch.work.metrics()

    monkeypatch.setattr(stage, "make_update", lambda *given: update)
    return found


def test_each_response_is_learned_from_once_an_epoch_in_another_order(tmp_path, judge, minibatches):
    _fit(tmp_path, rollouts=2, prompts=8, batch_size=4, epochs=3, luck=1.0)
    assert len(minibatches) == 2 * 3 * 2  # rollouts, epochs, optimizer steps
    orders = []
    for rollout in (minibatches[:6], minibatches[6:]):
        advantages = {}
        for first in (0, 2, 4):
            texts = []
            for grids, targets, _ in rollout[first : first + 2]:
                assert targets.mask.shape == targets.advantages.shape == (4, 6)
                found = unpacked(grids, 6)
                assert list(found) == [0, 1, 2, 3]
                for n, text in found.items():
                    assert len(text[1]) == targets.mask[n].sum()
                    texts.append(text)
                    known = advantages.setdefault(text, targets.advantages[n])
                    np.testing.assert_array_equal(known, targets.advantages[n])
            assert len(set(texts)) == 8
            orders.append(texts)
        assert len(advantages) == 8
    places = [[sorted(order).index(text) for text in order] for order in orders]
    assert len({tuple(place) for place in places}) == 6


def test_the_grids_do_not_change_what_is_learned(tmp_path, judge):
    once = {"reference": FRESH, "rollouts": 1, "epochs": 1, "batch_size": 8}
    whole = _fit(tmp_path / "whole", lm=tiny_lm(limits=LIMITS, width=128, rows=2), **once)
    parts = _fit(tmp_path / "parts", lm=tiny_lm(limits=LIMITS, width=32, rows=1), **once)
    assert _curve(whole, "response_length")[0] < 6  # else a mean of means would do
    for name in ("loss", "policy_loss", "value_loss", "grad_norm", "kl_to_anchor", "tokens"):
        np.testing.assert_allclose(_curve(parts, name), _curve(whole, name), rtol=1e-4, atol=1e-6)


def test_two_sizes_of_grids_are_compiled(tmp_path, judge, monkeypatch):
    made, make = [], stage.make_update
    monkeypatch.setattr(stage, "make_update", lambda *given: made.append(make(*given)) or made[0])
    _fit(tmp_path, lm=tiny_lm(limits=LIMITS, width=32, rows=1), rollouts=3, batch_size=4)
    assert made[0]._cache_size() == 2


# seeds, resuming, devices


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Four rollouts with validations after 2 and 4, a checkpoint after each: the policy, its log,
    the judge's calls."""
    patch = pytest.MonkeyPatch()
    judge = Judge(lambda text: np.mean([ord(c) < 100 for c in text]) if text else 0.0)
    patch.setitem(rewards.SCORERS, "judge", lambda train: judge)
    folder = tmp_path_factory.mktemp("undisturbed")
    policy = _fit(folder, policy={"checkpoint_every": 1})
    patch.undo()
    return policy, (folder / "metrics.jsonl").read_text(encoding="utf-8"), judge.calls


def test_another_seed_gives_another_policy_from_the_same_start(tmp_path, judge, undisturbed):
    policy, _, calls = undisturbed
    assert calls == 3 + 4  # looks and rollouts
    other = _fit(tmp_path, policy={"seed": 1})
    assert _curve(other, "score").tolist() != _curve(policy, "score").tolist()
    assert other.validations[0] == policy.validations[0]


@pytest.mark.parametrize("reached", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_an_interrupted_run_that_goes_on_is_the_undisturbed_run_bit_by_bit(
    tmp_path, judge, undisturbed, reached
):
    policy, log, _ = undisturbed
    asked = 1 + reached + (reached > 2)  # looks at 0 and 2, and the rollouts
    with pytest.raises(Interrupted, match=f"saved at step {reached} of 4"):
        _fit(tmp_path, stopping=lambda: judge.calls == asked)
    _same(_fit(tmp_path), policy)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == log


def test_a_run_that_dies_while_it_scores_goes_on_from_its_last_checkpoint(
    tmp_path, judge, undisturbed
):
    policy, log, _ = undisturbed
    judge.dies_at = 6  # in the last rollout; the last checkpoint is before the one that was over
    with pytest.raises(Died):
        _fit(tmp_path)
    judge.dies_at = None
    _same(_fit(tmp_path), policy)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == log


def test_eight_devices_learn_from_a_rollout_what_one_does(tmp_path, judge):
    """Four steps. The large epsilon keeps Adam from blowing up the rounding of tiny gradients."""
    size = {"limits": LIMITS, "width": 32, "rows": 4}  # also steps of two responses
    lms = tiny_lm(**size), tiny_lm(**size, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    steady = {"rollouts": 1, "optimizer": {"epsilon": 1.0, "learning_rate": 0.1}, "batch_size": 2}
    runs = [_fit(tmp_path / str(n), lm=lm, reference=FRESH, **steady) for n, lm in enumerate(lms)]
    assert _curve(runs[0], "approx_kl")[0] > 1e-6
    for curve in runs[0].curves:
        np.testing.assert_allclose(
            _curve(runs[1], curve.name), curve.values, rtol=2e-4, atol=1e-5, err_msg=curve.name
        )


# refusals


def test_without_a_scorer_ppo_is_refused_in_one_line(tmp_path, judge):
    with pytest.raises(UserError, match="ppo learns from what its policy writes, and nothing can"):
        _fit(tmp_path, luck=0.0)


def test_responses_longer_than_what_is_trained_on_are_refused(tmp_path, judge):
    with pytest.raises(UserError, match="config.model.max_response=4: .* up to 6 tokens"):
        _fit(tmp_path, lm=tiny_lm(limits=Limits(16, 4)), reference=fitted(LM))
