"""Rollouts: which prompts, what is kept of what was written, the anchors, what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards import reward as rewards
from alol_jax.training.items import tokenise
from alol_jax.training.rollouts import ANCHORS, anchor_params, check_rollouts, make_rollouts
from alol_jax.types import Limits, RewardSpec, Watch
from tests.tiny_run import (
    TASK,
    fitted,
    mesh_of,
    scored_rows,
    scored_table,
    setup,
    small_options,
    tiny_lm,
)

LM = tiny_lm(limits=Limits(32, 8))
MEASURED = dataclasses.replace(TASK, rewards=(RewardSpec("length", "length", "{response}", 99.0),))


@pytest.fixture
def seen(monkeypatch):
    """The texts that were scored, each by its length."""
    found = []

    def score(texts):
        found.extend(texts)
        return np.array([len(text) for text in texts], np.float64)

    monkeypatch.setitem(rewards.SCORERS, "length", lambda train: score)
    return found


def _options(**changes):
    config = small_options()
    config.decode.update({"max_new_tokens": 8})
    config.ppo.update({"rollouts": 12, "prompts": 4, "batch_size": 4} | changes)
    return config


def _rows():
    """Twelve short prompts with two responses each, and six long ones."""
    short = scored_rows(12, "train")
    long = scored_rows(6, "validation")
    rows = [dataclasses.replace(row, example_id=f"s{n}") for n, row in enumerate(short)]
    rows += [dataclasses.replace(row, response="other") for row in rows]
    rows += [dataclasses.replace(row, prompt=row.prompt + 12 * "x") for row in long]
    return tokenise(scored_table(rows), TASK, LM.tokenizer, LM.limits)[0]


def _make(seed=0, **changes):
    config = _options(**changes)
    given = setup(LM, MEASURED, {"length": 1.0}, config.decode)
    reward = given.scoring.reward([])
    return make_rollouts(given, reward, config.ppo, _rows(), seed=seed, key=jax.random.key(seed))


def _ids(rollouts, asked):
    return [rollouts.rows[index].example_id for index in asked]


def test_each_prompt_is_asked_equally_often_however_many_responses_it_has(seen):
    rollouts = _make()
    asked = [name for one in rollouts.prompts(0, 9) for name in _ids(rollouts, one)]
    names, counts = np.unique(asked, return_counts=True)
    assert len(names) == 18 and set(counts) == {2}


def test_prompts_of_every_length_are_asked_together(seen):
    rollouts = _make(prompts=8)
    lengths = [rollouts.rows["prompt"].lengths[asked] for asked in rollouts.prompts(0, 9)]
    assert all(len(each) == 8 and len(set(each)) > 1 for each in lengths)


def test_who_is_asked_depends_on_the_seed_and_the_number_of_the_rollout_alone(seen):
    first = [_ids(_make(), asked) for asked in _make().prompts(0, 9)]
    assert [_ids(_make(), asked) for asked in _make().prompts(3, 6)] == first[3:6]
    assert [_ids(_make(), asked) for asked in _make(seed=1).prompts(0, 9)] != first


def test_the_tokens_are_the_very_ones_that_were_drawn_and_the_score_is_of_the_text(seen):
    rollouts, trained = _make(top_k=0, top_p=1.0), fitted(LM).trained
    asked = next(rollouts.prompts(0, 1))
    written = rollouts.generate(trained, asked, 5)
    key = jax.random.fold_in(jax.random.key(0), 5)
    ids = rollouts.sampler.generate(trained, _prompts(rollouts, asked), key=key, watch=Watch(""))
    assert seen == list(rollouts.sampler.texts(ids))
    np.testing.assert_array_equal(written.score, [len(text) for text in seen])
    prompts, responses = written.examples
    assert [tuple(r) for (r,) in responses] == [tuple(drawn) for drawn in ids]
    assert [tuple(p) for p in prompts] == [rollouts.rows[index].prompt for index in asked]


def _prompts(rollouts, asked):
    return [rollouts.rows[index].prompt_text for index in asked]


def test_the_draws_differ_by_rollout_and_by_row_of_the_same_prompt(seen):
    rollouts, trained = _make(top_k=0, top_p=1.0), fitted(LM).trained
    same = np.repeat(next(rollouts.prompts(0, 1))[:1], 4)
    first, again, other = (
        [tuple(r) for (r,) in rollouts.generate(trained, same, n).examples.responses]
        for n in (0, 0, 1)
    )
    assert first == again
    assert len({*first, *other}) == 8


# anchors


def _hidden(lm, transformer, leaves):
    tokens = np.arange(1, 7, dtype=np.int32)[None]
    return transformer.hidden({**lm.frozen(), **leaves}, tokens, np.ones((1, 6), np.float32))


def test_the_base_is_the_model_with_its_adapters_off():
    reference = fitted(LM).trained
    plain = _hidden(LM, dataclasses.replace(LM.transformer, lora=None), {})
    np.testing.assert_allclose(
        _hidden(LM, LM.transformer, anchor_params("base", LM, reference)), plain, atol=1e-6
    )
    fitted_one = _hidden(LM, LM.transformer, anchor_params("reference", LM, reference))
    assert np.abs(fitted_one - plain).max() > 0.1
    np.testing.assert_array_equal(fitted_one, _hidden(LM, LM.transformer, reference))


def test_without_adapters_the_base_is_the_model_as_it_was_loaded():
    full = tiny_lm(limits=LM.limits, rank=0)
    loaded = full.trainable(jax.random.key(3))
    moved = {path: leaf + 1.0 for path, leaf in loaded.items()}
    for path, leaf in anchor_params("base", full, moved).items():
        np.testing.assert_array_equal(leaf, loaded[path])
    assert set(ANCHORS) == {"reference", "base"}


# what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": 6}, "config.ppo.prompts=6 must be a multiple of config.ppo.batch_size=4"),
        ({"rollouts": 0}, "config.ppo.rollouts=0 must be above 0"),
        ({"temperature": 0.0}, "config.ppo.temperature=0.0 must be above 0"),
        ({"gamma": 1.5}, "config.ppo.gamma=1.5 must be in [0, 1]"),
        (
            {"kl_horizon": 1.6, "prompts": 8},
            "config.ppo.kl_horizon=1.6 must be above 0.2 · prompts = 1.6: the KL coefficient could "
            "become negative",
        ),
        ({"kl_coef": -0.1}, "config.ppo.kl_coef=-0.1 must be 0 or more"),
        ({"kl_target": float("nan")}, "config.ppo.kl_target=nan must be above 0"),
        ({"top_p": 0.0}, "decoding: top_p=0.0 must be in (0, 1]"),
        ({"anchor": "bas"}, "config.ppo.anchor: no anchor 'bas': did you mean 'base'?"),
    ],
)
def test_what_cannot_run_is_one_line_that_names_the_field(changes, said):
    config = _options(**changes)
    with pytest.raises(UserError) as caught:
        check_rollouts(config.ppo, config.decode, LM)
    assert str(caught.value) == said or str(caught.value).startswith(said + ",")


def test_answers_longer_than_what_can_be_trained_on_are_refused():
    config = _options()
    check_rollouts(config.ppo, config.decode, LM)
    config.decode.max_new_tokens = 9
    with pytest.raises(UserError) as caught:
        check_rollouts(config.ppo, config.decode, LM)
    assert str(caught.value) == (
        "config.model.max_response=8: the policy writes up to 9 tokens and trains on them: raise "
        "it, or lower config.decode.max_new_tokens"
    )


def test_the_devices_need_not_share_the_responses_evenly():
    config = _options(batch_size=2, prompts=6)
    check_rollouts(config.ppo, config.decode, tiny_lm(mesh=mesh_of(4), limits=LM.limits))
