"""select: what is kept, what is stored with it, and what is not even computed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from alol_jax.models.heads import ValueHead
from alol_jax.stages.select import select
from alol_jax.training.annotate import annotate
from alol_jax.training.items import tokenise
from alol_jax.types import Value, ValueAudit, Watch
from tests.tiny_run import (
    LIMITS,
    TASK,
    context,
    fitted,
    scored_splits,
    scored_table,
    small_options,
    tiny_lm,
)

LM = tiny_lm()
ALL = ("ref_logp", "advantage")
SCORED = scored_splits(train=11)


def _value(largest=1.0) -> Value:
    """A head whose values differ from prompt to prompt."""
    params = ValueHead(64, largest).init(jax.random.key(0), 0.5 * largest)
    slope = 0.3 * jax.random.normal(jax.random.key(1), params["summary/kernel"].shape)
    audit = ValueAudit((), (), 0.0, 0.0, 0.0, 0)
    return Value(params | {"summary/kernel": slope}, largest, audit)


def _select(tmp_path, reads=ALL, scored=SCORED, value=None, said=None, lm=LM, reference=True):
    config = small_options()
    return select(
        lm,
        TASK,
        reads,
        config.value,
        scored,
        fitted(LM) if reference else None,
        _value() if value is None and "advantage" in reads else value,
        context=context(tmp_path, said=said),
    )


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    said = []
    table = _select(folder, said=said)
    return table, json.loads((folder / "data_report.json").read_text("utf-8")), said


def test_rows_with_a_positive_advantage_are_kept(selected):
    table, *_ = selected
    for row, given in zip(table.rows, SCORED.train, strict=True):
        assert row.reward == given.reward
        assert row.advantage == pytest.approx(row.reward - row.value, abs=1e-12)
        assert row.kept == (row.advantage > 0)
        assert 0 < row.value < 1
    assert 0 < sum(row.kept for row in table.rows) < len(table.rows)
    assert len({row.value for row in table.rows}) == len(table.rows)


def test_the_stored_logp_is_that_of_the_reference(selected):
    table, *_ = selected
    rows, _ = tokenise(SCORED.train, TASK, LM.tokenizer, LIMITS)
    logps, none = annotate(LM, fitted(LM).trained, rows, watch=Watch("rows"))
    others, _ = annotate(LM, fitted(LM, seed=1).trained, rows, watch=Watch("rows"))
    assert not np.any(none)
    for row, logp, other in zip(table.rows, logps, others, strict=True):
        assert len(row.ref_logp) == len(row.response)
        np.testing.assert_allclose(row.ref_logp, logp, rtol=1e-5, atol=1e-5)
        assert max(row.ref_logp) < 0
        assert np.abs(np.subtract(row.ref_logp, other)).max() > 0.01


def test_a_row_alone_has_the_annotations_it_has_in_company(tmp_path, selected):
    table, *_ = selected
    for place in (0, 4):
        lucky = dataclasses.replace(SCORED.train[place], reward=1.0)  # so that it is kept
        alone = dataclasses.replace(SCORED, train=scored_table([lucky]))
        (row,) = _select(tmp_path, scored=alone).rows
        np.testing.assert_allclose(row.ref_logp, table.rows[place].ref_logp, atol=1e-5)
        assert row.value == pytest.approx(table.rows[place].value, abs=1e-6)


def test_the_counts_of_the_data_report_add_up(selected):
    table, report, said = selected
    kept = sum(row.kept for row in table.rows)
    assert (report["rows"], report["kept"], report["cut"]) == (11, kept, 0)
    assert report["cut_prompts"] == 0
    for group in ("by_source", "by_response_tokens", "by_reward"):
        counts = report[group].values()
        assert sum(count["kept"] for count in counts) == kept
        assert sum(count["dropped"] for count in counts) == 11 - kept
    web = [row.kept for row in table.rows if row.source == "web"]
    assert report["by_source"]["web"] == {"kept": sum(web), "dropped": len(web) - sum(web)}
    assert said[-1] == f"kept {kept} of 11 rows"


def test_the_data_report_shows_the_extremes(selected):
    table, report, _ = selected
    ranked = sorted((row.advantage for row in table.rows), reverse=True)
    assert [row["advantage"] for row in report["most_advantageous"]] == ranked[:10]
    assert [row["advantage"] for row in report["least_advantageous"]] == ranked[::-1][:10]


@pytest.mark.parametrize("reads", [(), ("reward",)])
def test_an_objective_that_reads_no_annotation_runs_no_model(tmp_path, reads):
    lm = dataclasses.replace(LM)  # a copy that has read no weights yet
    table = _select(tmp_path, reads, lm=lm, reference=False)
    assert "base" not in vars(lm)
    assert all(row.kept and row.ref_logp == () and row.advantage == 0 for row in table.rows)
    assert [row.reward for row in table.rows] == [row.reward for row in SCORED.train]


def test_only_what_is_read_is_stored(tmp_path, selected):
    only_logp = _select(tmp_path, ("ref_logp",))
    assert all(row.kept and row.value == row.advantage == 0 for row in only_logp.rows)
    for row, full in zip(only_logp.rows, selected[0].rows, strict=True):
        np.testing.assert_allclose(row.ref_logp, full.ref_logp, atol=1e-5)
    only_advantage = _select(tmp_path, ("advantage",))
    assert all(row.ref_logp == () for row in only_advantage.rows)
    assert [row.kept for row in only_advantage.rows] == [row.kept for row in selected[0].rows]


def test_rows_that_are_cut_are_counted_and_said(tmp_path):
    long = dataclasses.replace(SCORED.train[0], response="x" * 99, prompt="y" * 99)
    asked = dataclasses.replace(SCORED.train[1], prompt="z" * 31)
    train = scored_table((long, asked, *SCORED.train[2:]))
    said = []
    table = _select(tmp_path, (), dataclasses.replace(SCORED, train=train), said=said)
    assert "2 prompts to 32 tokens" in said[0] and "1 responses to 24" in said[0]
    assert (len(table.rows[0].prompt), len(table.rows[0].response)) == LIMITS
    report = json.loads((tmp_path / "data_report.json").read_text("utf-8"))
    assert (report["cut"], report["cut_prompts"]) == (1, 2)
