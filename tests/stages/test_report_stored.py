"""The report of a run whose rewards are stored: measures, the scorer's worth, the transform."""

import dataclasses
import re

import numpy as np

from alol_jax.reports.results import measures
from alol_jax.reports.sections import comparison, results, value_head
from alol_jax.reports.sections_fit import training
from alol_jax.reports.sections_rewards import by_stored_rewards, judge, transform_figures
from alol_jax.rewards.transform import fit_transform
from alol_jax.types import Agreement, Interval, ScoredSplits, StoredMeasure
from tests.reports.cases import SUMMARY, evaluated, trained, unscored, valued
from tests.tiny_run import scored_rows

MEASURES = (
    StoredMeasure(
        *("likeness gap", "57 prompts", Interval(1.0, 0.0, 2.0), Interval(10.4, 9.0, 12.0)),
        Interval(9.4, 2.9, 16.7),
    ),
    StoredMeasure(
        *("order of ratio", "120 pairs", Interval(0.5, 0.5, 0.5), Interval(0.45, 0.4, 0.5)),
        Interval(-0.05, -0.1, 0.0),
    ),
)
AGREED = Agreement(
    *("rm", 24, 12, True, Interval(0.73, 0.63, 0.82), 0.46, 0.46, 0.4, 1.25, -0.004, 0.1, 0.2)
)


def test_the_measures_are_a_table_with_what_they_rest_on_and_do_not_see():
    section = by_stored_rewards(dataclasses.replace(unscored(), stored=MEASURES))
    cells = [[cell.text for cell in row.cells] for row in section.tables[0].rows]
    assert cells == [
        ["likeness gap", "57 prompts", "1.0", "10.4", "+9.4"],
        ["order of ratio", "120 pairs", "0.500", "0.450", "−0.050"],
    ]
    assert section.tables[0].rows[0].cells[-1].interval == "[+2.9, +16.7]"
    assert "pays for copying" in section.text[-1]
    assert by_stored_rewards(evaluated()) is None


def test_a_scorer_that_did_not_give_the_rewards_has_a_section():
    section = judge(dataclasses.replace(evaluated(), agreement=AGREED))
    words = " ".join(cell.text for row in section.tables[0].rows for cell in row.cells)
    assert "73% [63%, 82%] of 12 of one prompt" in words and "46%" in words
    assert "+1.250 from the rewards" in section.text[1] and "−0.004 remain" in section.text[1]
    fitted = dataclasses.replace(AGREED, bias=0.01, remaining=0.01)
    words = judge(dataclasses.replace(evaluated(), agreement=fitted)).text[1]
    assert words == "On average its scores lie +0.010 from the rewards."
    assert judge(evaluated()) is None


def test_the_transform_is_drawn_over_the_percentiles_of_the_training_rewards():
    rows = scored_rows(4)
    used = fit_transform("rank", (-2.0, 2.0), np.array([-9.0, 0.0, 1.0, 5.0]))
    splits = ScoredSplits(rows, rows, rows, (), 1.0, (), transform=used)
    (figure,) = transform_figures(splits)
    assert figure.title == "Transform of the reward"
    assert "clip -2 to 2, rank" in figure.svg and len(re.findall("<use", figure.svg)) >= 99
    assert "from -9 to 5." in figure.caption
    plain = fit_transform("as_is", (), np.array([0.0, 1.0]))
    assert transform_figures(dataclasses.replace(splits, transform=plain)) == ()


def test_what_the_scorer_is_worth_stands_beside_every_figure_that_rests_on_it():
    made = dataclasses.replace(evaluated(), agreement=AGREED)
    found = (
        results(made, measures(made)),
        comparison(made, measures(made)),
        value_head(valued(), SUMMARY, AGREED),
        training(trained(curves=("loss",)), SUMMARY, AGREED),
    )
    for section in found:
        assert any("rm orders 73% [63%, 82%]" in said for said in section.text), section.anchor
    assert "rm orders" not in " ".join(results(evaluated(), measures(evaluated())).text)
