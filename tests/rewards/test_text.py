"""Rewards: the published tf-idf formula by hand, bounds, weights, and bad scores."""

import pickle

import cloudpickle
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards import reward as rewards
from alol_jax.rewards import text
from alol_jax.tasks.text_rewards import NOVELTY, TEXT_REWARDS
from alol_jax.types import RewardSpec, Scored
from tests.tiny_run import scored_table

CORPUS = ["Red fox", "red dog", "blue dog runs"]
# N = 3. red and dog are in 2 documents: idf = ln(4/3) + 1 = 1.287682. The others are in 1:
# idf = ln(4/2) + 1 = 1.693147.


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # (1.287682, 1.693147) / 2.127175 = (0.605349, 0.795961), mean 0.700655, times 2/10
        ("red fox", 0.140131),
        # (2 * 1.287682, 1.693147) / 3.082085 = (0.835592, 0.549351), mean 0.692472, times 2/10
        ("Red RED fox!", 0.138494),
        # one word is the unit vector, times 1/10
        ("dog", 0.1),
        # equal idf: the mean is 1/sqrt(2), times 2/10
        ("blue fox", 0.141421),
        # n = 5: 7.654806 / 3.452027 / 5, no penalty
        ("red fox, dog blue runs", 0.443496),
        # words that no training response has do not count
        ("dog unknown words here now", 0.1),
        ("nothing known", 0.0),
        ("", 0.0),
        # words of one letter are no words
        ("a b c", 0.0),
    ],
)
def test_tfidf_diversity_is_the_published_formula(response, expected):
    score = text.tfidf_diversity(CORPUS)
    np.testing.assert_allclose(score([response]), [expected], atol=1e-6)


def test_tfidf_diversity_reaches_its_bound_with_five_words_of_equal_weight():
    score = text.tfidf_diversity(["one two three four five six"])
    texts = ["one two three four five", "one two three four", "one two three four five six"]
    np.testing.assert_allclose(score(texts), [5**-0.5, 0.2, 6**-0.5])
    (bound,) = (spec.bound for spec in TEXT_REWARDS if spec.scorer == "tfidf_diversity")
    assert bound == pytest.approx(score(texts).max())


def test_tfidf_diversity_of_wordless_training_responses_is_a_clear_error():
    with pytest.raises(UserError, match="no training response has a word"):
        text.tfidf_diversity(["?", "a"])


def test_positivity_orders_good_neutral_and_bad():
    good, neutral, bad = text.vader_positivity([])(["I love this!", "It is.", "I hate this."])
    assert 0 <= bad < 0.3 < neutral == 0.5 < 0.8 < good <= 1


def test_nontoxicity_orders_friendly_and_offensive():
    friendly, offensive = text.nontoxicity([])(["Have a nice day.", "You stupid moron."])
    assert 0 <= offensive < 0.1 < 0.9 < friendly <= 1


@pytest.mark.parametrize("name", rewards.SCORERS)
def test_a_score_does_not_depend_on_the_batch(name):
    score = rewards.SCORERS[name](CORPUS)
    texts = ["red dog!", "", "I hate the blue fox", "ünïcödé 🍋", "x" * 5000]
    together = score(texts)
    assert together.shape == (5,) and together.dtype == np.float64
    np.testing.assert_array_equal(together, np.concatenate([score([one]) for one in texts]))
    assert score([]).shape == (0,)


@pytest.mark.parametrize("name", rewards.SCORERS)
def test_a_scorer_can_be_sent_to_another_process(name):
    score = rewards.SCORERS[name](CORPUS)
    sent = pickle.loads(cloudpickle.dumps(score))
    texts = ["red dog\nThe dogs!", "blue"]
    np.testing.assert_array_equal(sent(texts), score(texts))


SPECS = (
    RewardSpec("positivity", "vader_positivity", "{response}", 1.0),
    RewardSpec("diversity", "tfidf_diversity", "{response}", 5**-0.5),
    RewardSpec("safety", "nontoxicity", "{response}", 1.0),
)


def _reward(specs, weights, train):
    """The reward of these components, by words."""
    named = {spec.name: weight for spec, weight in zip(specs, weights, strict=True)}
    return rewards.Scoring(tuple(specs), {}, named).reward(train)


def test_the_reward_is_the_weighted_sum_of_its_components():
    reward = _reward(SPECS, (1.0, 2.0, 0.5), CORPUS)
    components, total = reward.score(["p", "p"], ["red fox", "I love the blue dog"])
    assert reward.names == ("positivity", "diversity", "safety")
    assert components.shape == (2, 3)
    assert components[0, 1] == pytest.approx(0.140131, abs=1e-6)
    np.testing.assert_allclose(
        total, components[:, 0] + 2 * components[:, 1] + components[:, 2] / 2
    )
    assert reward.ends == pytest.approx((0, 1 + 2 * 0.4472136 + 0.5))
    assert (total <= reward.ends[1]).all()


@pytest.mark.parametrize(
    ("prompt", "response", "score"),
    [
        ("who wrote Frankenstein", "Who wrote Frankenstein?", 0.0),  # an echo
        ("What is AI?", "AI is the field of thinking machines.", 5 / 7),
        ("Tell me more.", "I am a wizard. I am a wizard.", 4 / 8),  # said before
        ("hi", "I'm fine", 1.0),
        ("hi", "...", 0.0),
        ("hi", "", 0.0),
    ],
)
def test_novelty_is_the_share_of_words_said_for_the_first_time(prompt, response, score):
    reward = _reward([NOVELTY], [1.0], CORPUS)
    components, _ = reward.score([prompt], [response])
    assert components.tolist() == [[pytest.approx(score)]]


def test_components_without_weight_are_left_out():
    reward = _reward(SPECS, (0.0, 1.0, 0.0), CORPUS)
    assert reward.names == ("diversity",)
    components, total = reward.score(["p"], ["dog"])
    assert components.tolist() == [[pytest.approx(0.1)]] and total.tolist() == [pytest.approx(0.1)]


def test_an_empty_batch_has_no_scores():
    components, total = _reward(SPECS, (1.0, 1.0, 1.0), CORPUS).score([], [])
    assert components.shape == (0, 3) and total.shape == (0,)
    assert _reward(SPECS, (1.0, 1.0, 1.0), CORPUS).score_rows(scored_table([]), []) == ()


def test_without_weights_nothing_can_score():
    reward = _reward(SPECS, (0.0, 0.0, 0.0), CORPUS)
    assert reward.names == () and reward.ends == (0, 0)
    with pytest.raises(UserError, match="nothing can score"):
        reward.score(["p"], ["r"])


def test_rows_keep_what_they_are_and_get_the_new_response_with_its_scores():
    reward = _reward(SPECS, (0.0, 3.0, 0.0), CORPUS)
    old = Scored("id", "prompt", "old", "web", (0.9, 0.9), 1.8)
    (row,) = reward.score_rows(scored_table([old]), ["dog"])
    assert (row.example_id, row.prompt, row.source) == ("id", "prompt", "web")
    assert (row.response, row.components) == ("dog", (pytest.approx(0.1),))
    assert row.reward == pytest.approx(0.3)
    assert type(row.reward) is float and type(row.components[0]) is float


def _fixed(monkeypatch, answer):
    """A scorer "fixed" that gives ``answer(text)``."""
    monkeypatch.setitem(
        rewards.SCORERS,
        "fixed",
        lambda train: lambda texts: np.array([answer(one) for one in texts], np.float64),
    )


def test_the_template_fills_in_prompt_and_response_literally(monkeypatch):
    seen = []
    _fixed(monkeypatch, lambda one: seen.append(one) or 0.5)
    spec = RewardSpec("r", "fixed", "Q: {prompt} A: {response} {x}", 1.0)
    _reward([spec], [1.0], []).score(["{response}"], ["{prompt} {"])
    assert seen == ["Q: {response} A: {prompt} { {x}"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.01])
def test_a_bad_score_names_scorer_text_and_value(monkeypatch, bad):
    _fixed(monkeypatch, lambda one: bad if one == "second" else 0.5)
    reward = _reward([RewardSpec("r", "fixed", "{response}", 1.0)], [1.0], [])
    with pytest.raises(UserError, match=f"scorer 'fixed' gave {bad} for 'second'"):
        reward.score(["p", "p"], ["first", "second"])


def test_rounding_at_the_bound_is_cut_off(monkeypatch):
    _fixed(monkeypatch, lambda one: 1 + 1e-9)
    components, _ = _reward([RewardSpec("r", "fixed", "{response}", 1.0)], [1.0], []).score(
        ["p"], ["r"]
    )
    assert components.tolist() == [[1.0]]


def test_weights_come_in_the_order_of_the_components():
    weights = {"safety": 3, "positivity": 1.0, "diversity": 0}
    assert rewards.Scoring(SPECS, {}, weights).reward(CORPUS).weights == (1, 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"positvity": 1.0},
            "config.rewards: 'positvity' is no reward of this task: did you mean 'positivity'",
        ),
        ({"zzz": 1.0}, "expected one of positivity, diversity, safety"),
        ({"positivity": 1.0, "safety": 1.0}, "config.rewards.diversity: set a weight"),
        ({"positivity": -1.0}, "config.rewards.positivity=-1.0: expected a number, 0 or"),
        ({"positivity": float("nan")}, "=nan: expected"),
        ({"positivity": float("inf")}, "=inf: expected"),
        ({"positivity": "1"}, "expected a number, got '1'"),
        ({"positivity": True}, "expected a number, got True"),
    ],
)
def test_a_bad_weight_names_the_reward(weights, message):
    with pytest.raises(UserError, match=message):
        rewards.Scoring(SPECS, {}, weights)


def test_an_unknown_scorer_names_the_near_miss():
    with pytest.raises(UserError, match="no scorer 'nontoxic': did you mean 'nontoxicity'"):
        _reward([RewardSpec("safety", "nontoxic", "{response}", 1.0)], [1.0], [])
