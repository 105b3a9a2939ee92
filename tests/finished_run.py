"""A workdir whose fits are done, without having fitted: random leaves where training would end."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.objectives.logprobs import logits_of
from alol_jax.objectives.registry import get_objective
from alol_jax.runs.workdir import Run
from alol_jax.types import Evaluation, Policy
from configs import common
from tests.tiny_run import TASK, mesh_of, scoring

STAGES = {"fit_reference": 1, "fit_policy": 2, "fit_policy_online": 2, "evaluate": 3}


def config_of(path: str, **model):
    """The shared config on one model, in float32; ``model`` sets fields of ``config.model``."""
    config = common.get_config()
    config.model.update({"path": path, "dtype": "float32", "remat": "none"})
    config.model.update({"max_prompt": 16, "max_response": 8})
    config.model.lora.update({"rank": 2, "alpha": 6.0, "dropout": 0.1})
    config.model.update(model)
    config.rewards = ConfigDict({"positivity": 1.0})
    return config


@functools.lru_cache(maxsize=1)
def _abstract(lm: LanguageModel):
    return lm.abstract()[0]


def random_policy(lm: LanguageModel, seed: int) -> Policy:
    """Trained leaves of some size, norms around one."""
    draw = np.random.default_rng(seed)
    trained = {
        path: jnp.asarray(path.endswith("scale") + 0.15 * draw.normal(size=leaf.shape), "float32")
        for path, leaf in sorted(_abstract(lm).items())
    }
    return Policy(trained, 7, (), ())


def finished_run(
    workdir: Path, config, *, evaluation: Evaluation | None = None, redo: bool = False
) -> LanguageModel:
    """Makes both fits in ``workdir``, the reference from seed 1, the policy from seed 2, as the
    config's objective is fitted; and stores an evaluation if there is one."""
    lm = open_language_model(config.model, mesh_of(1)).for_template(config.task.template)

    task = dataclasses.replace(TASK, template=config.task.template or TASK.template)

    def fit_reference(lm, task, options, seed, scored, *, context) -> Policy:
        return random_policy(lm, 1)

    def fit_policy(
        lm, task, objective, hyper, scoring, options, decoding, seed, scored, table, reference, *,
        context,
    ) -> Policy:  # fmt: skip
        return random_policy(lm, 2)

    def fit_policy_online(
        lm, task, options, hyper, scoring, decoding, seed, scored, table, reference, *, context
    ) -> Policy:
        return random_policy(lm, 2)

    def evaluate(lm, task, reference, policy, *, context) -> Evaluation:
        return evaluation

    run = Run(
        workdir,
        STAGES,
        config,
        allowed=STAGES,
        redo=redo,
        stopping=lambda: False,
        say=lambda line: None,
    )
    reference = run.stage(
        "fit_reference", fit_reference, lm, task, config.reference, config.seed, "rows"
    )
    if get_objective(config.objective.name).online:
        policy = run.stage(
            "fit_policy_online", fit_policy_online, lm, task, config.policy, config.ppo,
            scoring(config.rewards), config.decode, config.seed, "rows", "table", reference,
        )  # fmt: skip
    else:
        policy = run.stage(
            "fit_policy", fit_policy, lm, task, "a_lol", config.objective, scoring(config.rewards),
            config.policy, config.decode, config.seed, "rows", "table", reference,
        )  # fmt: skip
    if evaluation is not None:
        run.stage("evaluate", evaluate, lm, task, reference, policy)
    return lm


def policy_logits(lm: LanguageModel, trained, tokens: np.ndarray) -> np.ndarray:
    """f32[B, T, V] of the model in training, without dropout."""
    return np.asarray(_logits(lm.transformer)({**lm.frozen(), **trained}, jnp.asarray(tokens)))


@functools.cache
def _logits(transformer):
    @jax.jit
    def logits(params, tokens):
        hidden = transformer.hidden(params, tokens, jnp.ones(tokens.shape))
        return logits_of(hidden, transformer.unembedding(params))

    return logits
