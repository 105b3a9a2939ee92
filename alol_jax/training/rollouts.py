"""Rollouts: the prompts of each, the responses that the policy samples, and their rewards.

Samples are a pure function of the seed, the rollout number and the policy, so a resumed run samples
the same responses as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Sampler, Setup
from alol_jax.decoding.sampling import stochastic_decoding
from alol_jax.devices.sharding import place_params
from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.ppo import KL_ERROR_CLIP
from alol_jax.rewards.reward import Reward
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table
from alol_jax.training.batches import shuffled
from alol_jax.training.items import Examples, first_responses
from alol_jax.types import Annotated, Params, Scored, Watch


class RolloutResponses(NamedTuple):
    """The policy's responses to the prompts of one rollout, on the host."""

    examples: Examples  # prompts with one response each
    score: np.ndarray  # f32[B], the rewards


@dataclasses.dataclass(frozen=True, eq=False)
class Rollouts:
    """The rollouts of a run.

    Attributes:
        rows: the first training row of each prompt.
        order: rollout -> i64[B], the rows of its prompts.
        key: rollout r samples with fold_in(key, r).
    """

    sampler: Sampler
    reward: Reward
    rows: Table[Annotated]
    order: Callable[[int], np.ndarray]
    key: jax.Array

    def prompts(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield the prompts of rollouts ``start`` to ``stop`` − 1: i64[B], indices of ``rows``."""
        return map(self.order, range(start, stop))

    def generate(self, trained: Params, asked: np.ndarray, rollout: int) -> RolloutResponses:
        """Sample one response per prompt with the policy leaves ``trained``, and score it.

        PPO trains on the sampled token ids; the reward scores the text after the task's cleaning.
        """
        rows = self._asked(asked)
        # No progress lines: rollouts are many, and their numbers are in the metric log.
        ids = self.sampler.generate(
            trained,
            rows["prompt"],
            key=jax.random.fold_in(self.key, rollout),
            watch=Watch(f"rollout {rollout + 1}"),
        )
        scored = self.reward.score_rows(rows, self.sampler.texts(ids))
        prompts = [self.rows["prompt"][index] for index in asked]
        examples = Examples(prompts, [(np.array(response, np.int32),) for response in ids])
        return RolloutResponses(examples, scored["reward"].astype(np.float32))

    def _asked(self, indices: np.ndarray) -> Table[Scored]:
        """The prompts as rows without a response."""
        columns = {
            "example_id": self.rows["example_id"].take(indices),
            "prompt": self.rows["prompt_text"].take(indices),
            "response": Texts.repeated("", len(indices)),
            "source": self.rows["source"].take(indices),
            "components": Ragged.empty(len(indices), np.float64),
            "reward": np.zeros(len(indices)),
        }
        return Table(Scored, columns)


def make_rollouts(
    setup: Setup,
    reward: Reward,
    hyper: ConfigDict,
    rows: Table[Annotated],
    *,
    seed: int,
    key: jax.Array,
) -> Rollouts:
    """Make rollouts over the prompts of ``rows``, in shuffled epochs: each prompt equally often.

    Args:
        hyper: ``config.ppo``, checked by `check_rollouts`.
        rows: those of one prompt share an example id.
        seed: of the order of the prompts.
        key: of the samples.
    """
    sampler = setup.stochastic_sampler(hyper)
    rows = rows.where(first_responses(rows))
    return Rollouts(
        sampler=dataclasses.replace(
            sampler,
            batch_size=min(sampler.batch_size, hyper.prompts),
            lengths=rows["prompt"].lengths,
        ),
        reward=reward,
        rows=rows,
        order=shuffled(np.ones(len(rows), bool), size=hyper.prompts, seed=seed),
        key=key,
    )


# the anchor of the KL penalty


def _reference(lm: LanguageModel, reference: Params) -> Params:
    return reference


def _base(lm: LanguageModel, reference: Params) -> Params:
    """Return adapters that change nothing; without adapters, the weights as loaded."""
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
"""``config.ppo.anchor`` -> function from (model, the reference's leaves) to the anchor's leaves."""


def anchor_params(name: str, lm: LanguageModel, reference: Params) -> Params:
    """Return the leaves, on the mesh, of the model that the KL penalty pulls towards."""
    return place_params(ANCHORS[name](lm, reference), lm.mesh)


# checks


def steps_per_rollout(hyper: ConfigDict) -> int:
    """Return the number of optimizer steps per rollout."""
    return hyper.epochs * hyper.prompts // hyper.batch_size


def check_rollouts(hyper: ConfigDict, decoding: ConfigDict, lm: LanguageModel) -> None:
    """Check the options of online training.

    Raises:
        UserError: a field of ``config.ppo`` or ``config.model`` has an unusable value.
    """
    positive = ("rollouts", "prompts", "epochs", "batch_size", "temperature")
    positive = (*positive, "clip", "value_clip", "kl_target", "kl_horizon")
    wrong = [(field, "above 0") for field in positive if not 0 < hyper[field] < math.inf]
    non_negative = ("value_weight", "kl_coef")
    wrong += [(field, "0 or more") for field in non_negative if not 0 <= hyper[field] < math.inf]
    wrong += [(f, "in [0, 1]") for f in ("gamma", "lam") if not 0 <= hyper[f] <= 1]
    for field, expected in wrong:
        raise UserError(f"config.ppo.{field}={hyper[field]} must be {expected}")
    if hyper.anchor not in ANCHORS:
        message = f"config.ppo.anchor: no anchor {hyper.anchor!r}"
        raise UserError.unknown(message, hyper.anchor, ANCHORS)
    if hyper.prompts % hyper.batch_size:
        raise UserError(
            f"config.ppo.prompts={hyper.prompts} must be a multiple of config.ppo.batch_size="
            f"{hyper.batch_size}, the responses of an optimizer step"
        )
    if hyper.kl_horizon <= KL_ERROR_CLIP * hyper.prompts:
        raise UserError(
            f"config.ppo.kl_horizon={hyper.kl_horizon:g} must be above {KL_ERROR_CLIP} · prompts = "
            f"{KL_ERROR_CLIP * hyper.prompts:g}: the KL coefficient could become negative"
        )
    stochastic_decoding(decoding, hyper)
    if lm.limits.response < decoding.max_new_tokens:
        raise UserError(
            f"config.model.max_response={lm.limits.response}: the policy writes up to "
            f"{decoding.max_new_tokens} tokens and trains on them: raise it, or lower "
            "config.decode.max_new_tokens"
        )
