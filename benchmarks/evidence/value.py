"""What V(x) can know of people's labels: more prompts, more epochs, other features, more answers.

    python -m benchmarks.evidence.value --audit=audit.jsonl --workdir=runs/evidence/labels

The workdir is that of `labels`, whose reference is used. V is fitted to the mean label of the
answers to a prompt (or to one of them, drawn at random), of prompts of any length that have several
answers, and tested on held-out folds:

* hidden states: the value head of the recipe, on the reference's hidden states;
* MiniLM: ridge regression on the sentence embedding of the prompt, a baseline.

The labels of all answers are kept, too: `draw` says how much of their variance lies between
prompts, which is all that any V(x) can explain. Cost: docs/evidence.md. Settings that are done are
not computed again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alol_jax.errors import Interrupted, UserError
from alol_jax.main import entry, prepare
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import connected
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import finished_stage
from alol_jax.stages.fit_value import fit_value, folds_of, held_out
from alol_jax.tables.table import Table
from alol_jax.tasks import dialogue
from alol_jax.types import Answers, Policy, Scored, ScoredSplits, StageContext
from benchmarks.evidence.collect import STUDY
from benchmarks.evidence.labels import AUDIT, CONFIG, by_prompt, short
from benchmarks.evidence.running import Asked, asked

HEAD, RIDGE = "hidden states", "MiniLM"
PENALTIES = 10.0 ** np.arange(-3, 4)  # of ridge, times the number of prompts


class Setting(NamedTuple):
    """One fit of V."""

    features: str
    prompts: int
    answers: str = "all"  # of a prompt, or one
    epochs: int = 10  # at most; of the head


SETTINGS = (
    *(Setting(RIDGE, count) for count in (60, 240, 480)),
    Setting(RIDGE, 480, answers="one"),
    *(Setting(HEAD, count) for count in (60, 240, 480)),
    Setting(HEAD, 480, answers="one"),
    Setting(HEAD, 240, epochs=40),
)

Groups = dict[str, list[float]]
"""Prompt -> the rewards of its answers."""


def groups_of(audit: Path, *, only_short: bool = False) -> Groups:
    """The rewards of prompts with several answers, in the order of a hash of the prompt."""
    found = {
        dialogue.prompt_of(answers[0]["knowledge"], answers[0]["history"]): [
            answer["reward"] for answer in answers
        ]
        for prompt, answers in by_prompt(audit).items()
        if len(answers) > 1 and (not only_short or short(prompt))
    }
    order = sorted(found, key=lambda prompt: hashlib.blake2b(prompt.encode()).digest())
    return {prompt: found[prompt] for prompt in order}


def errors(predicted: np.ndarray, observed: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Squared errors of held-out predictions, and of the mean of the other folds: f64[N, 2]."""
    mean = np.array([observed[fold != part].mean() for part in fold])
    return (np.stack([predicted, mean], axis=1) - observed[:, None]) ** 2


def ridge(vectors: np.ndarray, observed: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, float]:
    """Ridge regression, tested on held-out folds, its penalty chosen on the other folds.

    Args:
        vectors: f64[N, D].
        observed: f64[N].
        fold: i64[N].

    Returns:
        Predictions f64[N], and the penalty for a fit on all rows.
    """
    curve = np.zeros((len(PENALTIES), len(observed)))
    for part in np.unique(fold):
        fitted, out = fold != part, fold == part
        x, y = vectors[fitted].mean(axis=0), observed[fitted].mean()
        left, singular, right = np.linalg.svd(vectors[fitted] - x, full_matrices=False)
        for place, penalty in enumerate(PENALTIES * fitted.sum()):
            scale = singular / (singular**2 + penalty)
            weights = right.T @ (scale * (left.T @ (observed[fitted] - y)))
            curve[place, out] = (vectors[out] - x) @ weights + y
    predicted, chosen = held_out(curve, observed, fold)
    return predicted, float(PENALTIES[chosen])


class Study:
    """The models and rows of all settings."""

    def __init__(self, wanted: Asked, groups: Groups) -> None:
        shared = wanted.workdir / "shared"
        stages = [finished_stage(shared, name) for name in ("fit_reference", "score")]
        if None in stages:
            raise UserError(f"--workdir={wanted.workdir} has no reference: run labels first")
        self.wanted, self.groups = wanted, groups
        self.config = wanted.config("a_lol")
        opened = prepare(self.config)
        self.lm = opened.lm
        self.encoder = opened.test_scoring.models["similarity"].encoder
        self.reference = load_result(stages[0].folder, Policy)
        self.scored = load_result(stages[1].folder, ScoredSplits)

    def run(self, setting: Setting) -> dict[str, Any]:
        """Fit V, and return its errors on held-out folds beside those of the mean."""
        prompts = list(self.groups)[: setting.prompts]
        draws = np.random.default_rng(self.config.seed)
        mean = np.mean if setting.answers == "all" else draws.choice
        observed = np.array([mean(self.groups[prompt]) for prompt in prompts], np.float64)
        fold = folds_of(prompts, self.config.value.folds, self.config.seed)
        if setting.features == RIDGE:
            predicted, chosen = ridge(self.encoder.embed(prompts), observed, fold)
        else:
            predicted, chosen = self._head(prompts, observed, setting.epochs)
        found = errors(predicted, observed, fold).round(5).tolist()
        return {**setting._asdict(), "prompts": len(prompts), "errors": found, "chosen": chosen}

    def _head(
        self, prompts: list[str], observed: np.ndarray, epochs: int
    ) -> tuple[np.ndarray, float]:
        options = self.config.value.copy_and_resolve_references()
        options.epochs = epochs
        rows = (Scored(p, p, "", "", (), r) for p, r in zip(prompts, observed, strict=True))
        context = StageContext(self.wanted.workdir, self.wanted.stopping, say)
        answers = Answers(Table.of(rows, Scored))
        given = (options, self.config.seed, self.scored, self.reference, answers)
        audit = fit_value(self.lm, dialogue.DIALOGUE, *given, context=context).audit
        return np.array(audit.predicted), audit.epochs


def main(_):
    if not AUDIT.value:
        raise UserError("--audit is needed: the file of labelled answers")
    wanted = asked(CONFIG, ("a_lol",), (0,))
    audit, file = Path(AUDIT.value), wanted.workdir / STUDY
    groups = groups_of(audit)
    found = {
        "all": list(groups.values()),
        "short": list(groups_of(audit, only_short=True).values()),
        "settings": [],
    }
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    study = Study(wanted, groups)
    done = {tuple(one[name] for name in Setting._fields) for one in found["settings"]}
    for setting in SETTINGS:
        if setting._replace(prompts=min(setting.prompts, len(groups))) in done:
            continue
        if wanted.stopping():
            raise Interrupted(f"before {setting}")
        say(f"--- {setting}")
        found["settings"].append(study.run(setting))
        of_v, of_mean = np.mean(found["settings"][-1]["errors"], axis=0)
        say(f"explained on held-out folds: {1 - of_v / of_mean:.1%}")
        file.write_text(json.dumps(found), encoding="utf-8")
    say(f"done: {file}; python -m benchmarks.evidence.draw collects it")


if __name__ == "__main__":
    entry(connected(main))
