"""Rollouts: which prompts are asked when, what the policy writes to them, what that earns.

What is drawn is a pure function of the seed, the number of the rollout and the policy: a run that
goes on from a checkpoint writes what the undisturbed run writes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Sampler, Setup
from alol_jax.decoding.sampling import drawing_of
from alol_jax.devices.sharding import place_params
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.ppo import KL_ERROR_CLIP
from alol_jax.rewards.reward import Reward
from alol_jax.text.tokens import shape_for, to_tokens
from alol_jax.training.batches import Items, firsts, shuffled
from alol_jax.types import Annotated, Params, Scored, Tokens, UserError, Watch


class Asked(NamedTuple):
    """The prompts of one rollout, on the host."""

    which: np.ndarray  # i64[B], numbers of prompts
    tokens: Tokens  # in the shape that is trained in; no response has a token yet


class Written(NamedTuple):
    """What the policy wrote to them, on the host."""

    tokens: Tokens  # i32[B, P], i32[B, R] and their masks
    score: np.ndarray  # f32[B], the rewards


@dataclasses.dataclass(frozen=True, eq=False)
class Rollouts:
    """What all rollouts of a run share.

    Attributes:
        rows: the first training row of each prompt.
        items: prompts in groups of the width that they are read at; ``items.shapes`` is the shape
            that each group is trained in.
        order: rollout -> i64[B], the prompts that are asked.
        key: rollout r draws from fold_in(key, r).
    """

    sampler: Sampler
    reward: Reward
    rows: tuple[Annotated, ...]
    items: Items
    order: Callable[[int], np.ndarray]
    key: jax.Array

    def asked(self, start: int, stop: int) -> Iterator[Asked]:
        """The prompts of rollouts ``start`` to ``stop`` − 1; those of one rollout share a width."""
        for rollout in range(start, stop):
            which = self.order(rollout)
            yield Asked(which, self._tokens(which, [()] * len(which)))

    def written(self, trained: Params, asked: Asked, rollout: int) -> Written:
        """The policy with the leaves ``trained`` answers; its very token ids are kept.

        The reward is that of the text as the task reads it.
        """
        rows = [self._row(index) for index in asked.which]
        # Silent: rollouts are many, and their figures are in the metric log.
        ids = self.sampler.write(
            trained,
            rows,
            key=jax.random.fold_in(self.key, rollout),
            watch=Watch(f"rollout {rollout + 1}"),
        )
        scored = self.reward.rows(rows, self.sampler.texts(ids))
        return Written(
            tokens=self._tokens(asked.which, ids),
            score=np.array([row.reward for row in scored], np.float32),
        )

    def _row(self, index: int) -> Scored:
        row = self.rows[index]
        return Scored(row.example_id, row.prompt_text, "", row.source, (), 0.0)

    def _tokens(self, which: np.ndarray, responses: Sequence[Sequence[int]]) -> Tokens:
        return to_tokens(
            [self.rows[index].prompt for index in which],
            responses,
            shape=self.items.shapes[int(self.items.shape[which].max())],
            pad_id=self.sampler.lm.tokenizer.pad_id,
        )


def make_rollouts(
    setup: Setup,
    reward: Reward,
    hyper: ConfigDict,
    rows: Sequence[Annotated],
    *,
    seed: int,
    key: jax.Array,
) -> Rollouts:
    """Every prompt of ``rows``, by example id, is asked equally often, in shuffled epochs.

    Args:
        hyper: ``config.ppo``, checked by `check_rollouts`.
        seed: of the order of the prompts; ``key``: of what is drawn.
    """
    lm, sampler = setup.lm, setup.drawn(hyper)
    most = sampler.sampling.max_new_tokens
    rows = tuple(row for row, first in zip(rows, firsts(rows), strict=True) if first)
    widths = lm.prompt_widths
    items = Items(
        rows=rows,
        members=np.arange(len(rows))[:, None],
        shape=np.searchsorted(widths, [len(row.prompt) for row in rows]),
        shapes=tuple(shape_for(width, most, lm.shapes) for width in widths),
    )
    everyone = np.ones(len(rows), bool)
    return Rollouts(
        sampler=dataclasses.replace(sampler, batch_size=min(sampler.batch_size, hyper.prompts)),
        reward=reward,
        rows=rows,
        items=items,
        order=shuffled(items, everyone, size=hyper.prompts, seed=seed, steps=hyper.rollouts),
        key=key,
    )


# ------------------------------------------------------------------ what the KL is measured from


def _reference(lm: LanguageModel, reference: Params) -> Params:
    return reference


def _base(lm: LanguageModel, reference: Params) -> Params:
    """Adapters that change nothing; without adapters, the weights as they were loaded."""
    if lm.transformer.lora is None:
        return lm.trainable(jax.random.key(0))
    return {
        path: jnp.zeros_like(leaf) if path.endswith("/lora_b") else leaf
        for path, leaf in reference.items()
    }


ANCHORS: dict[str, Callable[[LanguageModel, Params], Params]] = {
    "reference": _reference,
    "base": _base,
}
"""``config.ppo.anchor`` -> (model, the reference's leaves) -> the leaves of the anchor."""


def anchor_of(name: str, lm: LanguageModel, reference: Params) -> Params:
    """The leaves, on the mesh, of what the policy's KL divergence is measured from."""
    return place_params(ANCHORS[name](lm, reference), lm.mesh)


# ------------------------------------------------------------------ what cannot be


def steps_per_rollout(hyper: ConfigDict) -> int:
    """Optimizer steps that are made on the responses of one rollout."""
    return hyper.epochs * hyper.prompts // (hyper.batch_size * hyper.accumulate)


def check_rollouts(hyper: ConfigDict, decoding: ConfigDict, lm: LanguageModel) -> None:
    """Refuses numbers with which no policy can be fitted online.

    Raises:
        UserError: names the field of ``config.ppo`` or ``config.model``, and what is expected.
    """
    above = ("rollouts", "prompts", "epochs", "batch_size", "accumulate", "temperature")
    above = (*above, "clip", "value_clip", "kl_target", "kl_horizon")
    wrong = [(field, "above 0") for field in above if not 0 < hyper[field] < math.inf]
    least = ("value_weight", "kl_coef")
    wrong += [(field, "0 or more") for field in least if not 0 <= hyper[field] < math.inf]
    wrong += [(f, "in [0, 1]") for f in ("gamma", "lam") if not 0 <= hyper[f] <= 1]
    for field, expected in wrong:
        raise UserError(f"config.ppo.{field}={hyper[field]} must be {expected}")
    if hyper.anchor not in ANCHORS:
        said = f"config.ppo.anchor: no anchor {hyper.anchor!r}"
        raise UserError.unknown(said, hyper.anchor, ANCHORS)
    cut = lm.mesh.shape["data"] * lm.mesh.shape["fsdp"]
    if hyper.batch_size % cut:
        raise UserError(
            f"config.ppo.batch_size={hyper.batch_size} must be a multiple of data · fsdp = {cut}"
        )
    per_step = hyper.batch_size * hyper.accumulate
    if hyper.prompts % per_step:
        raise UserError(
            f"config.ppo.prompts={hyper.prompts} must be a multiple of batch_size · accumulate = "
            f"{per_step}, the responses of an optimizer step"
        )
    if hyper.kl_horizon <= KL_ERROR_CLIP * hyper.prompts:
        raise UserError(
            f"config.ppo.kl_horizon={hyper.kl_horizon:g} must be above {KL_ERROR_CLIP} · prompts = "
            f"{KL_ERROR_CLIP * hyper.prompts:g}: the KL coefficient could become negative"
        )
    drawing_of(decoding, hyper)
    prompt, response = lm.shapes[-1]
    if response < decoding.max_new_tokens:
        raise UserError(
            f"config.model.shapes: the policy writes up to {decoding.max_new_tokens} tokens and "
            f"trains on them, and the largest shape holds {response}: add ({prompt}, "
            f"{decoding.max_new_tokens}), or lower config.decode.max_new_tokens"
        )
