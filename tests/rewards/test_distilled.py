"""A reward distilled from stored rewards: fitted, measured, saved, named in a config, scoring."""

import dataclasses
import json

import numpy as np
import pytest

from alol_jax import distill_reward
from alol_jax.distill_reward import Rows, agreement_on, distil, rows_of
from alol_jax.errors import UserError
from alol_jax.models.language_model import open_language_model
from alol_jax.reports.results import EVERY
from alol_jax.rewards.distilled import check_output_folder, save_distilled
from alol_jax.rewards.opening import open_reward_models
from alol_jax.runs.checkpoint import load_params
from alol_jax.tables.table import Table
from alol_jax.tasks.registry import TASKS
from alol_jax.training import distillation
from alol_jax.types import Example, Splits
from configs import common
from tests.tiny_run import TASK, mesh_of, tiny_lm

GOOD, BAD = "aaaa", "zzzz"


def examples(split, count, first=0):
    """Pairs: a response of a's earns 0.9, one of z's 0.2; the prompt says nothing."""
    rows = (
        Example(f"{split}{n}", f"{split} {n}", (GOOD, BAD), ("web", "book")[n % 2], (0.9, 0.2))
        for n in range(first, first + count)
    )
    return Table.of(rows, Example)


SPLITS = Splits(examples("train", 24), examples("validation", 6), examples("test", 8), ())


@pytest.fixture(scope="module")
def config():
    config = common.get_config()
    config.task.name = "toy"
    config.distill.update({"epochs": 8, "batch_size": 8, "dropout": 0.0})
    config.distill.optimizer.learning_rate = 1e-2
    lm = tiny_lm()
    config.model.update({k: v for k, v in lm.options.items() if not isinstance(v, dict)})
    config.model.lora.update(lm.options["lora"])
    return config


@pytest.fixture(scope="module")
def distilled(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "reward"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", dataclasses.replace(TASK, load=lambda *given: SPLITS))
        said, found = distil(config, tiny_lm(), folder)
    return folder, said, found


def opened(folder, lm=None):
    wanted = common.reward_model(str(folder), reads="oasst")
    lm = tiny_lm() if lm is None else lm
    return open_reward_models({"rm": wanted}, ["rm"], TASK.exchange, lm)["rm"]


def test_it_learns_what_tells_good_from_bad_and_says_how_well(distilled):
    _, said, found = distilled
    assert set(found) == {EVERY, "book", "web"}
    assert found[EVERY].rows == 16 and found["web"].rows == 8
    assert found[EVERY].order.mean == 1.0 and found[EVERY].by_length == 0.5
    assert found[EVERY].pearson > 0.9 and found[EVERY].mse < found[EVERY].variance / 2
    assert said.figures["pearson"] == found[EVERY].pearson and said.figures["rows"] == 48


def test_what_is_saved_scores_as_it_was_measured(distilled):
    folder, _, found = distilled
    prompts = [one.prompt for one in SPLITS.test for _ in one.responses]
    scores = opened(folder)(prompts, [GOOD, BAD] * 8)
    wanted = np.array([0.9, 0.2] * 8)
    assert np.mean((scores - wanted) ** 2) == pytest.approx(found[EVERY].mse, rel=1e-3)


def test_it_stands_on_the_base_of_the_run_where_that_is_the_same(distilled, tmp_path):
    folder, said, _ = distilled
    assert opened(folder).lm is tiny_lm()
    other = opened(folder, tiny_lm(mesh=mesh_of(4, fsdp=2)))  # same weights on another mesh
    np.testing.assert_allclose(
        other(["a", "b"], [GOOD, BAD]), opened(folder)(["a", "b"], [GOOD, BAD]), atol=1e-5
    )
    elsewhere = opened(folder, tiny_lm_of("random:gpt-neox-tiny"))
    assert elsewhere.lm.options["path"] == "random:llama-tiny"
    assert elsewhere.fingerprint == opened(folder).fingerprint


def tiny_lm_of(path):
    options = common.get_config().model
    options.update({"path": path, "dtype": "float32", "max_prompt": 16, "max_response": 8})
    return open_language_model(options, mesh_of(1))


def test_another_base_than_it_was_fitted_on_is_one_line(distilled, tmp_path):
    folder, _, _ = distilled
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "head").symlink_to(folder / "head")
    said = json.loads((folder / "reward.json").read_text())
    said["base"]["weights"] = "other"
    (changed / "reward.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="rm: the model at random:llama-tiny is not the one that"):
        opened(changed)
    (changed / "reward.json").write_text(json.dumps(said | {"format": 99}))
    with pytest.raises(UserError, match="is damaged or of another format: distil it again"):
        opened(changed)


def test_a_folder_that_holds_one_is_refused_before_any_work(distilled, config, monkeypatch):
    folder, _, _ = distilled
    monkeypatch.setattr(distill_reward, "get_task", None)
    with pytest.raises(UserError, match="reward is not empty: choose another --out"):
        distil(config, tiny_lm(), folder)


@pytest.mark.parametrize("rewards", [(), (1.5, 0.2), (0.5, float("nan"))])
def test_rows_without_a_stored_reward_between_0_and_1_are_one_line(rewards):
    bad = dataclasses.replace(SPLITS.train[0], rewards=rewards)
    with pytest.raises(UserError, match="train example 'train0': the stored reward is"):
        rows_of("train", Table.of([bad], Example))


def test_agreement_counts_pairs_of_one_prompt_with_different_rewards():
    rows = Rows(
        ("p",) * 6,
        ("a", "bb", "ccc", "a", "b", "c"),
        np.array([0.1, 0.5, 0.9, 0.3, 0.3, 0.7]),
        np.array([0, 0, 0, 1, 1, 1]),
        np.array(["s"] * 6),
    )
    # Of five pairs (one has equal rewards): 0-1 right, 0-2 right, 1-2 tied, 3-5 wrong, 4-5 right.
    found = agreement_on(np.array([0.0, 0.4, 0.4, 0.9, 0.2, 0.5]), rows)
    assert (found.pairs, found.within) == (5, True)
    assert found.order.mean == pytest.approx(3.5 / 5)
    assert found.by_length == pytest.approx((3 + 0.5 + 0.5) / 5)
    assert agreement_on(rows.reward, rows).pearson == pytest.approx(1.0)
    assert agreement_on(rows.reward**3, rows).spearman == pytest.approx(1.0)
    assert agreement_on(rows.reward, rows).mse == 0


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"format": 1}', '{"format": 2, "more": 2}'])
def test_a_damaged_description_is_one_line(text, tmp_path):
    (tmp_path / "reward.json").write_text(text)
    with pytest.raises(UserError, match="config.reward_models.rm: .*reward.json is damaged"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "config.distill.batch_size=0 must be 1 or more"),
        ({"epochs": -1}, "config.distill.epochs=-1 must be 1 or more"),
        ({"heads": 0}, "config.distill.heads=0 must be 1 or more"),
        ({"heads": 3}, "config.distill.heads=3 does not divide the model's width 64"),
    ],
)
def test_options_that_cannot_work_are_one_line(changes, message, config, tmp_path):
    wrong = config.copy_and_resolve_references()
    wrong.distill.update(changes)
    with pytest.raises(UserError, match=message):
        distil(wrong, tiny_lm(), tmp_path / "out")


def test_what_an_interrupted_write_left_is_written_over(tmp_path, distilled):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "half").write_text("")
    folder, said, _ = distilled
    save_distilled(tmp_path, said, load_params(folder / "head"))
    assert opened(tmp_path).fingerprint == opened(folder).fingerprint
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: choose another --out"):
        check_output_folder(tmp_path / "file")


def test_features_beyond_the_memory_are_refused_by_the_rows(monkeypatch, config, tmp_path):
    monkeypatch.setattr(distillation.os, "sysconf", lambda name: 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", dataclasses.replace(TASK, load=lambda *given: SPLITS))
        with pytest.raises(UserError, match="take fewer rows .config.task.limit."):
            distil(config, tiny_lm(), tmp_path / "out")
