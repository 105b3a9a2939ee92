"""Rewards: the weighted sum of the components that a task declares.

``reward = Σ weight · component``, each component in [0, bound]; so the reward lies in
[0, Σ weight · bound].
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alol_jax.rewards import text
from alol_jax.types import RewardSpec, Scored, Task, UserError

SCORERS: dict[str, Callable[[Sequence[str]], text.Scorer]] = {
    "vader_positivity": text.vader_positivity,
    "tfidf_diversity": text.tfidf_diversity,
    "nontoxicity": text.nontoxicity,
}
"""Key of a ``RewardSpec`` -> factory: training responses -> (texts -> f64[texts])."""

TOLERANCE = 1e-6  # rounding of a score at its bound

_FIELD = re.compile(r"\{(prompt|response)\}")


@dataclasses.dataclass(frozen=True)
class Reward:
    """The components with a weight above 0, ready to score. Without any, nothing can score."""

    specs: tuple[RewardSpec, ...]
    weights: tuple[float, ...]
    scorers: tuple[text.Scorer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The components' names, in the order of the score columns."""
        return tuple(spec.name for spec in self.specs)

    @property
    def max_reward(self) -> float:
        """Σ weight · bound."""
        return sum(w * spec.bound for w, spec in zip(self.weights, self.specs, strict=True))

    def score(
        self, prompts: Sequence[str], responses: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores response n as an answer to prompt n.

        Returns:
          components f64[rows, components], unweighted, within [0, bound]; reward f64[rows].

        Raises:
          UserError: there is no component; a score is not finite or outside [0, bound].
        """
        if not self.specs:
            raise UserError(
                "nothing can score a response: give at least one reward a weight above 0"
            )
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses")
        columns = [
            _column(spec, scorer, prompts, responses)
            for spec, scorer in zip(self.specs, self.scorers, strict=True)
        ]
        components = np.stack(columns, axis=1)
        return components, components @ np.array(self.weights, np.float64)

    def rows(self, rows: Sequence[Scored], responses: Sequence[str]) -> tuple[Scored, ...]:
        """The same rows answered by ``responses``, with the scores of these."""
        components, reward = self.score([row.prompt for row in rows], responses)
        return tuple(
            dataclasses.replace(row, response=response, components=tuple(scores), reward=total)
            for row, response, scores, total in zip(
                rows, responses, components.tolist(), reward.tolist(), strict=True
            )
        )


def weights_of(specs: Sequence[RewardSpec], weights: Mapping[str, float]) -> tuple[float, ...]:
    """The named weights in the order of ``specs``.

    Raises:
      UserError: a name that is no component, a component without a weight, or a weight that is
        negative, not finite or no number.
    """
    names = [spec.name for spec in specs]
    for name, weight in weights.items():
        if name not in names:
            raise UserError.unknown(f"reward {name!r} is no reward of this task", name, names)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"weight of reward {name!r}: expected a number, got {weight!r}")
        if not math.isfinite(weight) or weight < 0:
            raise UserError(f"weight of reward {name!r} is {weight}: expected a number, 0 or more")
    for name in names:
        if name not in weights:
            raise UserError(f"reward {name!r} has no weight: set one (0 leaves the reward out)")
    return tuple(float(weights[name]) for name in names)


def build(
    specs: Sequence[RewardSpec], weights: Sequence[float], train_responses: Sequence[str]
) -> Reward:
    """Makes the scorers of the components with a weight above 0.

    Raises:
      UserError: a scorer's name is not in ``SCORERS``.
    """
    used = [(spec, weight) for spec, weight in zip(specs, weights, strict=True) if weight > 0]
    for spec, _ in used:
        if spec.scorer not in SCORERS:
            said = f"reward {spec.name!r}: no scorer {spec.scorer!r}"
            raise UserError.unknown(said, spec.scorer, SCORERS)
    return Reward(
        specs=tuple(spec for spec, _ in used),
        weights=tuple(float(weight) for _, weight in used),
        scorers=tuple(SCORERS[spec.scorer](train_responses) for spec, _ in used),
    )


def of_task(task: Task, weights: Mapping[str, float], train_responses: Sequence[str]) -> Reward:
    """The reward of ``task`` with the weights of the config: `weights_of` and `build` in one."""
    return build(task.rewards, weights_of(task.rewards, weights), train_responses)


def _column(
    spec: RewardSpec, scorer: text.Scorer, prompts: Sequence[str], responses: Sequence[str]
) -> np.ndarray:
    texts = [
        _fill(spec.template, prompt, response)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    scores = scorer(texts)
    if scores.shape != (len(texts),):
        raise ValueError(f"scorer {spec.scorer!r} gave {scores.shape} for {len(texts)} texts")
    good = (scores >= -TOLERANCE) & (scores <= spec.bound + TOLERANCE)  # NaN is neither
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(
            f"scorer {spec.scorer!r} gave {scores[row]} for {texts[row][:80]!r}: "
            f"expected a score from 0 to {spec.bound:.4g}"
        )
    return np.clip(scores, 0.0, spec.bound)


def _fill(template: str, prompt: str, response: str) -> str:
    """One pass, so that braces inside the texts stay what they are."""
    values = {"prompt": prompt, "response": response}
    return _FIELD.sub(lambda match: values[match.group(1)], template)
