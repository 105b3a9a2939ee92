"""Results as files: whatever a stage returns comes back as it was."""

import dataclasses
import shutil
import typing

import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax import main, types
from alol_jax.runs.artifacts import load_fields, load_result, save_result
from alol_jax.tables.table import Table
from tests.tiny_run import annotated, annotated_rows

NAN_FREE = {
    "layers/q_proj/lora_a": jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(2, 3, 2),
    "layers/q_proj/kernel": jnp.linspace(-1, 1, 12, dtype=jnp.bfloat16).reshape(2, 3, 2),
    "summary/bias": jnp.array([-0.0], jnp.float32),
}
EXAMPLES = Table.of(
    [
        types.Example("a", "wie geht's?", ("gut", "schlecht"), "web", (0.1, 1e-300)),
        types.Example("b", "\n", ("",), ""),
    ],
    types.Example,
)
SCORED = Table.of(
    [
        types.Scored("a", "p", "r", "web", (0.1, 0.25), 1 / 3),
        types.Scored("a", "p", "s", "web", (), 0.0),
    ],
    types.Scored,
)
INTERVAL = types.Interval(0.1, -1 / 3, 2.0)
AGREED = types.Agreement(*("it", 24, 12, True, INTERVAL, 0.5, None, 1 / 3, -0.1, 1e-300, 0.1, 0.2))
RESULTS = {
    types.Splits: types.Splits(EXAMPLES, EXAMPLES[:1], EXAMPLES[:0], ("2 dropped", "ünïcödé")),
    types.ScoredSplits: types.ScoredSplits(
        *(SCORED, SCORED[:0], SCORED[:1], ("long", "short"), 2.5, ()),
        min_reward=-1 / 3,
        transform=types.RewardTransform("rank", (-1.0, 1 / 3), knots=(0.1,), shares=(0.5,)),
        of_answers=types.RewardTransform("line", shift=0.1, scale=1 / 3),
        agreement=AGREED,
    ),
    types.Answers: types.Answers(SCORED),
    types.TrainingTable: types.TrainingTable(
        annotated_rows([annotated(0), annotated(1, ref_logp=(), kept=False, advantage=-1e-9)])
    ),
    types.Policy: types.Policy(
        NAN_FREE,
        4,
        (types.Validation(0, "reward", -0.1), types.Validation(4, "reward", 1 / 3)),
        (types.Curve("loss", (1, 2), (0.5, float("inf"))), types.Curve("none", (), ())),
    ),
    types.Distilled: types.Distilled(NAN_FREE, 3, AGREED),
    types.Value: types.Value(
        NAN_FREE, 2.5, types.ValueAudit((0.1, 0.2), (0.3, 0.4), 0.5, 0.6, 0.7, 3)
    ),
    types.OnTestRows: types.OnTestRows(
        SCORED,
        Table.of(
            [types.ResponseLogps((np.float32(-0.1), np.float32(-1e-30)))], types.ResponseLogps
        ),
    ),
    types.Evaluation: types.Evaluation(
        SCORED,
        SCORED[:1],
        SCORED[:0],
        ("long",),
        (
            types.SystemScores("data", INTERVAL, (INTERVAL, INTERVAL), (INTERVAL,) * 3, INTERVAL),
            types.SystemScores("policy", None, (), (INTERVAL,) * 3, INTERVAL),
        ),
        (INTERVAL,),
        stored=(types.StoredMeasure("order", "3 pairs", INTERVAL, INTERVAL, INTERVAL),),
        by_prompt=Table.of(
            [types.PromptMeasures("a", (0.1, -1e-300), (1 / 3, 2.0))], types.PromptMeasures
        ),
        agreement=AGREED,
    ),
    types.Report: types.Report(("report.html", "figures/a.svg")),
}


def _bits(params):
    return {path: (a.dtype, a.shape, np.asarray(a).tobytes()) for path, a in params.items()}


def _assert_same(found, made):
    """Equal in value and in type, all the way down; parameters bit by bit."""
    assert type(found) is type(made)
    if dataclasses.is_dataclass(made):
        for field in dataclasses.fields(made):
            _assert_same(getattr(found, field.name), getattr(made, field.name))
    elif isinstance(made, tuple):
        assert len(found) == len(made)
        for one, other in zip(found, made, strict=True):
            _assert_same(one, other)
    elif isinstance(made, dict):
        assert _bits(found) == _bits(made)
    else:
        assert found == made


def test_every_result_of_a_stage_is_in_this_file():
    stages = [getattr(main, name) for name in main.STAGES]
    assert {typing.get_type_hints(stage)["return"] for stage in stages} == RESULTS.keys()


@pytest.mark.parametrize("result_type", RESULTS, ids=lambda t: t.__name__)
def test_a_result_comes_back_as_it_was(tmp_path, result_type):
    save_result(tmp_path, RESULTS[result_type])
    _assert_same(load_result(tmp_path, result_type), RESULTS[result_type])


def test_fields_come_in_the_order_asked_for_and_without_the_files_of_the_others(tmp_path):
    save_result(tmp_path, RESULTS[types.Policy])
    shutil.rmtree(tmp_path / "trained")
    step, validations = load_fields(tmp_path, types.Policy, ("step", "validations"))
    assert (step, validations) == (4, RESULTS[types.Policy].validations)


def test_rows_are_a_field_like_another(tmp_path):
    save_result(tmp_path, RESULTS[types.ScoredSplits])
    (tmp_path / "train.arrow").unlink()
    assert load_fields(tmp_path, types.ScoredSplits, ("test", "max_reward")) == (SCORED[:1], 2.5)


@pytest.mark.parametrize("result_type", [types.Policy, types.ScoredSplits])
def test_saving_over_what_a_killed_save_left_gives_the_new_result(tmp_path, result_type):
    save_result(tmp_path, RESULTS[result_type])
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    if result_type is types.Policy:
        new = dataclasses.replace(RESULTS[types.Policy], trained={"query": jnp.ones(3)}, step=0)
    else:
        new = dataclasses.replace(RESULTS[types.ScoredSplits], train=SCORED[1:], max_reward=1.0)
    save_result(tmp_path, new)
    _assert_same(load_result(tmp_path, result_type), new)


def test_a_result_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"result\.json"):
        load_result(tmp_path, types.Report)
