"""A training step that does not fit: one line, or half the rows and the same step."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from alol_jax.devices.out_of_memory import OutOfMemory
from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.stages import fit_policy as stage
from alol_jax.training.items import tokenise
from alol_jax.types import Limits, TrainingTable
from tests.tiny_run import TASK, context, fitted, scored_splits, setup, small_options, tiny_lm

LIMITS = Limits(16, 16)
LM = tiny_lm(limits=LIMITS, rows=8, width=32)
SCORED = scored_splits(train=16)
TABLE = TrainingTable(tokenise(SCORED.train, TASK, LM.tokenizer, LIMITS)[0])
SAID = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."


def fit(folder, *, fits="auto", said=None):
    """The policy of four steps on eight items each, in grids of eight rows."""
    config = small_options()
    config.policy.update({"batch_size": 8, "epochs": 2.0, "checkpoint_every": 1})
    lm = dataclasses.replace(LM, options=LM.options | {"fit": fits})
    return stage.fit_policy(
        setup(lm, TASK, {"positivity": 0.0}, config.decode),
        OBJECTIVES["nll"],
        config.objective,
        config.policy,
        SCORED,
        TABLE,
        fitted(LM),
        context=context(folder, said=said),
    )


@pytest.fixture
def memory(monkeypatch):
    """Grids of more rows than ``rows`` fail, from the call ``after`` on; their rows are listed."""
    found = {"rows": 8, "after": 0, "seen": []}
    real = stage.make_update

    def make_update(*arguments):
        update = real(*arguments)

        def add(sums, trained, frozen, grid, *rest):
            found["seen"].append(grid.ids.shape[0])
            if len(found["seen"]) > found["after"] and grid.ids.shape[0] > found["rows"]:
                raise jax.errors.JaxRuntimeError(SAID)
            return update.add(sums, trained, frozen, grid, *rest)

        return dataclasses.replace(update, add=add)

    monkeypatch.setattr(stage, "make_update", make_update)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("undisturbed"))


def same(one, other):
    assert one.trained.keys() == other.trained.keys()
    for path, leaf in one.trained.items():
        np.testing.assert_allclose(leaf, other.trained[path], rtol=1e-4, atol=1e-6, err_msg=path)
    assert one.step == other.step and len(one.validations) == len(other.validations)


@pytest.mark.parametrize("after", [0, 2], ids=["at once", "after two steps"])
def test_half_the_rows_and_twice_the_grids_are_the_same_fit(after, tmp_path, memory, undisturbed):
    memory.update({"rows": 4, "after": after})
    said = []
    same(fit(tmp_path, said=said), undisturbed)
    seen = memory["seen"]
    assert seen[: after + 1] == [8] * (after + 1) and set(seen[after + 1 :]) == {4}
    (line,) = [one for one in said if "out of memory" in one]
    assert line == (
        "out of memory on grids of 8 × 32 tokens: on with 4 rows in a grid, and twice as many "
        "grids for the same step"
    )
    assert (f"resuming at step {after}/" in "".join(said)) and "grids of 8 × 32" in "".join(said)


def test_rows_are_halved_until_they_fit(tmp_path, memory, undisturbed):
    memory["rows"] = 1
    same(fit(tmp_path), undisturbed)
    assert list(dict.fromkeys(memory["seen"])) == [8, 4, 2, 1]


def test_one_row_that_does_not_fit_is_one_line(tmp_path, memory):
    memory["rows"] = 0
    with pytest.raises(OutOfMemory) as error:
        fit(tmp_path)
    said = str(error.value)
    assert said.startswith(
        "out of memory in a step of fit_policy, on a grid of 1 × 32 tokens (16 GiB asked): lower, "
        "in this order, "
    )
    assert "config.model.rows" not in said and "fit=auto" not in said and "\n" not in said


def test_unless_it_is_asked_for_the_fit_ends_and_says_so(tmp_path, memory):
    memory["rows"] = 4
    with pytest.raises(OutOfMemory) as error:
        fit(tmp_path, fits="fixed")
    said = str(error.value)
    assert memory["seen"] == [8]
    assert "config.model.rows=4; " in said
    assert "; config.model.fit=auto does that by itself; then run the same command" in said


def test_several_processes_end_rather_than_part(tmp_path, memory, monkeypatch):
    memory["rows"] = 4
    two = types.SimpleNamespace(count=lambda: 2)
    monkeypatch.setattr("alol_jax.training.fit_in_memory.processes", two)
    with pytest.raises(OutOfMemory):
        fit(tmp_path)
    assert memory["seen"] == [8]


def test_what_else_has_no_room_is_not_helped_by_smaller_steps(tmp_path, memory, monkeypatch):
    def annotate_grid(params, value_params, grid):
        raise jax.errors.JaxRuntimeError(SAID)

    monkeypatch.setattr("alol_jax.training.annotate.annotator", lambda *a: annotate_grid)
    with pytest.raises(OutOfMemory, match="in validation rows, on a grid of"):
        fit(tmp_path)
    assert memory["seen"] == []
