"""Checks of a config before the first stage runs."""

from __future__ import annotations

import functools
import math
import re

from ml_collections import ConfigDict

from alol_jax.decoding.sampling import deterministic_decoding, stochastic_decoding
from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.advantage import FILTERS, SAMPLING, resolve_sampling, uniform
from alol_jax.objectives.registry import (
    Objective,
    columns_read,
    drops_rows,
    hyper_parameters,
)
from alol_jax.reports.text_measures import TEXT_MEASURES
from alol_jax.rewards.distilled import NAME
from alol_jax.rewards.lexical import check_meteor
from alol_jax.rewards.reward import check_weights
from alol_jax.rewards.stored import LABELS, WHOSE
from alol_jax.rewards.transform import check_transform
from alol_jax.runs.command_line import FORMER, former
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.training.distillation import check_options
from alol_jax.training.fit_in_memory import FITS
from alol_jax.training.held_out import MEASURES
from alol_jax.training.items import RANKINGS
from alol_jax.training.optim import make_optimizer
from alol_jax.training.rollouts import check_rollouts
from alol_jax.training.validation import CHOSEN_BY
from alol_jax.types import Task, is_chat

SPLITS = ("train", "validation", "test")
COLUMNS = ("ref_logp", "reward", "advantage")  # the columns that an objective can read


def check(config: ConfigDict, task: Task, objective: Objective, lm: LanguageModel) -> None:
    """Check that a config can run to its end.

    Raises:
        UserError: it cannot; the message names the field, its value and what is expected.
    """
    _check_former(config)
    _check_filter(config, objective)
    _check_sampling(config, objective)
    for field, weights in (
        ("config.rewards", config.rewards),
        ("config.evaluate.rewards", config.evaluate.rewards or config.rewards),
    ):
        check_weights(task.rewards, tuple(config.reward_models), weights, field=field)
    if config.evaluate.rewards and not any(config.evaluate.rewards.values()):
        raise UserError(
            "config.evaluate.rewards: every weight is 0, so nothing would score the test prompts: "
            "give one a weight above 0, or leave the dict empty to score them as in training"
        )
    _check_decoding(config, lm)
    for section in ("reference", "policy", "value"):
        make_optimizer(config[section].optimizer, steps=1)
        _positive(f"{section}.optimizer.learning_rate", config[section].optimizer.learning_rate)
    for section in ("reference", "policy"):
        for field in ("batch_size", "validations", "checkpoint_every"):
            _positive(f"{section}.{field}", config[section][field])
    _positive("policy.epochs", config.policy.epochs)
    _positive("score.tolerance", config.score.tolerance)
    for field in ("stored", "best"):
        for split in config.score[field]:
            if split not in SPLITS:
                raise UserError.unknown(f"config.score.{field}: no split {split!r}", split, SPLITS)
    _check_rewards(config, objective, lm)
    _check_measures(config)
    for field in ("generate.samples", "value.epochs", "evaluate.bootstrap", "model.logprob_chunk"):
        section, name = field.split(".")
        _positive(field, config[section][name])
    whole = ("seed", "policy.seed", "report.examples", "reference.epochs", "score.checked")
    whole += ("task.max_tokens",)
    for field, least in (*((name, 0) for name in whole), ("value.folds", 2)):
        value = functools.reduce(lambda section, name: section[name], field.split("."), config)
        if not least <= value < math.inf:
            raise UserError(f"config.{field}={value} must be {least} or more")
    _check_rows(config, lm)
    if config.model.fit not in FITS:
        raise UserError.unknown(
            f"config.model.fit: no {config.model.fit!r}", config.model.fit, FITS
        )
    _check_template(task.template, lm.tokenizer)
    if objective.online:
        check_rollouts(config.ppo, config.decode, lm)
        _check_scorer(config)
    else:
        _check_hyper_parameters(config.objective, objective)
    _positive("value.heads", config.value.heads)
    if lm.transformer.config.width % config.value.heads:
        raise UserError(
            f"config.value.heads={config.value.heads} does not divide the model's width "
            f"{lm.transformer.config.width}"
        )


def _check_former(config: ConfigDict) -> None:
    """Check that a config file sets no key that is no more: until it is locked, it may add keys."""
    of_reward_models = [f"reward_models.{name}.batch_size" for name in config.reward_models]
    for field in (*FORMER, *of_reward_models):
        *sections, name = field.split(".")
        if name in functools.reduce(lambda section, part: section[part], sections, config):
            raise UserError(f"config.{field}: there is no such key any more; {former(field)}")


def _check_filter(config: ConfigDict, objective: Objective) -> None:
    """Check that the rows that the filter leaves can be drawn."""
    name = config.policy.filter
    if name not in FILTERS:
        raise UserError.unknown(f"config.policy.filter: no filter {name!r}", name, FILTERS)
    if objective.online and drops_rows(objective, name):
        raise UserError(
            f"config.policy.filter={name!r}: {config.objective.name} trains on its own answers, "
            "which have no advantage before they are written: use auto"
        )
    sampling = resolve_sampling(config.policy.sampling, objective.draw_by)
    signed = "advantage" in objective.reads and not drops_rows(objective, name)
    if signed and SAMPLING[sampling].weigh is not uniform:
        raise UserError(
            f"config.policy.sampling={config.policy.sampling!r} never draws the rows with A ≤ 0, "
            f"which config.policy.filter={name!r} keeps: use uniform or good_uniform"
        )


def _check_sampling(config: ConfigDict, objective: Objective) -> None:
    """Check that sampling, ranking and annotated columns suit the objective."""
    sampling = resolve_sampling(config.policy.sampling, objective.draw_by)
    if objective.responses > 1 and SAMPLING[sampling].good:
        raise UserError(
            f"config.policy.sampling={sampling!r}: {config.objective.name} needs "
            f"{objective.responses} responses of a prompt: use uniform"
        )
    resolve_sampling(config.reference.sampling, None, field="reference")
    if config.policy.ranking not in RANKINGS:
        raise UserError.unknown(
            f"config.policy.ranking: no ranking {config.policy.ranking!r}",
            config.policy.ranking,
            RANKINGS,
        )
    columns = set(config.select.columns)
    for column in columns - set(COLUMNS):
        raise UserError.unknown(f"config.select.columns: no column {column!r}", column, COLUMNS)
    absent = columns_read(objective, config.policy.filter) - columns - {"reward"}
    if columns and absent:
        raise UserError(
            f"config.select.columns: {config.objective.name} reads {', '.join(sorted(absent))} too"
        )


def _check_measures(config: ConfigDict) -> None:
    """Check the measures of the evaluation, and what the policy's step is chosen by."""
    for name in config.evaluate.measures:
        if name not in TEXT_MEASURES:
            message = f"config.evaluate.measures: no measure {name!r}"
            raise UserError.unknown(message, name, TEXT_MEASURES)
    chosen = config.policy.choose_by
    paid = [name for name, weight in config.rewards.items() if weight]
    if chosen and chosen not in (*paid, *CHOSEN_BY):
        message = f"config.policy.choose_by: {chosen!r} has no weight"
        raise UserError.unknown(message, chosen, (*paid, *CHOSEN_BY))
    scores = paid or config.score.distil
    if config.policy.validation_kl and (chosen in CHOSEN_BY or not scores):
        raise UserError(
            "config.policy.validation_kl is measured on scored validation answers, and there are "
            "none: give one of config.rewards a weight above 0 and leave config.policy.choose_by "
            "empty, or name a reward there"
        )
    if chosen in CHOSEN_BY and chosen in config.rewards:
        raise UserError(
            f"config.policy.choose_by={chosen!r} is a measure of validation responses, and the "
            "name of a reward: give the reward another name"
        )
    for field, names in (
        ("evaluate.measures", config.evaluate.measures),
        ("policy.choose_by", [chosen]),
    ):
        if "meteor" in names:
            check_meteor(f"config.{field}")


def _check_rewards(config: ConfigDict, objective: Objective, lm: LanguageModel) -> None:
    """Check which reward stands where, and what is done to it."""
    options = config.score
    check_transform(options.transform, options.clip)
    if objective.positive and options.transform == "standardise":
        raise UserError(
            f"config.score.transform='standardise': half of the rewards fall below 0, and the "
            f"objective {config.objective.name} weighs each row by its reward: choose minmax, "
            "sigmoid or rank"
        )
    _positive("score.compared", options.compared)
    for name in MEASURES:
        if name in config.rewards:
            raise UserError(
                f"config.rewards: {name!r} is a measure by the stored rewards: give the reward "
                "another name"
            )
    _check_whose(config)
    if not options.distil:
        return
    check_options(config.distill, lm.transformer.config.width)
    if NAME in config.rewards:
        raise UserError(
            f"config.rewards.{NAME}: config.score.distil makes a scorer of this name: give yours "
            "another one"
        )
    if any(config.rewards.values()):
        names = ", ".join(name for name, weight in config.rewards.items() if weight)
        raise UserError(
            "config.score.distil fits the only scorer of what is generated: set the weight of "
            f"{names} in config.rewards to 0, or leave config.score.distil off"
        )


def _check_whose(config: ConfigDict) -> None:
    """Check whose reward the data's rows have."""
    options = config.score
    if options.rows not in WHOSE:
        raise UserError.unknown(f"config.score.rows: no {options.rows!r}", options.rows, WHOSE)
    if options.rows == LABELS and not any(config.rewards.values()):
        raise UserError(
            "config.score.rows='labels' says that config.rewards score what is generated, and all "
            "their weights are 0: give one a weight above 0, or leave config.score.rows at "
            "'scorer' (without scorers the stored rewards are used, too)"
        )
    if options.rows == LABELS and options.stored:
        raise UserError(
            f"config.score.stored={tuple(options.stored)} says that the scorer gave the stored "
            "rewards, config.score.rows='labels' that it did not: set one of them"
        )


def _check_scorer(config: ConfigDict) -> None:
    if not any(config.rewards.values()) and not config.score.distil:
        raise UserError(
            f"the objective {config.objective.name} learns from what its policy writes, and "
            "nothing can score that: give one of config.rewards a weight above 0, or set "
            "config.score.distil"
        )


def _check_rows(config: ConfigDict, lm: LanguageModel) -> None:
    """Check that slots and batches can be divided evenly over the mesh."""
    shards = lm.shards
    for section in ("decode", "value"):
        size = config[section].batch_size
        _positive(f"{section}.batch_size", size)
        if size % shards:
            raise UserError(
                f"config.{section}.batch_size={size} must be a multiple of data · fsdp = {shards}"
            )


def _check_decoding(config: ConfigDict, lm: LanguageModel) -> None:
    """Check ranges, that end tokens exist, and that answers fit in the model's positions."""
    deterministic_decoding(config.decode)
    stochastic_decoding(config.decode, config.generate)
    vocab_size = lm.tokenizer.vocab_size
    for token in config.decode.end:
        if not isinstance(token, int) or not 0 <= token < vocab_size:
            raise UserError(
                f"config.decode.end={config.decode.end}: {token!r} is not a token id: expected "
                f"whole numbers below {vocab_size}"
            )
    longest, positions = lm.limits.prompt, lm.transformer.config.longest
    if longest + config.decode.max_new_tokens > positions:
        raise UserError(
            f"config.decode.max_new_tokens={config.decode.max_new_tokens} after prompts of "
            f"{longest} tokens is beyond the model's {positions} positions: at most "
            f"{positions - longest} fit"
        )


def _check_template(template: str, tokenizer: Tokenizer) -> None:
    """Check that everything that looks like a special token is one. A chat template is no text."""
    if is_chat(template):
        return
    for marker in re.findall(r"<\|[^|<>]*\|>|<s>|</s>|\[INST\]", template):
        if len(tokenizer.encode(marker)) != 1:
            raise UserError(
                f"config.task.template: {marker!r} is not a special token of this model's "
                "tokenizer; use the template that the model was trained with; 'chat' is its own"
            )


def _check_hyper_parameters(values: ConfigDict, objective: Objective) -> None:
    for name in hyper_parameters(objective):
        if math.isnan(values[name]) or values[name] < 0:
            raise UserError(f"config.objective.{name}={values[name]} must be 0 or more")
    if objective.any_count and values.responses < objective.responses:
        raise UserError(
            f"config.objective.responses={values.responses} must be {objective.responses} or more"
        )


def _positive(field: str, value: float) -> None:
    if not value > 0 or math.isinf(value):
        raise UserError(f"config.{field}={value} must be above 0")
