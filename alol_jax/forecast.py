"""What a run will do, in words, and how long it takes on this machine.

The words are those of the config. The time comes from the first training step that is timed, with
what the other stages compute counted in forward passes over a row::

    a row that is trained on    3
    a row that is read          1: validation by likelihood, `select`, the KL of `evaluate`
    an answer                   max_new_tokens times a token's share of a pass, times `ANSWER_TOKEN`
    a rollout of PPO            for each prompt an answer, 2, and 3 in each epoch

Loading, compilation, scorers and the value head's own training are not counted. All rows are taken
as kept and all answers as of full length, so for a long run the forecast is rather too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.registry import columns_read, drops_rows, get_objective, num_responses
from alol_jax.paths import AnyPath
from alol_jax.training.validation import CHOSEN_BY, WITHOUT_ANSWERS
from alol_jax.types import Pace, ScoredSplits

FORWARD = 3.0  # a training step in forward passes: 3.1 on a GPU, 3.3 on a CPU (docs/results.md)
ANSWER_TOKEN = {"cpu": 2.0}
"""Platform -> a token of an answer in tokens that are only read. One by one, tokens wait for the
weights to be read: `ANSWER_TOKEN_ELSEWHERE` on an accelerator (one H200, docs/results.md)."""
ANSWER_TOKEN_ELSEWHERE = 20.0


def in_words(config: ConfigDict, report: AnyPath) -> tuple[str, ...]:
    """Return the lines that say what a run with this config will do.

    Args:
        report: the page that it ends with.
    """
    c, objective = config, get_objective(config.objective.name)
    rewards = " + ".join(name for name, weight in c.rewards.items() if weight)
    reference = f"{c.model.path} learns the training rows by their likelihood"
    reference += f", {_passes(c.reference.epochs)}"
    if c.reference.epochs == 0:
        reference = f"{c.model.path} as it is"
    lines = [
        "this run, stage by stage (what is done already is not computed again):",
        f"  load, score: the rows of {c.task.name}, rewarded by {rewards or 'what the data store'}",
        f"  fit_reference: {reference}",
    ]
    if "advantage" in (c.select.columns or columns_read(objective, c.policy.filter)):
        lines.append(
            "  generate, fit_value, select: what the reference's own answers earn; rows that earn "
            "more have A > 0"
        )
    else:
        lines.append("  select: all rows are kept")
    rows = "the rows with A > 0" if drops_rows(objective, c.policy.filter) else "all rows"
    amount = f"{_passes(c.policy.epochs)} over {rows}"
    if objective.online:
        amount = f"{c.ppo.rollouts} rollouts of {c.ppo.prompts} prompts"
    return (
        *lines,
        f"  fit_policy: trains the policy with {c.objective.name}, {amount}; the best step is kept",
        f"  evaluate, report: data, reference and policy on the test prompts, in {report}",
        "  how long it takes is said once a training step was timed",
    )


class Counts(NamedTuple):
    """What a run has to go through."""

    rows: int  # for training
    held_out: int  # validation rows
    asked: int  # validation prompts
    tested: int  # test prompts


def counts_of(scored: ScoredSplits) -> Counts:
    """Count the rows and prompts of the splits."""
    asked, tested = (
        len(table["example_id"].firsts()) for table in (scored.validation, scored.test)
    )
    return Counts(len(scored.train), len(scored.validation), asked, tested)


class Forecast:
    """Says how long a fit and the rest of its run take, once the fit has told its `Pace`."""

    def __init__(
        self,
        config: ConfigDict,
        lm: LanguageModel,
        counts: Counts,
        *,
        scores: bool,
        say: Callable[[str], None],
    ):
        """
        Args:
            scores: whether something can score an answer.
        """
        self._config, self._counts, self._say = config, counts, say
        self._objective = get_objective(config.objective.name)
        platform = lm.mesh.devices.flat[0].platform
        self._answer_token = ANSWER_TOKEN.get(platform, ANSWER_TOKEN_ELSEWHERE)
        chosen_by = config.policy.choose_by
        answers = scores or chosen_by in CHOSEN_BY
        self._answered = answers and chosen_by not in WITHOUT_ANSWERS

    def tell(self, stage: str, pace: Pace) -> None:
        """Say what a step of a stage takes, and the rest of this fit and of the run."""
        fit = pace.seconds * pace.left
        step = f"{pace.seconds:.2g} s" if pace.seconds < 10 else duration(pace.seconds)
        rest = self.remaining(stage, pace)
        self._say(
            f"[{stage}] a step takes {step} on this machine: about {duration(fit)} "
            f"for the {pace.left} steps from here, about {duration(rest)} to the end of the run, "
            "compilation apart"
        )

    def remaining(self, stage: str, pace: Pace) -> float:
        """Return the seconds from here to the end of the run, roughly."""
        c, n = self._config, self._counts
        rows = self._rows(stage)
        answer = c.decode.max_new_tokens * rows / pace.tokens * self._answer_token
        passes = rows * FORWARD
        rollout = c.ppo.prompts * (answer + 2 + c.ppo.epochs * FORWARD)
        if stage == "fit_policy_online":
            passes = rollout
        ahead = passes * pace.left + 2 * n.tested * (answer + 1)
        ahead += c.policy.validations * (n.asked * answer if self._answered else n.held_out)
        if stage == "fit_reference":
            ahead += c.reference.validations * n.held_out + n.rows
            if "advantage" in (c.select.columns or columns_read(self._objective, c.policy.filter)):
                ahead += n.asked * c.generate.samples * (answer + 1)
            online = self._objective.online
            ahead += c.ppo.rollouts * rollout if online else c.policy.epochs * n.rows * FORWARD
        return pace.seconds / passes * ahead

    def _rows(self, stage: str) -> int:
        """The rows that a step of the stage trains on, each as often as it does."""
        c = self._config
        if stage == "fit_reference":
            return c.reference.batch_size
        if stage == "fit_policy_online":
            return c.ppo.prompts * c.ppo.epochs
        return c.policy.batch_size * num_responses(self._objective, c.objective)


def duration(seconds: float) -> str:
    """Return a time in words: ``40 s``, ``6 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(math.ceil(seconds), 1)} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _passes(epochs: float) -> str:
    return f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'}"
