"""What a stage needs, as small as it can be: a tiny model, a toy task, options, a context."""

import functools
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup
from alol_jax.devices.sharding import AXES
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.rewards.reward import Scoring
from alol_jax.stages import evaluate as stage_evaluate
from alol_jax.stages.evaluate_reference import evaluate_reference
from alol_jax.tables.table import Table
from alol_jax.types import (
    Annotated,
    Evaluation,
    Limits,
    Policy,
    RewardSpec,
    Scored,
    ScoredSplits,
    StageContext,
    Task,
)
from configs import common

LIMITS = Limits(32, 24)

TASK = Task(
    name="toy",
    load=lambda options: None,
    files=lambda options: (),
    template="<|im_start|>{prompt}<|im_end|>",
    stop=("\n",),
    rewards=(RewardSpec("positivity", "vader_positivity", "{response}", 1.0),),
    clean=lambda text: text.partition("\n")[0].strip(),
)

WORDS = ("good", "bad", "a great day", "an awful day", "yes", "no", "I love it", "I hate it")


def mesh_of(count: int, *, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first ``count`` devices."""
    devices = np.array(jax.devices()[:count]).reshape(-1, fsdp, tensor)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


@functools.cache
def tiny_lm(
    *,
    mesh: Mesh | None = None,
    rank: int = 2,
    limits: Limits = LIMITS,
    width: int = 0,
    rows: int = 0,
    dropout: float = 0.0,
) -> LanguageModel:
    """The random tiny Llama in float32; on one device unless a mesh is given."""
    options = common.get_config().model
    options.path, options.dtype, options.remat = "random:llama-tiny", "float32", "none"
    options.update({"max_prompt": limits[0], "max_response": limits[1]})
    options.update({"width": width, "rows": rows})
    options.lora.update({"rank": rank, "dropout": dropout})
    return open_language_model(options, mesh_of(1) if mesh is None else mesh)


def small_options():
    """The shared config with small batches, for rows of `scored_rows`."""
    config = common.get_config()
    config.rewards = ConfigDict({"positivity": 1.0})
    config.decode.update({"max_new_tokens": 4, "batch_size": 4})
    config.reference.update({"batch_size": 4, "validations": 1})
    config.policy.update({"batch_size": 4, "validations": 1})
    config.policy.optimizer.update({"learning_rate": 1e-3})
    config.value.update({"batch_size": 4, "folds": 2, "epochs": 1})
    config.evaluate.update({"bootstrap": 100})
    return config


def scored_rows(count: int, split: str = "train", reward=None) -> Table[Scored]:
    """Short rows, each prompt once; the reward is random unless given as a function of a row."""
    rng = np.random.default_rng(len(split))
    rows = (
        Scored(
            example_id=f"{split}{n}",
            prompt=f"{split[:2]} {n}?",
            response=WORDS[n % len(WORDS)],
            source=("web", "book")[n % 2],
            components=(),
            reward=float(rng.random() if reward is None else reward(n)),
        )
        for n in range(count)
    )
    return Table.of(rows, Scored)


def scored_table(rows: Iterable[Scored]) -> Table[Scored]:
    """The rows as a table."""
    return Table.of(rows, Scored)


def scored_splits(train: int = 8, validation: int = 4, test: int = 4) -> ScoredSplits:
    """Three splits of `scored_rows`."""
    return ScoredSplits(
        train=scored_rows(train, "train"),
        validation=scored_rows(validation, "validation"),
        test=scored_rows(test, "test"),
        component_names=("positivity",),
        max_reward=1.0,
        notes=(),
    )


def annotated(n: int, *, prompt: int = 3, response: int = 2, **changes) -> Annotated:
    """A row of ``prompt`` and ``response`` tokens whose ids and numbers tell which row it is."""
    fields = {
        "example_id": f"id{n}",
        "source": "web",
        "prompt_text": "p",
        "response_text": "r",
        "prompt": tuple(100 + (7 * n + i) % 90 for i in range(prompt)),
        "response": tuple(1 + (5 * n + i) % 90 for i in range(response)),
        "ref_logp": tuple(-0.25 - 0.5 * i - 0.125 * (n % 4) for i in range(response)),
        "reward": float(n),
        "value": 0.5,
        "advantage": 0.25 * (n % 5) + 0.25,
        "kept": True,
    }
    return Annotated(**(fields | changes))


def annotated_rows(rows: Iterable[Annotated]) -> Table[Annotated]:
    """The rows as a table."""
    return Table.of(rows, Annotated)


@functools.cache
def fitted(lm: LanguageModel, seed: int = 0) -> Policy:
    """Random adapters of some size as a fitted policy: another seed gives other answers."""
    leaves = lm.trainable(jax.random.key(0)).items()
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    trained = {
        path: 0.3 * jax.random.normal(key, leaf.shape)
        for key, (path, leaf) in zip(keys, leaves, strict=True)
    }
    return Policy(trained, 0, (), ())


def context(folder: Path, *, said: list[str] | None = None, stopping=lambda: False):
    """What a running stage may use; what it says goes to ``said``."""
    return StageContext(folder, stopping, (lambda line: None) if said is None else said.append)


def setup(lm, task: Task, weights: dict[str, float], decoding, *, seed: int = 0) -> Setup:
    """What a stage needs whose policy answers prompts of ``task``."""
    return Setup(lm, task, scoring(weights, task=task), decoding, seed)


def scoring(weights: dict[str, float] | None = None, *, task: Task = TASK) -> Scoring:
    """The reward of a task by these weights; no models."""
    return Scoring(task.rewards, {}, {"positivity": 1.0} if weights is None else dict(weights))


def evaluate(made: Setup, options, scored, reference, policy, *, context) -> Evaluation:
    """The evaluation of the reference, then that of the policy."""
    by_reference = evaluate_reference(made, scored, reference, context=context)
    given = (options, scored, reference, policy, by_reference)
    return stage_evaluate.evaluate(made, *given, context=context)
