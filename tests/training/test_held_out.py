"""What stored rewards say of a policy: each measure is the mean of its column."""

import numpy as np
import pytest

from alol_jax.training import held_out
from alol_jax.training.held_out import (
    LIKENESS,
    LIKENESS_GAP,
    LOGP_GAP,
    ORDER,
    ORDER_OF_RATIO,
    PER_TOKEN,
    Likelihoods,
    better_half,
    columns_of,
    paid,
)
from tests.tiny_run import scored_rows

# Prompt 0 has two rewards, prompt 1 one reward twice, prompt 2 three.
ROWS = scored_rows(7).replace(
    example_id=["a", "b", "a", "b", "c", "c", "c"],
    response=["good", "x", "bad", "y", "best", "middle", "worst"],
    reward=[1.0, 0.5, -1.0, 0.5, 9.0, 8.0, 7.0],
)
ANSWERS = ("good", "x", "worst")
OF = Likelihoods(
    logp=np.array([-1.0, -2.0, -2.0, -2.0, -9.0, -3.0, -6.0]),
    ref_logp=np.array([-1.0, -2.0, -1.0, -2.0, -9.5, -1.0, -6.0]),
    tokens=np.array([1, 2, 4, 2, 9, 1, 3]),
)


def test_the_best_and_the_worst_paid_response_of_each_prompt_are_found():
    found = paid(ROWS)
    assert found.best == ("good", "x", "best") and found.worst == ("bad", "y", "worst")
    assert found.gap.tolist() == [True, False, True]


def test_the_likeness_gap_is_over_the_prompts_with_two_rewards(monkeypatch):
    monkeypatch.setattr(held_out, "chrf", lambda one, other: 100.0 * (one == other))
    found = columns_of(ROWS, ANSWERS, OF)
    assert found[LIKENESS_GAP].values.tolist() == [100.0, -100.0]
    assert found[LIKENESS_GAP].prompt.tolist() == [0, 2]
    assert found[LIKENESS].values.tolist() == [100.0, 100.0, 0.0]


def test_each_order_counts_the_pairs_that_its_score_orders_as_the_rewards_do():
    found = columns_of(ROWS, ANSWERS, OF)
    shares = {name: found[name].values.mean() for name in found}
    # Pairs: good-bad, best-middle, best-worst, middle-worst.
    assert shares[ORDER] == pytest.approx(np.mean([1, 0, 0, 1]))
    assert shares[ORDER + PER_TOKEN] == pytest.approx(np.mean([0, 1, 1, 0]))
    assert shares[ORDER_OF_RATIO] == pytest.approx(np.mean([1, 1, 1, 0]))
    assert shares[ORDER_OF_RATIO + PER_TOKEN] == pytest.approx(np.mean([1, 1, 1, 0]))
    itself = columns_of(ROWS, ANSWERS, OF._replace(logp=OF.ref_logp))
    assert set(itself[ORDER_OF_RATIO].values) == {0.5}


def test_the_logp_gap_is_between_the_halves_of_the_rows():
    column = columns_of(ROWS, ANSWERS, OF)[LOGP_GAP]
    each, better = OF.logp / OF.tokens, np.array([1, 0, 0, 0, 1, 1, 1], bool)
    assert column.values.mean() == pytest.approx(each[better].mean() - each[~better].mean())


@pytest.mark.parametrize(
    ("reward", "better"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1]),
        ([0, 1, 1, 1], [0, 1, 1, 1]),
        ([0, 0, 0, 1], [0, 0, 0, 1]),
        ([0, 0, 1, 2, 2], [0, 0, 1, 1, 1]),
    ],
)
def test_rows_of_one_reward_stay_in_one_half(reward, better):
    assert better_half(np.array(reward, float)).tolist() == [bool(b) for b in better]


def test_what_the_rows_cannot_give_is_absent():
    alone = ROWS.replace(example_id=list("abcdefg"))
    assert set(columns_of(alone, ["x"] * 7, OF)) == {LIKENESS, LOGP_GAP}
    equal = ROWS.replace(reward=np.ones(7))
    assert set(columns_of(equal, ANSWERS, OF)) == {LIKENESS}
