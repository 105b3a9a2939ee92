"""evaluate: measures of the texts, against their source and against the data's responses."""

import dataclasses

import numpy as np
import pytest

from alol_jax.reports.results import measures, result_table, to_csv
from alol_jax.reports.sections import results
from alol_jax.reports.text_measures import coverage
from alol_jax.rewards.lexical import meteor
from alol_jax.runs.artifacts import load_result, save_result
from alol_jax.types import Evaluation
from tests import wordnet
from tests.tiny_run import (
    TASK,
    context,
    evaluate,
    fitted,
    scored_rows,
    scored_splits,
    scored_table,
    setup,
    small_options,
    tiny_lm,
)

LM = tiny_lm()
ROWS = [dataclasses.replace(row, components=(row.reward,)) for row in scored_rows(4, "test")]
MORE = dataclasses.replace(ROWS[0], response="a second one")
SCORED = dataclasses.replace(scored_splits(), test=scored_table([*ROWS, MORE]))


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """Of four test prompts, the first of which has two responses."""
    wordnet.stand_in(monkeypatch)
    config = small_options()
    config.evaluate.measures = ("coverage", "meteor")
    policy = fitted(LM, 1)
    stages = setup(LM, TASK, {"positivity": 1.0}, config.decode)
    return evaluate(stages, config.evaluate, SCORED, fitted(LM), policy, context=context(tmp_path))


def test_a_measure_against_the_datas_responses_covers_all_rows_and_leaves_out_the_data(evaluation):
    said = {row.example_id: [row.response] for row in ROWS}
    said[MORE.example_id].append(MORE.response)
    assert evaluation.systems[0].measures[1] is None
    for system, rows in zip(
        evaluation.systems[1:], (evaluation.reference, evaluation.policy), strict=True
    ):
        expected = [meteor(said[row.example_id], row.response) for row in rows]
        assert len(expected) == 4
        assert system.measures[1].mean == pytest.approx(np.mean(expected))


def test_a_measure_against_the_source_is_that_of_every_system(evaluation):
    for system in evaluation.systems:
        rows = getattr(evaluation, system.name)
        expected = np.mean([coverage(row.prompt, row.response) for row in rows])
        assert system.measures[0].mean == pytest.approx(expected)


def test_where_there_is_no_value_the_tables_have_a_dash_or_nothing(evaluation):
    (row,) = (line for line in result_table(evaluation).splitlines() if line[:6] == "meteor")
    assert row.split()[1] == "-"
    found = measures(evaluation)
    assert "data,meteor,,,,(all)\n" in to_csv(found)
    section = results(evaluation, found)
    assert "A measure against the data's responses has no value" in " ".join(section.text)


def test_it_is_stored_and_read_again(evaluation, tmp_path):
    folder = tmp_path / "stored"
    folder.mkdir()
    save_result(folder, evaluation)
    assert load_result(folder, Evaluation).systems == evaluation.systems


def test_texts_are_paired_only_where_a_measure_reads_them(tmp_path):
    def refuse(prompt, response):
        raise AssertionError("no measure reads this")

    config, task = small_options(), dataclasses.replace(TASK, pair=refuse)
    stages = setup(LM, task, {"positivity": 1.0}, config.decode)
    given = (stages, config.evaluate, SCORED, fitted(LM), fitted(LM, 1))
    assert evaluate(*given, context=context(tmp_path)).systems[0].measures == ()
    config.evaluate.measures = ("coverage",)
    with pytest.raises(AssertionError, match="no measure reads this"):
        evaluate(*given, context=context(tmp_path))
