"""The race against PyTorch: what it reports, and that both sides train the same."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from alol_jax.objectives.registry import get_objective
from alol_jax.types import Targets
from benchmarks.against_pytorch import job as jobs
from benchmarks.against_pytorch.job import Job
from benchmarks.against_pytorch.report import decode_rows, markdown, train_rows
from tests.running import ROOT, environment

LENGTHS = ((3, 2), (5, 4), (7, 1), (2, 6))


def job():
    """Four rows, two pairs, two steps of two items."""
    return Job(
        prompts=[np.arange(p, dtype=np.int32) for p, _ in LENGTHS],
        responses=[np.arange(r, dtype=np.int32) for _, r in LENGTHS],
        reward=np.arange(4, dtype=np.float32),
        advantage=np.ones(4, np.float32),
        pairs=np.array([[0, 1], [3, 2]]),
        draws=np.array([[0, 1], [2, 2]]),
        pair_draws=np.array([[0, 0], [1, 0]]),
        options={"clip": 0.9},
    )


def result(*seconds, losses=(1.0, 2.0), peak=2**30):
    return {
        "seconds": list(seconds),
        "losses": list(losses),
        "peak_bytes": peak,
        "annotate_seconds": 2.0,
        "real": 0.9,
        "grids": "grids",
    }


def test_a_job_comes_back_as_it_was(tmp_path):
    jobs.save(tmp_path, job())
    found, wanted = jobs.load(tmp_path), job()
    for name in ("prompts", "responses"):
        for ours, theirs in zip(getattr(found, name), getattr(wanted, name), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for name in ("reward", "advantage", "pairs", "draws", "pair_draws"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert found.options == wanted.options


def test_a_prompt_counts_for_every_response_and_every_draw():
    assert job().real_tokens("nll") == 5 + 9 + 8 + 8
    assert job().real_tokens("dpo") == (5 + 9) * 3 + (8 + 8)


def test_times_and_losses_are_compared_step_by_step():
    sides = {
        "jax": [result(1.0, 1.0, losses=(1.0, 2.0)), result(2.0, 2.0)],
        "torch": [result(3.0, 5.0, losses=(1.0, 2.5)), result(8.0, 8.0)],
    }
    (row,) = train_rows(job(), {"nll": sides})
    assert row["ratio_range"] == (3.0, 5.0) and row["seconds"] == {"jax": 1.5, "torch": 6.5}
    assert row["loss_difference"] == pytest.approx(0.2)
    assert row["annotate_seconds_per_item"] == 0.5
    assert row["ratio_of_one_epoch"] == pytest.approx(3.25 / (0.75 + 0.5))
    assert row["epoch_seconds"]["jax"] == pytest.approx(1.5 / 2 * 4)
    assert row["tokens_per_second"]["jax"] == pytest.approx(30 / 2 / 1.5)
    text = markdown([row], [])
    assert "| nll | PyTorch | 0.750 | 3.250 | 4.00 (3.00 to 5.00) |" in text
    assert "nll 0.500 s, then PyTorch takes 2.60 ×" in text
    assert "| nll | here | 1 | 2 |" in text and "| nll | PyTorch | 1 | 2.5 |" in text


def test_each_other_side_has_a_row_of_its_own():
    sides = {name: [result(second, second)] for name, second in (("jax", 1.0), ("torch", 4.0))}
    sides["trl"] = [result(2.0, 2.0)]
    found = {"nll": {"jax": [result(0.5, 0.5)], "torch": [result(1.0, 1.0)]}, "dpo": sides}
    rows = train_rows(job(), found)
    assert [(row["objective"], row["other"], row["ratio"]) for row in rows] == [
        ("nll", "torch", 2.0),
        ("dpo", "torch", 4.0),
        ("dpo", "trl", 2.0),
    ]
    assert [row["by_first_objective"] for row in rows] == [1.0, 2.0, 2.0]


def test_decoding_compares_tokens_per_second_and_the_answers():
    ours = {"tokens": 20, "seconds": 2.0, "answers": [[1, 2], [3]], "said": "2 slots"}
    theirs = {"tokens": 20, "seconds": 4.0, "answers": [[1, 2], [4]]}
    (row,) = decode_rows({"load": {"jax": [ours], "torch": [theirs]}})
    assert row["ratio"] == 2.0 and row["same_answers"] == 0.5
    assert "| load | 10 | 5 | 2.00 (2.00 to 2.00) | 50% | 2 slots |" in markdown([], [row])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["nll", "a_lol", "a_lol_seq", "dpo"])
def test_both_sides_have_the_same_loss_and_gradient(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from benchmarks.against_pytorch.jax_side import HYPER
    from benchmarks.against_pytorch.torch_side import LOSSES

    race = dataclasses.replace(job(), options={"clip": 0.9, "beta": 0.1})
    members, _ = race.items(name)
    logp, before = -np.random.default_rng(0).uniform(0.1, 3.0, (2, members.size, 5))
    theirs = torch.tensor(logp, requires_grad=True)
    loss = LOSSES[name](theirs, torch.tensor(before), race, members)
    loss.backward()

    lead = members.shape if name == "dpo" else (members.size,)
    shaped = [x.reshape(*lead, -1).astype(np.float32) for x in (logp, before)]
    numbers = [x[members].reshape(lead) for x in (race.reward, race.advantage)]
    targets = Targets(np.ones_like(shaped[0]), shaped[1], *numbers)
    chosen = {key: race.options[key] for key in HYPER[name]}

    def ours(logp):
        return get_objective(name).loss(logp, targets, **chosen)[0]

    found, gradient = jax.value_and_grad(ours)(shaped[0])
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient.reshape(logp.shape), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_train_the_same_steps_and_write_the_same_answers(tmp_path):
    for name in ("torch", "transformers", "peft"):
        pytest.importorskip(name)
    file = tmp_path / "mine.jsonl"
    rows = (
        {"prompt": f"Why {n}?", "responses": [f"Because {n}.", "No."], "rewards": [0.9, 0.1]}
        for n in range(20)
    )
    file.write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.against_pytorch", "--config=configs/own.py:debug"]
        + [f"--config.task.train_file={file}", "--config.task.validation=2", "--rows=12"]
        + ["--config.task.test=2", "--steps=3", "--rounds=1", f"--out={tmp_path / 'race'}"]
        + ["--objectives=nll,dpo"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    training, decoding = json.loads((tmp_path / "race" / "race.json").read_text())
    trl = ["dpo"] * bool(importlib.util.find_spec("trl"))
    assert [row["objective"] for row in training] == ["nll", "dpo", *trl]
    assert all(row["loss_difference"] < 1e-3 for row in training)
    assert all(row["same_answers"] == 1.0 for row in decoding)
    assert "| dpo |" in done.stdout
