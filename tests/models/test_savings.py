"""What can still be lowered follows the config, in the order of `plan`."""

import dataclasses

import pytest

from alol_jax.devices.out_of_memory import SAVINGS
from alol_jax.models.savings import DECODING, PASS, STEP, half_of, program_of
from alol_jax.plan.knobs import KNOBS
from tests.models.test_language_model import opened
from tests.tiny_run import mesh_of

CHIPS = SAVINGS["chips"]


def test_the_order_is_that_in_which_plan_tries():
    assert tuple(KNOBS) == tuple(SAVINGS)


def test_a_step_can_lower_everything():
    lm = opened(remat="none", logprob_chunk=4096)
    program = program_of(lm, STEP, "a step of fit_policy", 8, 512, "or so")
    assert program[:3] == ("a step of fit_policy", 8, 512)
    assert program.lower == (
        "config.model.remat=full",
        "config.model.logprob_chunk=512",
        "config.model.rows=4",
        "config.model.quantisation=nf4",
        CHIPS,
        "or so",
    )


@pytest.mark.parametrize(
    ("kind", "changes", "rows", "expected"),
    [
        (STEP, {"remat": "full", "logprob_chunk": 511}, 4, ("rows=2", "quantisation=nf4")),
        (STEP, {"remat": "full", "quantisation": "nf4"}, 4, ("logprob_chunk=512", "rows=2")),
        (STEP, {"remat": "full", "logprob_chunk": 64, "quantisation": "nf4"}, 1, ("max_prompt",)),
        (PASS, {"remat": "none", "quantisation": "nf4"}, 6, ("logprob_chunk=512", "rows=3")),
    ],
)
def test_what_was_lowered_already_is_not_named(kind, changes, rows, expected):
    lower = program_of(opened(**changes), kind, "x", rows, 64).lower
    assert lower == (*(f"config.model.{one}" for one in expected), CHIPS)


def test_decoding_lowers_slots():
    lower = program_of(opened(quantisation="nf4"), DECODING, "x", 32, 64).lower
    assert lower == ("config.decode.batch_size=16", CHIPS)


def test_a_model_that_trains_whole_is_not_told_to_quantise():
    lower = program_of(opened(lora={"rank": 0}), PASS, "x", 4, 64).lower
    assert not any("quantisation" in one for one in lower)


def test_half_of_the_rows_is_what_the_devices_can_share():
    assert [half_of(rows, 1) for rows in (8, 3, 2, 1)] == [4, 1, 1, 1]
    assert [half_of(rows, 4) for rows in (32, 24, 8, 4)] == [16, 12, 4, 4]
    lm = dataclasses.replace(opened(), mesh=mesh_of(4))
    assert "config.model.rows=4" in program_of(lm, PASS, "x", 8, 64).lower
