"""The reward: a weighted sum of components.

``reward = T(Σ weight · component)``, each component in [low, bound], with T the transform of the
run (`transform`); so before T the reward is in [Σ weight · low, Σ weight · bound]. Both ends are
infinite if the logit of a reward model is among the components. Components are the scorers that a
task declares (`SCORERS`) and the models in ``config.reward_models``; ``config.rewards`` has their
weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.rewards import lexical, text
from alol_jax.rewards.cosine import CosineScorer
from alol_jax.rewards.opening import RewardModel
from alol_jax.rewards.transform import transformed
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table
from alol_jax.types import Gold, RewardSpec, RewardTransform, Scored

SCORERS: dict[str, Callable[[Sequence[str]], text.Scorer]] = {
    "vader_positivity": text.vader_positivity,
    "tfidf_diversity": text.tfidf_diversity,
    "nontoxicity": text.nontoxicity,
    "novelty": text.novelty,
    "concept_coverage": lexical.concept_coverage,
}
"""Key of a ``RewardSpec`` -> factory: training responses -> (texts -> f64[texts])."""

TOLERANCE = 1e-6  # rounding error allowed at the bounds of a score


def nothing_to_note(prompts: Sequence[str], responses: Sequence[str]) -> tuple[str, ...]:
    """Return no notes."""
    return ()


class Component(NamedTuple):
    """One summand of the reward, ready to score."""

    name: str
    weight: float
    bound: float  # every score is in [low, bound], and finite
    scorer: str  # for error messages
    score: Callable[[Sequence[str], Sequence[str]], np.ndarray]  # prompts, responses -> f64[rows]
    low: float = 0.0
    words_only: bool = False  # computed by Python alone, so other processes can do it
    # prompts, responses -> what happened to them, with counts; one sentence each
    notes: Callable[[Sequence[str], Sequence[str]], tuple[str, ...]] = nothing_to_note


Runner = Callable[[Component, Sequence[str], Sequence[str]], np.ndarray]
"""How a component goes over all rows: (component, prompts, responses) -> f64[rows]."""


def at_once(component: Component, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Score all rows in one call."""
    return component.score(prompts, responses)


@dataclasses.dataclass(frozen=True)
class Reward:
    """The components with a weight above 0, ready to score. Without any, it cannot score."""

    components: tuple[Component, ...]
    transform: RewardTransform = RewardTransform()  # of their weighted sum

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components, in the order of the score columns."""
        return tuple(component.name for component in self.components)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the components, in the same order."""
        return tuple(component.weight for component in self.components)

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest possible reward before the transform."""
        return (
            sum((component.weight * component.low for component in self.components), 0.0),
            sum((component.weight * component.bound for component in self.components), 0.0),
        )

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], *, run: Runner = at_once
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score response n as an answer to prompt n.

        Args:
          run: how a component goes over the rows.

        Returns:
          components f64[rows, components], unweighted, within [low, bound]; reward f64[rows].

        Raises:
          UserError: there is no component, or a score is not finite or outside [low, bound].
        """
        if not self.components:
            raise UserError(
                "nothing can score a response: give at least one reward a weight above 0"
            )
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses")
        columns = [_checked_scores(one, run, prompts, responses) for one in self.components]
        components = np.stack(columns, axis=1)
        total = components @ np.array(self.weights, np.float64)
        return components, transformed(self.transform, total)

    def notes(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[str, ...]:
        """Return what the components did with these texts, with counts; one sentence each."""
        return tuple(
            f"{component.name}: {note}"
            for component in self.components
            for note in component.notes(prompts, responses)
        )

    def score_rows(
        self, rows: Table[Scored], responses: Sequence[str], *, run: Runner = at_once
    ) -> Table[Scored]:
        """Return ``rows`` with ``responses`` as their responses, and the scores of these."""
        components, reward = self.score(rows["prompt"], responses, run=run)
        count = np.full(len(rows), len(self.components))
        return rows.replace(
            response=Texts.of(responses),
            components=Ragged.of(components.reshape(-1), count),
            reward=reward,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """The definition of the reward, before it has seen any data.

    Attributes:
        specs: the components that the task declares.
        models: the opened reward models by name; at least those with a weight above 0.
        weights: ``config.rewards``, with a weight for each component.
        known: the names of all reward models, opened or not.
        trained_on: whether the policy is trained on this reward, so that the transform of the
            training rows applies to it.

    Raises:
        UserError: a weight names no component, a component has no weight, or a weight is negative,
            not finite or not a number.
    """

    specs: tuple[RewardSpec, ...]
    models: Mapping[str, RewardModel]
    weights: Mapping[str, float]
    known: tuple[str, ...] = ()
    trained_on: bool = True

    def __post_init__(self):
        check_weights(self.specs, self.known or tuple(self.models), self.weights)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the components with a weight above 0, and their weights."""
        used = {name: weight for name, weight in self.weights.items() if weight > 0}
        return {
            "config.rewards": used,
            "config.reward_models": {
                name: model.fingerprint for name, model in self.models.items() if name in used
            },
            "scorers": {
                spec.name: [spec.scorer, spec.template, spec.bound]
                for spec in self.specs
                if spec.name in used
            },
        }

    @property
    def can_score(self) -> bool:
        """Whether a component has a weight above 0."""
        return any(weight > 0 for weight in self.weights.values())

    @property
    def comparing(self) -> tuple[str, ...]:
        """The components that read the gold responses of the prompts."""
        return tuple(
            name
            for name, model in self.models.items()
            if isinstance(model, CosineScorer) and model.compares and self.weights[name] > 0
        )

    @property
    def commits(self) -> dict[str, str]:
        """The commits that were read of reward models on the hub, by their paths."""
        return {
            path: commit
            for name, model in self.models.items()
            if self.weights[name] > 0
            for path, commit in model.commits.items()
        }

    @property
    def compares(self) -> bool:
        """Whether a component reads the gold responses of the prompts."""
        return bool(self.comparing)

    def only(self, name: str, model: RewardModel) -> Scoring:
        """Return the scoring whose only component is a model, with weight 1."""
        weights = {other: 0.0 for other in self.weights} | {name: 1.0}
        return Scoring(self.specs, {name: model}, weights, (*self.known, name), self.trained_on)

    def reward(self, train_responses: Sequence[str], gold: Iterable[Gold] = ()) -> Reward:
        """Return the reward.

        Args:
            train_responses: what the tf-idf component is fitted to.
            gold: the gold responses of the prompts that will be scored, if any component
                `compares`.
        """
        named = [
            (spec.name, lambda weight, spec=spec: _text_component(spec, weight, train_responses))
            for spec in self.specs
        ]
        named += [
            (name, lambda weight, name=name: self._model_component(name, weight, gold))
            for name in self.models
        ]
        weighted = [(make, float(self.weights[name])) for name, make in named]
        return Reward(tuple(make(weight) for make, weight in weighted if weight > 0))

    def _model_component(self, name: str, weight: float, gold: Iterable[Gold]) -> Component:
        model = self.models[name]
        if isinstance(model, CosineScorer):
            model = model.with_gold(gold)
        low, bound = model.bounds
        return Component(name, weight, bound, model.path, model, low=low, notes=model.notes)


def check_weights(
    specs: Sequence[RewardSpec],
    models: Sequence[str],
    weights: Mapping[str, float],
    *,
    field: str = "config.rewards",
) -> None:
    """Check that the weights name exactly the components: the task's and the reward models.

    Args:
        field: the config key of the weights, for messages.

    Raises:
        UserError: see `Scoring`; or two components of one name.
    """
    names = [*(spec.name for spec in specs), *models]
    for name in models:
        if names.count(name) > 1:
            raise UserError(f"config.reward_models.{name}: the task has a reward of this name")
    for name, weight in weights.items():
        if name not in names:
            message = f"{field}: {name!r} is no reward of this task"
            raise UserError.unknown(message, name, names)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"{field}.{name}: expected a number, got {weight!r}")
        if not math.isfinite(weight) or weight < 0:
            raise UserError(f"{field}.{name}={weight}: expected a number, 0 or more")
    for name in names:
        if name not in weights:
            raise UserError(f"{field}.{name}: set a weight (0 leaves the reward out)")


def _text_component(spec: RewardSpec, weight: float, train_responses: Sequence[str]) -> Component:
    if spec.scorer not in SCORERS:
        message = f"reward {spec.name!r}: no scorer {spec.scorer!r}"
        raise UserError.unknown(message, spec.scorer, SCORERS)
    scorer = SCORERS[spec.scorer](train_responses)

    score = text.Filled(spec.template, scorer)
    return Component(spec.name, weight, spec.bound, spec.scorer, score, words_only=True)


def _checked_scores(
    component: Component, run: Runner, prompts: Sequence[str], responses: Sequence[str]
) -> np.ndarray:
    scores = run(component, prompts, responses)
    if scores.shape != (len(responses),):
        raise ValueError(f"scorer {component.scorer!r} gave {scores.shape} for {len(responses)}")
    low, bound = component.low, component.bound
    good = np.isfinite(scores) & (scores >= low - TOLERANCE) & (scores <= bound + TOLERANCE)
    if not good.all():
        row = int(np.argmin(good))
        wanted = f"score from {low:.4g} to {bound:.4g}" if np.isfinite(bound) else "finite number"
        raise UserError(
            f"scorer {component.scorer!r} gave {scores[row]} for {responses[row][:80]!r}: "
            f"expected a {wanted} ({np.sum(~good)} of {len(good)} are not)"
        )
    return np.clip(scores, low, bound)
