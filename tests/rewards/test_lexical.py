"""Word coverage by stems, and METEOR by hand."""

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards.lexical import check_meteor, concept_coverage, meteor
from alol_jax.rewards.reward import Scoring
from alol_jax.tasks.registry import TASKS
from tests import wordnet


@pytest.mark.parametrize(
    ("concepts", "response", "expected"),
    [
        ("dog run field", "Dogs are running in the fields.", 1.0),
        ("dog run field", "A dog sleeps.", 1 / 3),
        ("dog run", "DOG; ran", 0.5),  # a stem, not a lemma
        ("dog dogs run", "a dog", 0.5),  # the same concept once
        ("dog", "", 0.0),
        ("dog", "hotdogs", 0.0),
        ("", "a dog", 0.0),
        ("dog", "no\na dog", 1.0),
    ],
)
def test_coverage_is_the_share_of_concepts_whose_stem_the_response_has(
    concepts, response, expected
):
    score = concept_coverage([])
    np.testing.assert_allclose(score([f"{concepts}\n{response}"]), [expected])


def test_the_task_gives_coverage_its_concepts_without_the_decoration():
    task = TASKS["common_gen"]
    weights = {spec.name: float(spec.name == "coverage") for spec in task.rewards}
    reward = Scoring(task.rewards, {}, weights).reward([])
    assert reward.names == ("coverage",) and reward.ends == (0.0, 1.0)
    _, total = reward.score(["dog run"] * 2, ["I generate a sentence.", "A dog runs."])
    np.testing.assert_array_equal(total, [0.0, 1.0])


# F = P R / (0.9 P + 0.1 R), times 1 - 0.5 (chunks / matches)^3
@pytest.mark.parametrize(
    ("references", "response", "expected"),
    [
        # 3 of 3 and 3 of 3 in one run: 1 - 0.5 / 27
        (["the cat sat"], "The cat sat", 0.981481),
        # P = 1/2, R = 1/1: F = 0.5 / 0.55, one match in one run
        (["cat"], "cat purrs", 0.454545),
        # two matches, in two runs
        (["cat dog"], "dog cat", 0.5),
        # by stem, in one run of two: 1 - 0.5 / 8
        (["dogs running"], "dog runs", 0.9375),
        # by synonym
        (["big car"], "big auto", 0.9375),
        # the best reference counts
        (["nothing", "the cat sat"], "the cat sat", 0.981481),
        # punctuation is a word of its own
        (["cat."], "cat .", 0.9375),
        (["cat"], "dog", 0.0),
        (["cat"], "", 0.0),
    ],
)
def test_meteor_matches_words_stems_and_synonyms(references, response, expected, monkeypatch):
    wordnet.stand_in(monkeypatch, ("car", "auto"))
    assert meteor(references, response) == pytest.approx(expected, abs=1e-6)


def test_a_missing_wordnet_is_one_line_with_the_command(monkeypatch):
    wordnet.missing(monkeypatch)
    with pytest.raises(UserError) as caught:
        check_meteor("config.evaluate.measures")
    assert str(caught.value) == (
        "config.evaluate.measures: METEOR needs WordNet, which nltk does not find here: run "
        "`python -m nltk.downloader wordnet`"
    )
    wordnet.stand_in(monkeypatch)
    check_meteor("config.evaluate.measures")
