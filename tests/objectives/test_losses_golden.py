"""The losses say what the published implementation said: its recorded values."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from alol_jax.types import Targets
from tests.objectives.cases import SINGLE, WITH_RATIO, assert_same, evaluate

GOLDEN = Path(__file__).parents[1] / "golden"


@functools.cache
def golden(file: str) -> dict[str, dict[str, np.ndarray]]:
    """Case -> array name -> array."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN / file) as archive:
        for key in archive.files:
            case, array = key.split("/")
            cases.setdefault(case, {})[array] = archive[key]
    return cases


def golden_cases(file: str, *prefixes: str) -> list[str]:
    return [case for case in golden(file) if case.startswith(prefixes)]


def published_spelling(case: str) -> tuple[str, dict[str, float | None], str]:
    """Our objective, its hyper-parameters and its column of weights for a recorded case."""
    script, name, clip, beta, _ = case.split("__")
    clip = None if clip == "clipNone" else float(clip.removeprefix("clip"))
    beta = None if beta == "betaNone" else float(beta.removeprefix("beta"))
    column = "clamped"
    if script == "hha" and beta:
        column = "reward" if name == "r_lol" else "clamped"
        name = "a_lol_kl"
    elif script == "hha" and name == "a_lol_ref_free":
        column = "unclamped"
    hyper = {"a_lol_kl": {"beta": beta}, "r_gold": {"floor": 0.1}}.get(name, {})
    return name, {"clip": clip} if name in WITH_RATIO else hyper, column


@pytest.mark.parametrize("case", golden_cases("objectives.npz", ""))
def test_the_published_objectives_are_met(case):
    name, hyper, column = published_spelling(case)
    arrays = golden("objectives.npz")[case]
    advantage = arrays["rewards"] - arrays["values"]
    advantage = {
        "clamped": np.maximum(advantage, 0.0),
        "unclamped": advantage,
        "reward": arrays["rewards"],
    }[column]
    targets = Targets(arrays["mask"], arrays["reference_logps"], arrays["rewards"], advantage)
    recorded = arrays["loss"], arrays["grad_policy_logps"]
    assert_same(evaluate(name, arrays["policy_logps"], targets, **hyper), recorded, 2e-5)


@pytest.mark.parametrize("case", golden_cases("baselines.npz", "dpo"))
def test_the_published_dpo_is_met(case):
    arrays = golden("baselines.npz")[case]
    _, beta, reference, _ = case.split("__")
    name = {"ref": "dpo", "reffree": "dpo_ref_free"}[reference]
    logp = np.stack([arrays["chosen"], arrays["rejected"]], axis=1)[..., None]
    ref_logp = np.stack([arrays["ref_chosen"], arrays["ref_rejected"]], axis=1)[..., None]
    unread = np.full(logp.shape[:-1], np.nan)
    targets = Targets(np.ones_like(logp), ref_logp, unread, unread)
    loss, grad, metrics = evaluate(name, logp, targets, beta=float(beta.removeprefix("beta")))
    recorded = np.stack([arrays["grad_chosen"], arrays["grad_rejected"]], axis=1)
    assert_same((loss, grad[..., 0]), (arrays["loss"], recorded), 2e-5)
    if name == "dpo":
        for ours, theirs in (("chosen", "chosen_rewards"), ("rejected", "rejected_rewards")):
            np.testing.assert_allclose(
                metrics[f"{ours}_reward"], arrays[theirs].mean(), rtol=2e-5, atol=2e-5
            )


@pytest.mark.parametrize("case", golden_cases("baselines.npz", "pro"))
def test_the_published_pro_is_met(case):
    """Sums and lengths are recorded: the sum is spread over that many tokens, whose gradients are
    each that of the sum."""
    arrays = golden("baselines.npz")[case]
    lengths = arrays["suffix_lengths"]
    mask = np.arange(lengths.max() + 1) < lengths[..., None]
    logp = np.where(mask, (arrays["sum_scores"] / lengths)[..., None], np.nan).astype(np.float32)
    targets = Targets(mask, np.full(mask.shape, np.nan), arrays["rewards"], arrays["rewards"])
    recorded = np.where(mask, arrays["grad_sum_scores"][..., None], 0.0)
    sft_weight = float(arrays["sft_weight"])
    got = evaluate("pro", logp, targets, sft_weight=sft_weight)
    assert_same(got, (arrays["loss"], recorded), 2e-5)


def test_no_golden_case_is_left_out():
    recorded = {published_spelling(case)[0] for case in golden_cases("objectives.npz", "")}
    assert recorded <= set(SINGLE)  # an objective of our own has no published values
    assert len(golden_cases("objectives.npz", "")) == 78
    assert len(golden_cases("baselines.npz", "dpo")) == 8
    assert len(golden_cases("baselines.npz", "pro")) == 4
    here_and_elsewhere = golden_cases("baselines.npz", "dpo", "pro", "ppo", "value_head")
    assert sorted(here_and_elsewhere) == sorted(golden("baselines.npz"))
