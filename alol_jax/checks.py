"""What can be known to be wrong with a config before the first stage runs."""

from __future__ import annotations

import functools
import math
import re

from ml_collections import ConfigDict

from alol_jax.advantage import sampling_of
from alol_jax.language_model import LanguageModel
from alol_jax.objectives import Objective, hyper_parameters
from alol_jax.optim import make_optimizer
from alol_jax.rewards import weights_of
from alol_jax.sampling import decoding_of, drawing_of
from alol_jax.tokenizer import Tokenizer
from alol_jax.types import Task, UserError


def check(config: ConfigDict, task: Task, objective: Objective, lm: LanguageModel) -> None:
    """Refuses a config that cannot run to its end.

    Raises:
        UserError: names the field, its value and what is expected.
    """
    sampling_of(config.policy.sampling, objective.draw_by)
    weights_of(task.rewards, config.rewards)
    _check_decoding(config, lm)
    for section in ("reference", "policy", "value"):
        make_optimizer(config[section].optimizer, steps=1)
        _positive(f"{section}.optimizer.learning_rate", config[section].optimizer.learning_rate)
    for section in ("reference", "policy"):
        for field in ("epochs", "batch_size", "accumulate", "validations", "checkpoint_every"):
            _positive(f"{section}.{field}", config[section][field])
    for field in ("generate.samples", "value.epochs", "evaluate.bootstrap", "model.logprob_chunk"):
        section, name = field.split(".")
        _positive(field, config[section][name])
    for field, least in (("seed", 0), ("report.examples", 0), ("value.folds", 2)):
        value = functools.reduce(lambda section, name: section[name], field.split("."), config)
        if value < least:
            raise UserError(f"config.{field}={value} must be {least} or more")
    _check_rows(config, lm)
    _check_template(task.template, lm.tokenizer)
    _check_hyper_parameters(config.objective, objective)
    _positive("value.heads", config.value.heads)
    if lm.transformer.config.width % config.value.heads:
        raise UserError(
            f"config.value.heads={config.value.heads} does not divide the model's width "
            f"{lm.transformer.config.width}"
        )


def _check_rows(config: ConfigDict, lm: LanguageModel) -> None:
    """Every batch is cut evenly over the devices of the mesh."""
    cut = lm.mesh.shape["data"] * lm.mesh.shape["fsdp"]
    for section in ("reference", "policy", "decode", "value", "select"):
        size = config[section].batch_size
        _positive(f"{section}.batch_size", size)
        if size % cut:
            raise UserError(
                f"config.{section}.batch_size={size} must be a multiple of data · fsdp = {cut}"
            )


def _check_decoding(config: ConfigDict, lm: LanguageModel) -> None:
    """Numbers in their ranges, end tokens that the model has, answers that fit in its positions."""
    decoding_of(config.decode)
    drawing_of(config.decode, config.generate)
    vocab_size = lm.tokenizer.vocab_size
    for token in config.decode.end:
        if not isinstance(token, int) or not 0 <= token < vocab_size:
            raise UserError(
                f"config.decode.end={config.decode.end}: {token!r} is no token id, which are whole "
                f"numbers below {vocab_size}"
            )
    longest, positions = lm.prompt_widths[-1], lm.transformer.config.max_positions
    if longest + config.decode.max_new_tokens > positions:
        raise UserError(
            f"config.decode.max_new_tokens={config.decode.max_new_tokens} after prompts of "
            f"{longest} tokens is beyond the model's {positions} positions: at most "
            f"{positions - longest} fit"
        )


def _check_template(template: str, tokenizer: Tokenizer) -> None:
    """What looks like a special token is one."""
    for marker in re.findall(r"<\|[^|<>]*\|>|<s>|</s>|\[INST\]", template):
        if len(tokenizer.encode(marker)) != 1:
            raise UserError(
                f"config.task.template: {marker!r} is no special token of this model's tokenizer; "
                "write the template that the model was trained with"
            )


def _check_hyper_parameters(values: ConfigDict, objective: Objective) -> None:
    for name in hyper_parameters(objective):
        if math.isnan(values[name]) or values[name] < 0:
            raise UserError(f"config.objective.{name}={values[name]} must be 0 or more")


def _positive(field: str, value: float) -> None:
    if not value > 0 or math.isinf(value):
        raise UserError(f"config.{field}={value} must be above 0")
