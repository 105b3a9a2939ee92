"""score: rows with rewards, from the scorers or as stored."""

import dataclasses

import numpy as np
import pytest

from alol_jax.errors import Interrupted, UserError
from alol_jax.rewards import reward as rewards
from alol_jax.stages.load import swap_responses
from alol_jax.stages.score import score
from alol_jax.tables.table import Table
from alol_jax.types import Example, RewardSpec, Scored, Splits, StageContext, Task
from configs import common
from tests.rewards.test_cosine import encoder_in, opened


@pytest.fixture(autouse=True)
def _scorers(monkeypatch):
    """ "length" is characters / 10; "known" is the share of texts that are training responses."""
    monkeypatch.setitem(
        rewards.SCORERS,
        "length",
        lambda train: lambda texts: np.array([len(one) / 10 for one in texts], np.float64),
    )
    monkeypatch.setitem(
        rewards.SCORERS,
        "known",
        lambda train: lambda texts: np.array([one in train for one in texts], np.float64),
    )


TASK = Task(
    name="toy",
    load=lambda options: None,
    files=lambda options: (),
    template="{prompt}",
    stop=(),
    rewards=(
        RewardSpec("long", "length", "{response}", 1.0),
        RewardSpec("seen", "known", "{response}", 1.0),
    ),
)


def _table(*examples: Example) -> Table[Example]:
    return Table.of(examples, Example)


def _splits(train_rewards=(), validation_rewards=(), test_rewards=()) -> Splits:
    return Splits(
        train=_table(Example("a", "p", ("yes", "maybe"), "web", tuple(train_rewards))),
        validation=_table(Example("b", "q", ("no",), "web", tuple(validation_rewards))),
        test=_table(Example("c", "r", ("yes",), "book", tuple(test_rewards))),
        notes=("a note",),
    )


def _score(tmp_path, weights, splits, said=None, *, stopping=lambda: False, **options):
    said = [] if said is None else said
    context = StageContext(tmp_path, stopping, said.append)
    chosen = common.get_config().score
    chosen.update(options)
    scoring = rewards.Scoring(TASK.rewards, {}, weights)
    return score(scoring, chosen, splits, context=context)


def test_every_response_becomes_a_row_with_its_reward(tmp_path):
    said = []
    scored = _score(tmp_path, {"long": 2.0, "seen": 0.5}, _splits(), said)
    assert scored.component_names == ("long", "seen")
    assert scored.max_reward == 2.5
    assert scored.train == (
        Scored("a", "p", "yes", "web", (0.3, 1.0), 1.1),
        Scored("a", "p", "maybe", "web", (0.5, 1.0), 1.5),
    )
    assert scored.validation == (Scored("b", "q", "no", "web", (0.2, 0.0), 0.4),)
    assert scored.test == (Scored("c", "r", "yes", "book", (0.3, 1.0), 1.1),)
    assert scored.notes == ("a note",)
    assert said == [
        "train: 2 rows, mean reward 1.300 (long 0.400, seen 1.000)",
        "validation: 1 rows, mean reward 0.400 (long 0.200, seen 0.000)",
        "test: 1 rows, mean reward 1.100 (long 0.300, seen 1.000)",
    ]


def test_many_rows_are_scored_in_pieces_as_they_would_be_at_once(tmp_path, monkeypatch):
    splits = dataclasses.replace(
        _splits(), train=_table(*(Example(f"{n}", "p", ("x" * (n % 9),), "s") for n in range(17)))
    )
    at_once = _score(tmp_path, {"long": 1.0, "seen": 0.5}, splits)
    monkeypatch.setattr("alol_jax.stages.score.CHUNK", 5)
    assert _score(tmp_path, {"long": 1.0, "seen": 0.5}, splits) == at_once
    with pytest.raises(Interrupted, match="score long: 1 of 4"):
        _score(tmp_path, {"long": 1.0, "seen": 0.5}, splits, stopping=lambda: True)


def test_stored_rewards_are_used_when_all_weights_are_zero(tmp_path):
    said = []
    scored = _score(
        tmp_path, {"long": 0.0, "seen": 0.0}, _splits((0.75, 0.0), (0.5,), (9.0,)), said
    )
    assert [row.reward for row in scored.train] == [0.75, 0.0]
    assert scored.test == (Scored("c", "r", "yes", "book", (), 9.0),)
    assert scored.component_names == ()
    assert scored.max_reward == 0.75  # of the training rows alone
    assert said[0].startswith("test: the reward of 1 of 1 rows is more than 10 interquartile ran")
    assert said[1] == "train: 2 rows, mean reward 0.375"


def test_stored_rewards_that_weights_overrule_are_mentioned(tmp_path):
    said = []
    scored = _score(tmp_path, {"long": 1.0, "seen": 0.0}, _splits((5.0, 5.0), (5.0,), (5.0,)), said)
    assert said[0] == "train: stored rewards are ignored, the weights ask for long"
    assert [row.reward for row in scored.train] == [0.3, 0.5]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (((), (), ()), "train example 'a' has no stored reward .* and every reward weight is 0"),
        (((1.0, 1.0), (), (1.0,)), "validation example 'b' has no stored reward"),
        (((1.0, float("nan")), (1.0,), (1.0,)), "train example 'a': the stored reward is nan"),
        (((1.0, 1.0), (1.0,), (-np.inf,)), "test example 'c': the stored reward is -inf"),
    ],
)
def test_a_stored_reward_that_cannot_be_used_names_the_example(tmp_path, stored, message):
    with pytest.raises(UserError, match=message):
        _score(tmp_path, {"long": 0.0, "seen": 0.0}, _splits(*stored))


def test_a_weight_for_no_reward_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="'lnog' is no reward of this task: did you mean 'long'"):
        _score(tmp_path, {"lnog": 1.0, "seen": 0.0}, _splits())


def test_a_score_beyond_its_bound_is_a_clear_error(tmp_path):
    train, validation = Example("a", "p", ("x" * 11,), "s"), Example("b", "q", ("y",), "s")
    splits = Splits(_table(train), _table(validation), _table(), ())
    with pytest.raises(UserError, match="scorer 'length' gave 1.1 for 'xxxxxxxxxxx'"):
        _score(tmp_path, {"long": 1.0, "seen": 0.0}, splits)


ONLY = {"long": 0.5, "seen": 0.0}  # 0.3, 0.5 for the training rows


def test_stored_scores_stand_and_a_row_without_one_is_scored(tmp_path):
    said = []
    splits = _splits((0.3, 0.5), (), (0.9,))
    scored = _score(tmp_path, ONLY, splits, said, stored=("train",))
    assert said[:2] == [
        "train: stored rewards are used; 2 were scored again and differ by at most 0.0000",
        "test: stored rewards are ignored, the weights ask for long",
    ]
    assert [row.components for row in scored.train] == [(0.3,), (0.5,)]
    assert [row.reward for row in scored.train] == [0.15, 0.25]
    assert scored.validation[0].components == (0.2,) and scored.validation[0].reward == 0.1
    assert scored.test[0].components == (0.3,)
    assert (scored.component_names, scored.max_reward) == (("long",), 0.5)


def test_stored_scores_that_the_scorer_contradicts_are_shown(tmp_path):
    with pytest.raises(UserError) as caught:
        _score(
            tmp_path, ONLY, _splits((0.31, 0.9), (0.2,), (0.3,)), stored=("train",), tolerance=0.02
        )
    said = str(caught.value)
    assert said.startswith("1 of 2 stored train rewards differ by more than 0.02 from what long gi")
    assert "'maybe': stored 0.900, scored 0.500" in said
    assert said.endswith("remove 'train' from config.score.stored to score its rows again")


def test_a_stored_score_beyond_the_bound_of_its_scorer_is_one_line(tmp_path):
    with pytest.raises(UserError, match="a: the stored reward is 1.5, long scores from 0 to 1"):
        _score(tmp_path, ONLY, _splits((1.5, 0.5), (0.2,), (0.3,)), stored=("train", "test"))


def test_a_stored_score_cannot_stand_for_several_components(tmp_path):
    with pytest.raises(UserError, match="a stored reward is one score, but long, seen make up"):
        _score(tmp_path, {"long": 1.0, "seen": 1.0}, _splits((0.3, 0.5)), stored=("train", "test"))


def test_words_are_scored_on_all_cores_as_on_one(tmp_path, monkeypatch):
    texts = [f"{'good bad awful great'.split()[n % 4]} word{n} {n % 7}" for n in range(60)]
    splits = dataclasses.replace(
        _splits(), train=Table.of((Example(t, t, (t,), "s") for t in texts), Example)
    )
    specs = tuple(
        RewardSpec(name, name, "{prompt}: {response}", 1.0)
        for name in ("vader_positivity", "tfidf_diversity", "nontoxicity")
    )
    scoring = rewards.Scoring(specs, {}, {spec.name: 1.0 for spec in specs})
    context = StageContext(tmp_path, lambda: False, lambda line: None)
    alone = score(scoring, common.get_config().score, splits, context=context)
    monkeypatch.setattr("alol_jax.stages.score.POOLED", 8)
    monkeypatch.setattr("alol_jax.stages.score.workers_for", lambda pieces: 2)
    assert score(scoring, common.get_config().score, splits, context=context) == alone


def test_of_the_splits_named_in_best_the_best_paid_response_of_each_prompt_stays(tmp_path):
    said = []
    several = Splits(
        train=_table(Example("a", "p", ("yes", "maybe"), "web")),
        validation=_table(Example("b", "q", ("no",), "web")),
        test=_table(
            Example("c", "r", ("four", "seventy", "one", "hundred"), "book"),  # 7 letters twice
            Example("d", "s", ("x",), "web"),
            Example("e", "t", ("", "yy", "y"), "web"),
        ),
        notes=(),
    )
    every = _score(tmp_path, {"long": 1.0, "seen": 0.0}, several)
    best = _score(tmp_path, {"long": 1.0, "seen": 0.0}, several, said, best=("test",))
    assert [(row.example_id, row.response) for row in best.test] == [
        *(("c", "seventy"), ("d", "x"), ("e", "yy"))
    ]
    assert set(best.test) <= set(every.test)
    assert (best.train, best.validation) == (every.train, every.validation)
    assert said[0] == "test: the best response to each prompt stays, 3 of 8"


def test_the_best_response_is_the_best_by_stored_rewards_where_they_are_used(tmp_path):
    splits = _splits((0.25, 0.125), (0.5,), (0.5,))
    best = _score(tmp_path, {"long": 0.0, "seen": 0.0}, splits, best=("train", "validation"))
    assert [(row.response, row.reward) for row in best.train] == [("yes", 0.25)]
    assert best.validation == _score(tmp_path, {"long": 0.0, "seen": 0.0}, splits).validation


def test_the_best_response_is_that_of_the_prompt_and_stays_as_often_as_it_is_repeated(tmp_path):
    train = _table(
        Example("a", "p", ("low", "high", "tied"), "s", (0.1, 0.9, 0.9)),
        Example("b", "q", ("one", "two"), "s", (0.5, 0.4)),
        Example("a (time 2)", "p", ("low",), "s", (0.1,)),
        Example("b (time 2)", "q", ("one", "two"), "s", (0.5, 0.4)),
        Example("a (time 3)", "p", ("high", "tied", "high"), "s", (0.9, 0.9, 0.9)),
        Example("b (time 3)", "q", ("one",), "s", (0.3,)),  # the text, but not its reward
    )
    splits = dataclasses.replace(_splits((), (0.5,), (0.5,)), train=train)
    best = _score(tmp_path, {"long": 0.0, "seen": 0.0}, splits, best=("train",))
    assert [(row.example_id, row.response, row.reward) for row in best.train] == [
        ("a", "high", 0.9),
        ("b", "one", 0.5),
        ("b (time 2)", "one", 0.5),
        ("a (time 3)", "high", 0.9),
    ]


def test_similarity_compares_with_the_best_responses_from_before_the_noise(tmp_path):
    models = {"similarity": opened(encoder_in(tmp_path / "model"), reads="similarity")}
    train = _table(*(Example(text, f"{text}?", (text,), "s") for text in ("dog", "a man", "hello")))
    splits = swap_responses(dataclasses.replace(_splits(), train=train), 1.0)
    said = []
    context = StageContext(tmp_path, lambda: False, said.append)
    scoring = rewards.Scoring(TASK.rewards, models, {"long": 0.0, "seen": 0.0, "similarity": 1.0})
    scored = score(scoring, common.get_config().score, splits, context=context)
    assert (scored.train["reward"] < 0.999).all()
    np.testing.assert_allclose(scored.validation["reward"], 1.0)
    assert {(row.prompt, row.responses) for row in scored.gold} == {
        ("q", ("no",)),
        ("r", ("yes",)),
        *((one.prompt, one.responses) for one in train),
    }
    other = rewards.Scoring(TASK.rewards, models, {"long": 1.0, "seen": 0.0, "similarity": 0.0})
    kept = score(other, common.get_config().score, splits, context=context).gold
    assert list(kept["prompt"]) == ["q", "r"]  # the test prompts may still be compared


def test_texts_that_a_reward_cuts_are_counted_in_the_log_and_the_notes(tmp_path):
    models = {"relevance": opened(encoder_in(tmp_path / "model"), max_tokens=4)}
    said = []
    context = StageContext(tmp_path, lambda: False, said.append)
    scoring = rewards.Scoring(TASK.rewards, models, {"long": 0.0, "seen": 0.0, "relevance": 1.0})
    scored = score(scoring, common.get_config().score, _splits(), context=context)
    note = "relevance: 1 of 6 texts have more than 4 tokens and are cut."  # maybe
    assert note in said and scored.notes == ("a note", note)
