"""What V(x) can know of people's labels: more prompts, more epochs, other features, more answers.

    python -m benchmarks.evidence.value --audit=audit.jsonl --workdir=runs/evidence/labels

The workdir is that of `labels`, whose reference is used; the prompts are those that all three
models answered. V is fitted to the mean label of the three answers (or to one of them, drawn at
random), and tested on held-out folds, no knowledge in two of them:

* hidden states: the value head of the recipe, on the reference's hidden states; short prompts, as
  in `labels`;
* MiniLM: ridge regression on the sentence embedding of the prompt, a baseline; also on prompts of
  any length, of which it reads the first 256 tokens.

The labels are kept, too: `draw` says how much of their variance lies between prompts, which is all
that a V(x) can explain. Cost: docs/evidence.md. Config and seed are those of the reference.
Settings that are done are not computed again; those of another reference or audit are, with
``--redo``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
from benchmarks.evidence.labels import AUDIT, CONFIG, by_prompt, short
from benchmarks.evidence.running import Asked, asked, refuse

STUDY = "value.json"  # what is written
HEAD, RIDGE = "hidden states", "MiniLM"
MODELS = {"ctrl", "doha", "gpt2"}  # writers of the audit
PENALTIES = 10.0 ** np.arange(-3, 4)  # of ridge, times the number of prompts


class Labelled(NamedTuple):
    """A prompt, and the labels of its answers."""

    prompt: str
    knowledge: str
    short: bool  # as those in `labels`
    rewards: tuple[float, ...]  # by writer, in the order of their names


class Setting(NamedTuple):
    """One fit of V."""

    features: str
    prompts: str = "short"  # or all
    count: int = 0  # of prompts; 0 = all of them
    answers: str = "all"  # of a prompt, or one
    epochs: int = 10  # at most; of the head


SETTINGS = (
    *(Setting(RIDGE, count=count) for count in (60, 0)),
    Setting(RIDGE, answers="one"),
    Setting(RIDGE, "all"),
    *(Setting(HEAD, count=count) for count in (60, 0)),
    Setting(HEAD, answers="one"),
    Setting(HEAD, epochs=40),
)


def labelled(audit: Path) -> list[Labelled]:
    """The prompts that all three models answered, in the order of a hash.

    Raises:
        UserError: the file is missing or malformed, or there are too few.
    """
    found = []
    for prompt, answers in by_prompt(audit).items():
        rewards = {answer["writer"]: answer["reward"] for answer in answers}
        if rewards.keys() == MODELS and len(answers) == len(MODELS):
            knowledge, turns = answers[0]["knowledge"], answers[0]["history"]
            by_writer = tuple(rewards[writer] for writer in sorted(rewards))
            text = dialogue.prompt_of(knowledge, turns)
            found.append(Labelled(text, knowledge, short(prompt), by_writer))
    if sum(one.short for one in found) < 2:
        raise UserError(f"--audit={audit}: too few short prompts that all three models answered")
    return sorted(found, key=lambda one: hashlib.blake2b(one.prompt.encode()).digest())


def chosen(rows: Sequence[Labelled], setting: Setting) -> list[Labelled]:
    """The prompts of a setting."""
    found = [one for one in rows if one.short or setting.prompts == "all"]
    return found[: setting.count or len(found)]


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
    predicted, best = held_out(curve, observed, fold)
    return predicted, float(PENALTIES[best])


class Study:
    """The models of all settings.

    Raises:
        UserError: `labels` has fitted no reference yet.
    """

    def __init__(self, wanted: Asked) -> None:
        shared = wanted.workdir / "shared"
        reference, score = (finished_stage(shared, name) for name in ("fit_reference", "score"))
        if reference is None or score is None:
            raise UserError(f"--workdir={wanted.workdir} has no reference: run labels first")
        self.wanted = wanted
        self.fingerprint, self.config = reference.fingerprint, reference.config()
        opened = prepare(self.config)
        self.lm, self.encoder = opened.lm, opened.test_scoring.models["similarity"].encoder
        self.reference = load_result(reference.folder, Policy)
        self.scored = load_result(score.folder, ScoredSplits)

    def run(self, setting: Setting, rows: Sequence[Labelled]) -> dict[str, Any]:
        """Fit V, and return its errors on held-out folds beside those of the mean."""
        draws = np.random.default_rng(self.config.seed)
        mean = np.mean if setting.answers == "all" else draws.choice
        observed = np.array([mean(one.rewards) for one in rows], np.float64)
        apart = [one.knowledge for one in rows]
        fold = folds_of(apart, self.config.value.folds, self.config.seed)
        if setting.features == RIDGE:
            vectors = self.encoder.embed([one.prompt for one in rows])
            predicted, best = ridge(vectors, observed, fold)
        else:
            predicted, best = self._head(rows, observed, setting.epochs)
        found = errors(predicted, observed, fold).round(5).tolist()
        return {**setting._asdict(), "count": len(rows), "errors": found, "chosen": best}

    def _head(
        self, rows: Sequence[Labelled], observed: np.ndarray, epochs: int
    ) -> tuple[np.ndarray, float]:
        """Held-out predictions of the value head, and the number of epochs chosen."""
        options = self.config.value.copy_and_resolve_references()
        options.epochs = epochs
        table = Table.of(
            (
                Scored(one.knowledge, one.prompt, "", "", (), reward)
                for one, reward in zip(rows, observed, strict=True)
            ),
            Scored,
        )
        context = StageContext(self.wanted.workdir, self.wanted.stopping, say)
        given = (options, self.config.seed, self.scored, self.reference, Answers(table))
        audit = fit_value(self.lm, dialogue.DIALOGUE, *given, context=context).audit
        return np.array(audit.predicted), audit.epochs


def main(_):
    if not AUDIT.value:
        raise UserError("--audit is needed: the file of labelled answers")
    refuse(("config", "objectives", "seeds"), "config and seed are those of the reference")
    wanted = asked(CONFIG, ("a_lol",), (0,))
    rows, study = labelled(Path(AUDIT.value)), Study(wanted)
    known = {
        "reference": study.fingerprint,
        "all": [one.rewards for one in rows],
        "short": [one.rewards for one in rows if one.short],
    }
    known = json.loads(json.dumps(known))
    file, settings = wanted.workdir / STUDY, []
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        done = before.pop("settings")
        if before == known:
            settings = done
        elif not wanted.redo:
            raise UserError(
                f"{file} was made from another reference or audit: delete it, or give --redo"
            )
    for setting in SETTINGS:
        its = chosen(rows, setting)
        wants = setting._replace(count=len(its))._asdict()
        if any(wants == {name: one[name] for name in wants} for one in settings):
            continue
        if wanted.stopping():
            raise Interrupted(f"before {setting}")
        say(f"--- {setting}")
        settings.append(study.run(setting, its))
        of_v, of_mean = np.mean(settings[-1]["errors"], axis=0)
        say(f"explained on held-out folds: {1 - of_v / of_mean:.1%}")
        file.write_text(json.dumps({**known, "settings": settings}), encoding="utf-8")
    say(f"done: {file}; python -m benchmarks.evidence.draw collects it")


if __name__ == "__main__":
    entry(connected(main))
