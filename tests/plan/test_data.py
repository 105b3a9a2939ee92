"""plan --data: what the training rows of a config say about a step."""

import json
import math

import jax
import numpy as np
import pytest

from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.models.language_model import open_language_model
from alol_jax.objectives.registry import get_objective
from alol_jax.plan.chips import read_topology
from alol_jax.plan.data import Epoch, epoch_of, read_lengths
from alol_jax.plan.setting import Setting, prepare
from alol_jax.plan.summary import as_json, epoch_line
from alol_jax.stages.score import rows_of
from alol_jax.tasks.registry import get_task
from alol_jax.training.batches import shuffled
from alol_jax.training.grids import SAMPLE_STEPS, packer_of
from alol_jax.training.items import single_items, tokenise
from configs import quickstart
from tests.plan.test_plan import cost

NLL = get_objective("nll")


def debug_config(**values):
    config = quickstart.get_config("debug")
    config.update_from_flattened_dict(values)
    return config


def opened(config):
    return open_language_model(
        config.model, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    )


def test_the_grid_and_the_share_are_those_of_a_fit_on_the_same_rows():
    config = debug_config()
    lm, task = opened(config), get_task(config.task)
    epoch = epoch_of(lm, config, read_lengths(lm, config, NLL), math.inf)
    rows, _ = tokenise(rows_of(task.load(config.task).train), task, lm.tokenizer, lm.limits)
    items = single_items(rows)
    order = shuffled(np.ones(len(rows), bool), size=config.policy.batch_size, seed=config.seed)
    packer = packer_of(lm, items, order)
    works = [packer(items.examples(order(step)))[1] for step in range(SAMPLE_STEPS)]
    assert epoch.items == len(rows)
    assert epoch.tokens == rows["prompt"].lengths.sum() + rows["response"].lengths.sum()
    assert epoch.shape == packer.shape
    real = sum(work.tokens for work in works) / sum(work.computed for work in works)
    assert epoch.real == pytest.approx(real) and 0.5 < real < 1.0


def test_with_less_memory_the_grid_is_smaller():
    config = debug_config()
    lm = opened(config)
    lengths = read_lengths(lm, config, NLL)
    large, small = (epoch_of(lm, config, lengths, room) for room in (math.inf, 0.0))
    assert small.shape.tokens < large.shape.tokens
    assert small.shape.rows == 1 and small.items == large.items


def test_pairs_are_items_of_two_responses():
    config = debug_config(**{"objective.name": "dpo"})
    lm = opened(config)
    pairs = read_lengths(lm, config, get_objective("dpo"))
    rows = read_lengths(lm, config, NLL)
    assert 0 < len(pairs.tokens) < len(rows.tokens)
    assert pairs.tokens.mean() > rows.tokens.mean()


def test_an_objective_that_writes_its_own_answers_is_refused():
    config = debug_config(**{"objective.name": "ppo"})
    with pytest.raises(UserError, match="--data: ppo trains on answers"):
        read_lengths(opened(config), config, get_objective("ppo"))


def test_the_line_has_no_rate_where_the_step_was_not_compiled():
    epoch = Epoch(100, 2500, 0.9, None)
    for costs in ([cost("select")], [cost("policy step", compiled=False)]):
        assert epoch_line(epoch, costs) == "data: 100 items of 25 tokens, real tokens 90%"


@pytest.mark.tpu
def test_the_policy_step_has_the_grid_of_the_data():
    prepare()
    config = debug_config(**{"mesh.data": 1, "mesh.fsdp": -1})
    setting = Setting(config, read_topology("v5e:1x1"), 1)
    lm = setting.open()
    setting = Setting(config, setting.topology, 1, read_lengths(lm, config, NLL))
    (found,) = setting.costs(["policy step"])
    epoch = setting.epoch
    assert (found.rows, found.width) == (epoch.shape.rows, epoch.shape.width)
    rate = found.rows * found.width / found.seconds * epoch.real
    line = epoch_line(epoch, [found])
    assert f"at most {rate:,.0f} of them per second" in line
    assert f"at least {epoch.tokens / rate:,.1f} s" in line
    told = json.loads(as_json(setting, [found], ""))["epoch"]
    assert told["items"] == epoch.items and told["shape"]["width"] == epoch.shape.width
