"""Reward models from checkpoints: what they read, what they score, what is refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from alol_jax.errors import UserError
from alol_jax.rewards.classifier import label_of
from alol_jax.rewards.opening import open_reward_models
from alol_jax.rewards.reward import Scoring
from alol_jax.types import Exchange, alternating
from configs import common
from tests.models.tiny_classifiers import CLASSIFIERS, random_classifier, write_classifier
from tests.tiny_run import TASK, mesh_of, tiny_lm

EOS = "<|endoftext|>"
SPECIAL = [EOS, "<|prompter|>", "<|assistant|>"]
PROMPTS = ["hi", "what\nnow", "a much longer question that is read, all of it", "hi"]
RESPONSES = ["yes", "no", "well", "<|assistant|>yes"]


def read(prompt, response):
    turns = tuple(prompt.split("\n"))
    return Exchange(turns, response, (turns[-1], response), alternating(turns))


def tokenizer_beside(folder, special=SPECIAL, second=0):
    """tokenizer.json of 38 tokens, as many as the tiny models have; a pair's second text has the
    token type ``second``."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=38, special_tokens=special, initial_alphabet=list("abdehilmnopqrstuwyĠĊ,|<>_!?")
    )
    backend.train_from_iterator([], trainer)
    ends = [(EOS, backend.token_to_id(EOS))]
    backend.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {EOS} $B:{second}", special_tokens=ends
    )
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "model"
    write_classifier(path, NEOX, random_classifier(CLASSIFIERS[NEOX]), pooling="last")
    tokenizer_beside(path)
    return path


NEOX = "GPTNeoXRewardModel"


def options(folder, **changes):
    chosen = common.reward_model(str(folder), reads="oasst")
    chosen.update({"max_tokens": 64} | changes)
    return chosen


def opened(folder, *, lm=None, **changes):
    lm = tiny_lm() if lm is None else lm
    return open_reward_models({"rm": options(folder, **changes)}, ["rm"], read, lm)["rm"]


@functools.cache
def _reader(classifier):
    return jax.jit(classifier)


def logits_of(model, ids):
    """What the classifier of a reward model says of one text, alone in its row: f32[labels]."""
    tokens = np.array([ids])
    read = _reader(model.stored.classifier)
    return read(
        model.stored.params, tokens, np.ones_like(tokens), None, np.ones((1, 1, len(ids)), bool)
    )[0, 0]


def test_a_score_is_the_sigmoid_of_the_logit_of_the_turns_in_their_form(folder):
    model = opened(folder)
    token = dict(zip(SPECIAL, range(3), strict=True))
    for prompt, response, score in zip(
        PROMPTS[:3], RESPONSES[:3], model(PROMPTS, RESPONSES), strict=False
    ):
        ids = []
        for n, said in enumerate((*read(prompt, response).turns, response)):
            ids += [token[SPECIAL[1 + n % 2]], *model.tokenizer.encode(said), token[SPECIAL[0]]]
        logit = logits_of(model, ids)[0]
        assert score == pytest.approx(float(1 / (1 + np.exp(-logit))), abs=1e-5)


def test_a_response_is_scored_alike_alone_beside_others_and_on_eight_devices(folder):
    together = opened(folder)(PROMPTS, RESPONSES)
    alone = [opened(folder)([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    eight = opened(folder, lm=tiny_lm(mesh=mesh_of(8, fsdp=2, tensor=2)))
    np.testing.assert_allclose(eight(PROMPTS, RESPONSES), together, atol=1e-5)
    assert len(set(together.round(6))) == 4 and ((together > 0) & (together < 1)).all()
    assert opened(folder)([], []).shape == (0,)


def test_a_special_token_in_a_response_is_spelled_out(folder):
    model = opened(folder)
    special = model.form(model.tokenizer, read("hi", "<|assistant|>"), 64)[3:]
    plain = model.form(model.tokenizer, read("hi", "assistant"), 64)
    assert list(special).count(2) == list(plain[3:]).count(2) == 1  # the turn's own


def test_what_is_too_long_loses_its_oldest_tokens(folder):
    model = opened(folder, max_tokens=16)
    long = model.form(model.tokenizer, read("a" * 99, "yes"), 16)
    whole = model.form(model.tokenizer, read("a" * 99, "yes"), 999)
    assert len(long) == 16 and long == whole[-16:]


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ("between_ends", "hi<|endoftext|>no<|endoftext|>yes"),
        ("ended", "hi<|endoftext|>no<|endoftext|>yes<|endoftext|>"),
    ],
)
def test_the_forms_of_dialogue_models_put_ends_between_what_was_said(folder, reads, expected):
    model = opened(folder, reads=reads)
    assert model.form(model.tokenizer, read("hi\nno", "yes"), 64) == tuple(
        model.tokenizer.encode(expected)
    )


def test_a_label_gives_its_probability(tmp_path):
    name = "GPTNeoXForSequenceClassification"
    path = tmp_path / "model"
    write_classifier(path, name, random_classifier(CLASSIFIERS[name]))
    tokenizer_beside(path)
    scores = [
        opened(path, reads="response", score=f"label {i}")(PROMPTS, RESPONSES) for i in range(3)
    ]
    np.testing.assert_allclose(np.sum(scores, axis=0), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reads", "score"),
    [
        ("LlamaForSequenceClassification", "oasst", "sigmoid"),
        ("GPTNeoXForSequenceClassification", "between_ends", "label 2"),
        ("GPT2ForSequenceClassification", "between_ends", "sigmoid"),
        ("RobertaForSequenceClassification", "response", "label 1"),
        ("GPTNeoXRewardModel", "oasst", "sigmoid"),
        ("GPT2ForOC_S_offensive", "ended", "safe"),
        ("RobertaModel", "pair", "sigmoid"),
    ],
)
def test_every_class_can_be_named_in_the_config(tmp_path, name, reads, score):
    path = tmp_path / "model"
    write_classifier(path, name, random_classifier(CLASSIFIERS[name]))
    tokenizer_beside(path, special=SPECIAL if reads == "oasst" else [*"0123456", EOS])
    model = opened(path, reads=reads, score=score)
    labels = model.stored.classifier.labels
    scores = model(PROMPTS[:3], RESPONSES[:3])
    assert len(set(scores.round(6))) == 3 and ((scores > 0) & (scores < 1)).all()
    for prompt, response, found in zip(PROMPTS, RESPONSES, scores, strict=False):
        ids = model.form(model.tokenizer, read(prompt, response), 64)
        logits = logits_of(model, ids)
        expected = 1 / (1 + np.exp(-logits[0]))
        if score != "sigmoid":
            chances = np.exp(logits - logits.max())
            expected = (chances / chances.sum())[labels.index(score)]
        assert found == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": "oast"}, "config.reward_models.rm.reads: no form 'oast': did you mean 'oasst'"),
        ({"score": "good"}, "config.reward_models.rm.score: the model has no label 'good'"),
        ({"max_tokens": 65}, "rm.max_tokens=65: the model has 64 positions"),
        ({"dtype": "float16"}, "rm.dtype: no dtype 'float16'"),
        ({"path": "/nowhere/model"}, "/nowhere/model"),
    ],
)
def test_options_that_do_not_fit_are_one_line(folder, changes, message):
    with pytest.raises(UserError, match=message):
        opened(folder, **changes)


def test_a_tokenizer_without_the_forms_tokens_is_one_line(tmp_path):
    path = tmp_path / "model"
    write_classifier(path, NEOX, random_classifier(CLASSIFIERS[NEOX]), pooling="last")
    tokenizer_beside(path, special=SPECIAL[:1])
    with pytest.raises(UserError, match=r"has no special token '<\|prompter\|>'"):
        opened(path)(PROMPTS, RESPONSES)


def test_the_fingerprint_follows_the_weights_and_the_form_but_not_the_place(folder, tmp_path):
    first = opened(folder).fingerprint
    assert opened(folder, lm=tiny_lm(mesh=mesh_of(8))).fingerprint == first
    assert opened(folder, max_tokens=32).fingerprint != first
    other = tmp_path / "other"
    params = random_classifier(CLASSIFIERS[NEOX])
    write_classifier(other, NEOX, params, pooling="last")
    tokenizer_beside(other)
    assert opened(other).fingerprint == first
    params["score/bias"] = params["score/bias"] + 1
    write_classifier(other, NEOX, params, pooling="last")
    assert opened(other).fingerprint != first


def test_a_model_without_weight_is_not_opened():
    missing = {"rm": options("/nowhere/model")}
    assert open_reward_models(missing, [], read, tiny_lm()) == {}


def test_several_models_and_words_are_summed_by_their_weights(folder):
    models = open_reward_models(
        {"whole": options(folder), "response": options(folder, reads="ended"), "off": options("?")},
        ["whole", "response"],
        read,
        tiny_lm(),
    )
    weights = {"positivity": 0.5, "whole": 2.0, "response": 1.0, "off": 0.0}
    reward = Scoring(TASK.rewards, models, weights, ("whole", "response", "off")).reward([])
    assert reward.names == ("positivity", "whole", "response") and reward.ends == (0.0, 3.5)
    components, total = reward.score(PROMPTS, RESPONSES)
    np.testing.assert_array_equal(components[:, 1], models["whole"](PROMPTS, RESPONSES))
    np.testing.assert_array_equal(components[:, 2], models["response"](PROMPTS, RESPONSES))
    np.testing.assert_allclose(total, components @ [0.5, 2.0, 1.0])


def test_a_model_that_gives_nan_is_one_line_that_names_it(folder):
    model = opened(folder)
    model.stored.params["score/bias"] *= np.nan
    reward = Scoring((), {"rm": model}, {"rm": 1.0}).reward([])
    with pytest.raises(
        UserError, match=r"gave nan for 'yes': expected a score from 0 to 1 \(4 of 4"
    ):
        reward.score(PROMPTS, RESPONSES)


def test_a_model_may_not_have_the_name_of_a_reward_of_the_task(folder):
    with pytest.raises(UserError, match="config.reward_models.positivity: the task has a reward"):
        Scoring(TASK.rewards, {"positivity": opened(folder)}, {"positivity": 1.0})


def test_a_label_may_be_given_by_its_number_and_a_name_goes_first():
    labels = ("bad", "2", "good")
    assert [label_of(labels, score) for score in ("0", "1", "good")] == [0, 1, 2]
    assert label_of(labels, "2") == 1  # the name
    for score in ("3", "-1", "1.0", "goo", "", "²", " 1"):
        assert label_of(labels, score) is None


def test_a_score_by_number_is_that_of_the_label(tmp_path):
    name = "RobertaForSequenceClassification"
    path = tmp_path / "model"
    write_classifier(path, name, random_classifier(CLASSIFIERS[name]))
    tokenizer_beside(path, special=[*"0123456", EOS])
    for number in range(2):
        by_name, by_number = (
            opened(path, reads="pair", score=score)(PROMPTS, RESPONSES)
            for score in (f"label {number}", f"{number}")
        )
        np.testing.assert_array_equal(by_number, by_name)
    with pytest.raises(UserError, match="rm.score: the model has no label '2'"):
        opened(path, reads="pair", score="2")


def test_a_whole_conversation_is_one_text_with_spaces_between(folder):
    model = opened(folder, reads="whole")
    ids = model.form(model.tokenizer, read("hi\nno", "yes"), 64)
    assert list(ids) == model.tokenizer.encode("hi no yes")
    assert model.form(model.tokenizer, read("hi\nno", "yes"), 4) == ids[:4]


def test_a_pair_is_the_one_that_the_task_makes(folder):
    model = opened(folder, reads="pair")

    def ids(prompt, response):
        task = dataclasses.replace(TASK, pair=lambda p, r: (p.upper().lower()[:2], f"so {r}"))
        return list(model.form(model.tokenizer, task.exchange(prompt, response), 64))

    spelled = model.tokenizer.encode(f"wh{EOS}so yes")
    assert ids("what\nnow", "yes") == spelled
    by_default = model.form(model.tokenizer, TASK.exchange("what", "yes"), 64)
    assert list(by_default) == model.tokenizer.encode(f"what{EOS}yes")


@pytest.mark.parametrize("second", [0, 1])
def test_the_second_text_of_a_pair_has_the_token_type_that_its_tokenizer_gives(second, tmp_path):
    name, path = "BertForSequenceClassification", tmp_path / "model"
    params = random_classifier(CLASSIFIERS[name])
    write_classifier(path, name, params)
    tokenizer_beside(path, second=second)
    model = opened(path, reads="pair", score="1")
    scores = model(PROMPTS, RESPONSES)
    for prompt, response, score in zip(PROMPTS, RESPONSES, scores, strict=True):
        first, other = (model.tokenizer.encode_response(t, limit=64)[0] for t in (prompt, response))
        if "\n" in prompt or "<" in response:
            continue  # of the last turn; with special tokens spelled out
        ids = np.array([[*first, *other[:-1]]])
        types = np.repeat([0, second], [len(first), len(other) - 1])[None]
        mask = np.ones((1, 1, ids.shape[1]), bool)
        logits = model.stored.classifier(
            model.stored.params, ids, np.ones_like(ids), None, mask, types
        )[0, 0]
        assert score == pytest.approx(float(jax.nn.softmax(logits)[1]), abs=1e-5)
    single = opened(path, reads="response", score="1")
    assert single(PROMPTS, RESPONSES).std() > 0  # without a second text


@pytest.mark.parity
def test_a_bert_scores_pairs_as_transformers_does(tmp_path):
    import torch
    from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

    from tests.models.torch_models import ENCODERS, random_torch
    from tests.text.tokenizer_kinds import bert

    folder = bert(tmp_path / "model")
    config = ENCODERS["bert: two segments"]()
    config.vocab_size, config.num_labels = 150, 2
    theirs = random_torch(config, BertForSequenceClassification)
    theirs.save_pretrained(folder)
    pairs = [("The cat sat.", "It didn't!"), ("hello", ""), ("1999", "the users questions, too")]
    reader = PreTrainedTokenizerFast.from_pretrained(str(folder))
    expected = []
    for first, second in pairs:
        read_by_theirs = reader([first], [second], return_tensors="pt", return_token_type_ids=True)
        assert read_by_theirs.token_type_ids.any()
        with torch.no_grad():
            logits = theirs(**read_by_theirs).logits
        expected.append(float(torch.softmax(logits, -1)[0, 1]))
    ours = opened(folder, reads="pair", score="1")(*zip(*pairs, strict=True))
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
