"""evaluate: compare the data's responses, the reference and the policy on the test prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup, responses_by_prompt
from alol_jax.reports import stored_rewards
from alol_jax.reports.results import by_prompt
from alol_jax.reports.statistics import bootstrap, distinct_interval, word_counts
from alol_jax.reports.text_measures import measured
from alol_jax.tables.table import Table
from alol_jax.training.annotate import divergence_of_answers
from alol_jax.training.held_out import Likelihoods, columns_of, likelihoods
from alol_jax.training.on_test_rows import on_test_rows
from alol_jax.types import (
    Evaluation,
    Interval,
    OnTestRows,
    Policy,
    PromptMeasures,
    Scored,
    ScoredSplits,
    StageContext,
    StoredMeasure,
    SystemScores,
    TestSet,
)

CONFIDENCE = 0.95  # of every interval; the report's text says 95%
DISTINCT_DRAWS = 1000  # at most, because resampling texts is slower than resampling numbers

SystemRows = dict[str, Table[Scored]]
"""System ("data", "reference", "policy") -> its rows."""


def evaluate(
    setup: Setup,
    options: ConfigDict,
    scored: ScoredSplits,
    reference: Policy,
    policy: Policy,
    by_reference: OnTestRows,
    *,
    context: StageContext,
) -> Evaluation:
    """Score the likeliest answers of the reference and the policy to every test prompt.

    The difference policy − reference is paired by prompt. If the data has several responses to a
    prompt, their mean is used. Results have bootstrap intervals and are also given per source,
    together with the KL of the policy to the reference on the policy's answers, and the measures
    of ``options.measures``; some compare with the data's responses and leave out "data".
    Where the rewards of the rows are stored ones, reference and policy are compared by these, too
    (`held_out`).

    Args:
        setup: its seed seeds the bootstrap.
        options: ``config.evaluate``; if it sets ``rewards``, or if the rewards of the rows are
            stored ones and something can score answers, the data's responses are scored as well.
        by_reference: what `evaluate_reference` returned.
    """
    reward, seed = setup.reward(scored), setup.seed
    rows: SystemRows = {"data": scored.test}
    stored = not scored.component_names
    if reward.names and (options.rewards or stored):
        rows["data"] = reward.score_rows(scored.test, scored.test["response"])
    tested = {
        "reference": by_reference,
        "policy": on_test_rows(setup, scored, "policy", policy, context),
    }
    rows |= {name: one.answers for name, one in tested.items()}
    systems, differences = _compare(rows, setup, bool(reward.names), options)
    watch, both = context.watch("KL to the reference"), (policy.trained, reference.trained)
    kl = divergence_of_answers(setup.lm, setup.task, *both, rows["policy"], watch=watch)
    evaluation = Evaluation(
        data=rows["data"],
        reference=rows["reference"],
        policy=rows["policy"],
        component_names=reward.names,
        systems=systems,
        differences=differences,
        sets=_by_source(rows, setup, bool(reward.names), options),
        kl=_interval(kl, options, seed),
        measure_names=tuple(options.measures),
        agreement=setup.agreement,
    )
    if not stored:
        return evaluation
    held_out = _held_out(scored.test, tested)
    found, numbers = held_out.measures(np.ones(len(scored.test), bool), options, setup.seed)
    sets = evaluation.sets
    if len(sets) > 1:
        of = {one.name: scored.test["source"].equal(one.name) for one in sets}
        parts = (held_out.measures(of[one.name], options, setup.seed)[0] for one in sets)
        sets = tuple(
            dataclasses.replace(one, stored=part) for one, part in zip(sets, parts, strict=True)
        )
    return dataclasses.replace(evaluation, stored=found, by_prompt=numbers, sets=sets)


class _HeldOut(NamedTuple):
    """The test rows and what reference and policy make of them."""

    test: Table[Scored]
    answers: dict[str, np.ndarray]  # system -> its answer to each prompt
    logps: dict[str, Likelihoods]  # system -> of each row

    def measures(
        self, which: np.ndarray, options: ConfigDict, seed: int
    ) -> tuple[tuple[StoredMeasure, ...], Table[PromptMeasures]]:
        """What the stored rewards say of both on these rows, bool[rows], and the same by prompt."""
        test = self.test.where(which)
        asked = np.unique(self.test["example_id"].codes()[which])
        columns = [
            columns_of(test, self.answers[name][asked], self.logps[name].take(which))
            for name in self.logps
        ]
        numbers = stored_rewards.by_prompt(list(test["example_id"].distinct()), *columns)
        draws = options.bootstrap
        found = stored_rewards.stored_measures(numbers, columns[1], draws=draws, seed=seed)
        return found, numbers


def _held_out(test_rows: Table[Scored], tested: Mapping[str, OnTestRows]) -> _HeldOut:
    ref_logps = tested["reference"].logps["logp"]
    return _HeldOut(
        test_rows,
        {name: np.array(list(one.answers["response"]), object) for name, one in tested.items()},
        {name: likelihoods(one.logps["logp"], ref_logps) for name, one in tested.items()},
    )


def _compare(
    rows: SystemRows, setup: Setup, has_reward: bool, options: ConfigDict
) -> tuple[tuple[SystemScores, ...], tuple[Interval, ...]]:
    """The scores of each system, and the paired differences policy − reference."""
    said = responses_by_prompt(rows["data"])
    systems = tuple(
        _system_scores(
            name,
            its_rows,
            None if name == "data" else said,
            setup,
            has_reward or name == "data",
            options,
        )
        for name, its_rows in rows.items()
    )
    if not has_reward:
        return systems, ()
    gain = by_prompt(rows["policy"])[1] - by_prompt(rows["reference"])[1]
    return systems, tuple(_interval(column, options, setup.seed) for column in gain.T)


def _by_source(
    rows: SystemRows, setup: Setup, has_reward: bool, options: ConfigDict
) -> tuple[TestSet, ...]:
    """The scores on the prompts of each source."""
    found = []
    for source in rows["reference"]["source"].distinct():
        part = {
            name: its_rows.where(its_rows["source"].equal(source))
            for name, its_rows in rows.items()
        }
        systems, differences = _compare(part, setup, has_reward, options)
        last = differences[-1] if differences else None
        found.append(TestSet(source, len(part["reference"]), systems, last))
    return tuple(found)


def _system_scores(
    name: str,
    rows: Table[Scored],
    said: Mapping[str, Sequence[str]] | None,
    setup: Setup,
    has_reward: bool,
    options: ConfigDict,
) -> SystemScores:
    """The scores of a system; ``said`` are the data's responses by prompt, None for the data."""
    seed = setup.seed
    columns = [_interval(column, options, seed) for column in by_prompt(rows)[1].T]
    texts = list(rows["response"])
    return SystemScores(
        name=name,
        reward=columns[-1] if has_reward else None,
        components=tuple(columns[:-1]) if has_reward else (),
        distinct=tuple(_distinct(texts, n, options, seed) for n in (1, 2, 3)),
        length=_interval(word_counts(texts), options, seed),
        measures=_measures(rows, said, setup, options) if options.measures else (),
    )


def _measures(rows, said, setup, options) -> tuple[Interval | None, ...]:
    """The measures of ``options.measures``; None where a system has no value."""
    exchange = setup.task.exchange
    pairs = [exchange(*row).pair for row in zip(rows["prompt"], rows["response"], strict=True)]
    references = None if said is None else [said[name] for name in rows["example_id"]]
    columns = (measured(measure, pairs, references) for measure in options.measures)
    return tuple(
        None if column is None else _interval(column, options, setup.seed) for column in columns
    )


def _distinct(texts: Sequence[str], n: int, options: ConfigDict, seed: int) -> Interval:
    draws = min(options.bootstrap, DISTINCT_DRAWS)
    return distinct_interval(texts, n, draws=draws, confidence=CONFIDENCE, seed=seed)


def _interval(column: np.ndarray, options: ConfigDict, seed: int) -> Interval:
    return bootstrap(column, draws=options.bootstrap, confidence=CONFIDENCE, seed=seed)
