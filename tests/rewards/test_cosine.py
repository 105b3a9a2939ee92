"""Relevance and similarity: cosines of means, whatever lies beside; what is refused; parity."""

import json

import jax
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards.opening import open_reward_models
from alol_jax.rewards.reward import Scoring
from alol_jax.types import Exchange, Gold
from configs import common
from tests.models.tiny_classifiers import CLASSIFIERS, random_classifier, write_classifier
from tests.rewards.test_classifier import EOS, tokenizer_beside
from tests.tiny_run import mesh_of, tiny_lm

BODY = CLASSIFIERS["RobertaModel"].body
PARAMS = random_classifier(CLASSIFIERS["RobertaModel"])
PROMPTS = ["the old man", "a dog", "a much longer text that is read, all of it", "a dog"]
RESPONSES = ["a man", "a dog", "no", "that dog, the old one"]
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")


def read(prompt, response):
    return Exchange((prompt,), response, (prompt, response))


def sentence_files(folder, *, width=BODY.config.width, mode="mean_tokens", limit=60, lower=False):
    """What sentence-transformers writes beside a model."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": limit, "do_lower_case": lower})
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {f"pooling_mode_{name}": name == mode for name in MODES}
    pooling["word_embedding_dimension"] = width
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def encoder_in(folder, params=PARAMS, architecture="RobertaModel", **files):
    write_classifier(folder, "RobertaModel", params, architectures=[architecture])
    tokenizer_beside(folder, special=[*"0123456", EOS])
    sentence_files(folder, **files)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return encoder_in(tmp_path_factory.mktemp("sentences") / "model")


def opened(folder, *, lm=None, **changes):
    chosen = common.reward_model(str(folder), reads="relevance")
    chosen.update({"max_tokens": 64} | changes)
    lm = tiny_lm() if lm is None else lm
    return open_reward_models({"sim": chosen}, ["sim"], read, lm)["sim"]


def unit_of(model, text, limit=60):
    """The mean of a text's hidden states, alone in its row, of length 1."""
    encoder = model.encoder
    ids = np.array([encoder.tokenizer.encode_single(text, limit=limit)])
    hidden = jax.jit(encoder.stored.body.hidden)(encoder.stored.params, ids, np.ones_like(ids))
    mean = np.asarray(hidden, np.float64)[0].mean(axis=0)
    return mean / np.sqrt(np.sum(mean**2))


def test_relevance_is_the_cosine_of_prompt_and_response_clipped_at_zero(folder):
    model = opened(folder)
    scores = model(PROMPTS, RESPONSES)
    assert scores.dtype == np.float64 and scores.shape == (4,)
    cosines = [
        unit_of(model, prompt) @ unit_of(model, response)
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    np.testing.assert_allclose(scores, np.maximum(cosines, 0), atol=1e-6)
    assert scores[1] == pytest.approx(1.0) and scores[[0, 2, 3]].max() < 0.999
    assert len(set(scores.round(5))) == 4


def test_texts_that_point_away_from_each_other_score_zero(folder, monkeypatch):
    model = opened(folder)
    units = {"up": [1.0, 0.0], "down": [-0.6, 0.8], "side": [0.6, 0.8]}
    monkeypatch.setattr(
        type(model.encoder), "embed", lambda self, texts: np.array([units[text] for text in texts])
    )
    np.testing.assert_allclose(model(["up", "up"], ["down", "side"]), [0.0, 0.6])


GOLD = (Gold("p", ("a dog", "the man")), Gold("q", ("no",)))


def test_similarity_is_the_cosine_with_the_nearest_gold_response(folder):
    model = opened(folder, reads="similarity").with_gold(GOLD)
    said = ["a man", "the man", "the man"]
    scores = model(["p", "p", "q"], said)
    both = [unit_of(model, "a man") @ unit_of(model, gold) for gold in GOLD[0].responses]
    expected = [max(both), 1.0, unit_of(model, "the man") @ unit_of(model, "no")]
    np.testing.assert_allclose(scores, np.maximum(expected, 0), atol=1e-6)
    assert abs(both[0] - both[1]) > 1e-3 and scores[2] < 0.999


def test_a_prompt_without_gold_response_is_one_line_that_names_it(folder):
    model = opened(folder, reads="similarity").with_gold(GOLD)
    said = "config.reward_models.sim: the data has no response to 'who are you' to compare with"
    with pytest.raises(UserError, match=said) as caught:
        model(["p", "who are you"], ["a", "b"])
    assert "\n" not in str(caught.value)


def test_an_empty_response_scores_zero_and_is_counted(folder):
    for model in (opened(folder), opened(folder, reads="similarity").with_gold(GOLD)):
        scores = model(["p", "p", "q"], ["the man", "", " \n"])
        assert scores[0] > 0 and scores[1:].tolist() == [0, 0]
        assert model.notes(["p", "p", "q"], ["the man", "", " \n"]) == (
            "2 of 3 responses are empty and score 0.",
        )
        assert model(["p"], [""]).tolist() == [0.0]


def test_texts_that_are_cut_are_counted_each_once(folder):
    model, long = opened(folder, max_tokens=8), "a much longer text"
    notes = model.notes([long, long, "a dog"], ["no", "no", "a dog"])
    assert notes == ("1 of 3 texts have more than 8 tokens and are cut.",)
    assert model.notes(["12345678"], ["a"]) == ()  # exactly as many as there may be


def test_the_reward_hands_on_gold_responses_and_notes(folder):
    models = {name: opened(folder, reads=name) for name in ("relevance", "similarity")}
    scoring = Scoring((), models, {"relevance": 1.0, "similarity": 2.0})
    assert scoring.compares
    reward = scoring.reward([], GOLD)
    components, total = reward.score(["p"], ["the man"])
    assert components[0, 1] == pytest.approx(1.0) and reward.ends == (0.0, 3.0)
    assert total[0] == pytest.approx(components[0, 0] + 2)
    assert reward.notes(["p"], [""]) == tuple(
        f"{name}: 1 of 1 responses are empty and score 0." for name in models
    )
    alone = Scoring((), models, {"relevance": 1.0, "similarity": 0.0})
    assert not alone.compares and alone.reward([]).names == ("relevance",)


def test_scorers_of_one_encoder_share_it(folder):
    both = {
        name: common.reward_model(str(folder), reads=name) for name in ("relevance", "similarity")
    }
    for wanted in both.values():
        wanted.max_tokens = 64
    models = open_reward_models(both, tuple(both), read, tiny_lm())
    assert models["relevance"].encoder is models["similarity"].encoder
    both["similarity"].dtype = "bfloat16"
    models = open_reward_models(both, tuple(both), read, tiny_lm())
    assert models["relevance"].encoder is not models["similarity"].encoder


def test_a_score_is_the_same_alone_beside_others_and_on_eight_devices(folder):
    model = opened(folder)
    together = model(PROMPTS, RESPONSES)
    alone = [model([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(model(RESPONSES, PROMPTS), together, atol=1e-6)
    eight = opened(folder, lm=tiny_lm(mesh=mesh_of(8, fsdp=2, tensor=2)))
    np.testing.assert_allclose(eight(PROMPTS, RESPONSES), together, atol=1e-5)
    assert model([], []).shape == (0,)


@pytest.mark.parametrize(("said", "own"), [(8, 60), (64, 8)])
def test_a_long_text_loses_its_end_at_the_smaller_limit(said, own, tmp_path):
    model = opened(encoder_in(tmp_path / "model", limit=own), max_tokens=said)
    expected = max(unit_of(model, PROMPTS[2], limit=8) @ unit_of(model, "no", limit=8), 0)
    assert model(PROMPTS[2:3], ["no"])[0] == pytest.approx(expected, abs=1e-6)


def test_a_body_is_read_whatever_head_config_json_names(folder, tmp_path):
    other = opened(encoder_in(tmp_path / "model", architecture="RobertaForMaskedLM"))
    np.testing.assert_array_equal(other(PROMPTS, RESPONSES), opened(folder)(PROMPTS, RESPONSES))


def test_the_fingerprint_follows_weights_tokenizer_and_limit_but_not_the_place(folder, tmp_path):
    first = opened(folder).fingerprint
    other = encoder_in(tmp_path / "other")
    assert opened(other).fingerprint == first
    assert opened(other, lm=tiny_lm(mesh=mesh_of(8))).fingerprint == first
    assert opened(other, max_tokens=32).fingerprint != first
    assert opened(other, reads="similarity").fingerprint != first
    assert opened(other, dtype="bfloat16").fingerprint != first
    tokenizer_beside(other, special=[*"012345", EOS])
    assert opened(other).fingerprint != first
    changed = PARAMS | {"embed/embedding": PARAMS["embed/embedding"] + 1}
    assert opened(encoder_in(other, changed)).fingerprint != first


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"mode": "cls_token"},
            "pooling_mode_cls_token is not implemented .only pooling_mode_mean",
        ),
        ({"mode": ""}, "no pooling is not implemented"),
        ({"width": 7}, "word_embedding_dimension = 7, but the model's width is"),
        ({"limit": 65}, "max_seq_length = 65, but the model has 64 positions"),
        ({"lower": True}, "do_lower_case = True is not implemented"),
    ],
)
def test_an_encoder_that_does_something_else_is_one_line(files, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        opened(encoder_in(tmp_path / "model", **files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (None, "modules.json is missing: a sentence encoder is a directory of sentence-transf"),
        ("{}", "modules none are not implemented"),
        ("[1]", "modules.json is not a list of modules"),
        ('[{"type": "x.Transformer", "path": ""}]', "modules Transformer in '' are not impl"),
        (
            '[{"type": "x.Transformer", "path": "0_T"}, {"type": "x.Pooling", "path": "1_P"}]',
            "modules Transformer in '0_T', Pooling in '1_P' are not implemented",
        ),
    ],
)
def test_other_modules_are_one_line(modules, message, tmp_path):
    file = encoder_in(tmp_path / "model") / "modules.json"
    file.unlink() if modules is None else file.write_text(modules)
    with pytest.raises(UserError, match=message):
        opened(file.parent)


def test_options_that_do_not_fit_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="config.reward_models.sim.max_tokens=65: the model has 64"):
        opened(folder, max_tokens=65)
    with pytest.raises(UserError, match="sim.dtype: no dtype 'float16'"):
        opened(folder, dtype="float16")
    with pytest.raises(
        UserError, match="sim.reads: no form 'similarty': did you mean 'similarity'"
    ):
        opened(folder, reads="similarty")
    name = "RobertaForSequenceClassification"
    path = tmp_path / "classifier"
    write_classifier(path, name, random_classifier(CLASSIFIERS[name]))
    with pytest.raises(UserError, match=f"{name} is not implemented as a sentence encoder"):
        opened(path)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "bert: two segments",
        "bert: one segment, tanh gelu",
        "roberta: one segment",
        "roberta: two segments, tanh gelu",
    ],
)
def test_vectors_are_those_of_transformers_with_a_mean_over_tokens(name, tmp_path):
    import torch
    from transformers import AutoModel

    from tests.models.torch_models import ENCODERS, random_torch

    make = next(make for key, make in ENCODERS.items() if key.startswith(name))
    theirs = random_torch(make(), AutoModel.from_config)
    theirs.save_pretrained(tmp_path)
    tokenizer_beside(tmp_path, special=[*"0123456", EOS])
    sentence_files(tmp_path, width=theirs.config.hidden_size)
    encoder = opened(tmp_path).encoder

    def embedded(texts):
        rows = [encoder.tokenizer.encode_single(text, limit=60) for text in texts]
        pad = theirs.config.pad_token_id
        ids = torch.full((len(rows), max(map(len, rows))), pad)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            assert pad not in row  # RoBERTa counts positions by it
            ids[n, : len(row)], mask[n, : len(row)] = torch.tensor(row), 1
        with torch.no_grad():
            hidden = theirs(ids, attention_mask=mask).last_hidden_state
        means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(means).numpy()

    texts = [*PROMPTS, *RESPONSES]
    expected = embedded(texts)
    assert np.std(expected @ expected.T) > 1e-3
    np.testing.assert_allclose(encoder.embed(texts), expected, rtol=0, atol=1e-5)
