"""Classifiers and reward models: poolings, padding, dtypes, devices, and opening their files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alol_jax.devices.sharding import make_mesh, param_sharding, place_params, place_rows
from alol_jax.errors import UserError
from alol_jax.models.attention import Attention
from alol_jax.models.blocks import initialise
from alol_jax.models.classifiers import HEADS, POOLINGS, PROBLEMS
from alol_jax.models.files.classifiers import KINDS, open_classifier
from tests.models.small_models import close
from tests.models.tiny_classifiers import (
    CLASSIFIERS,
    END,
    cast,
    random_classifier,
    write_classifier,
)
from tests.models.tiny_llama import here

HEAD_FILE = "custom_roberta_classification_head.safetensors"
TORCH_HEAD = "custom_roberta_classification_head.pt"
TEXTS = ((5, 9, END, 2, 30, 11, 0, END, 6), (4, 8, END, 21, END), (17, END), (END, 3, END))
EVERY = pytest.mark.parametrize("name", CLASSIFIERS)
EVERY_HEAD = pytest.mark.parametrize(
    "name",
    [
        "LlamaForSequenceClassification",
        "GPTNeoXRewardModel",
        "GPT2ForOC_S_offensive",
        "RobertaForSequenceClassification",
        "RobertaModel",
    ],
)


@functools.cache
def params_of(name):
    return random_classifier(CLASSIFIERS[name])


@functools.cache
def logits_of(classifier):
    """(params, tokens, mask) -> the logits of one text per row."""

    def logits(params, tokens, mask):
        return classifier(params, tokens, mask, None, mask[:, None] > 0)[:, 0]

    return jax.jit(logits)


def padded(texts, width, side, filler):
    """Tokens and mask of texts, padded with ``filler``."""
    tokens, mask = np.full((len(texts), width), filler), np.zeros((len(texts), width), np.float32)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        tokens[row, place], mask[row, place] = text, 1
    return tokens, mask


def opened(path, dtype="float32"):
    return open_classifier(path, dtype=dtype, sharding=here, attention=Attention("xla", None))


def refusal(path):
    with pytest.raises(UserError) as error:
        opened(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


# poolings

CHOSEN = np.array(
    [
        [[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]],  # two texts of a row
        [[0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0]],
    ],
    bool,
)
HIDDEN = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("first", [HIDDEN[0, [1, 0]], HIDDEN[1, [5, 0]]]),
        ("last", [HIDDEN[0, [4, 0]], HIDDEN[1, [5, 4]]]),
        (
            "mean",
            [[HIDDEN[0, [1, 2, 4]].mean(0), HIDDEN[0, 0]], [HIDDEN[1, 5], HIDDEN[1, :5].mean(0)]],
        ),
    ],
)
def test_a_pooling_reads_the_chosen_positions_of_each_text_only(pooling, expected):
    close(POOLINGS[pooling](HIDDEN, CHOSEN), np.stack(expected), 1e-6)
    for slot in range(2):
        chosen = CHOSEN[:, slot : slot + 1]
        elsewhere = np.where(chosen[:, 0, :, None], HIDDEN, 1e30)
        close(POOLINGS[pooling](elsewhere, chosen)[:, 0], np.stack(expected)[:, slot], 1e-6)


# the classifier


def test_every_head_pooling_and_problem_is_one_of_a_class_that_is_tested():
    assert CLASSIFIERS.keys() == KINDS.keys()
    tested = CLASSIFIERS.values()
    assert {classifier.head for classifier in tested} == HEADS.keys()
    assert {classifier.pooling for classifier in tested} == POOLINGS.keys()
    assert {classifier.problem for classifier in tested} == PROBLEMS.keys()


@EVERY_HEAD
def test_padding_changes_nothing(name):
    classifier, params = CLASSIFIERS[name], params_of(name)
    run = logits_of(classifier)
    alone = run(params, *padded(TEXTS[1:2], len(TEXTS[1]), "right", 0))
    batches = [padded(TEXTS, 9, side, pad) for side in ("left", "right") for pad in (END, 0)]
    logits = [run(params, *batch) for batch in batches]
    assert np.std(logits[0], axis=0).min() > 1e-2  # texts differ
    for found in logits:
        close(found[1:2], alone, 2e-5)
        close(found, logits[0], 2e-5)


@EVERY_HEAD
def test_the_last_token_of_a_text_matters_to_its_row(name):
    classifier, params = CLASSIFIERS[name], params_of(name)
    tokens, mask = padded(TEXTS, 9, "left", 0)
    other = tokens.copy()
    other[0, -1] += 5
    run = logits_of(classifier)
    change = np.abs(run(params, tokens, mask) - run(params, other, mask)).max(axis=1)
    # What follows the last end of an utterance is not read.
    assert (change[0] > 1e-5) == (classifier.end is None)
    assert not change[1:].any()


def test_a_text_is_judged_at_the_last_end_of_an_utterance():
    """So it has the logits that it would have if it stopped there; a slot may be a part of it."""
    name = "GPT2ForOC_S_offensive"
    run, params = logits_of(CLASSIFIERS[name]), params_of(name)
    tokens, mask = padded(TEXTS, 9, "right", END)
    slots = np.stack([mask, mask * (np.arange(9) < 3)], axis=1) > 0
    both = jax.jit(CLASSIFIERS[name])(params, tokens, mask, None, slots)
    for row, text in enumerate(TEXTS):
        for slot, read in enumerate((text, text[:3])):
            ending = read[: len(read) - read[::-1].index(END)]
            close(both[row, slot], run(params, *padded([ending], len(ending), "right", 0))[0])
    assert np.abs(both[:2, 0] - both[:2, 1]).max(axis=-1).min() > 1e-2


@EVERY_HEAD
def test_a_row_without_anything_to_pool_is_nan_and_disturbs_no_other(name):
    tokens, mask = padded(TEXTS, 9, "left", END)
    run = logits_of(CLASSIFIERS[name])
    whole = run(params_of(name), tokens, mask)
    logits = run(params_of(name), tokens, mask * np.array([[1], [0], [1], [1]], np.float32))
    assert np.isnan(logits[1]).all()
    others = np.array([0, 2, 3])
    close(logits[others], whole[others], 1e-6)


def test_a_text_without_an_end_of_an_utterance_is_nan():
    name = "GPT2ForOC_S_offensive"
    tokens, mask = padded([(3, 4, 5)], 9, "right", END)  # only the padding has ends
    assert np.isnan(logits_of(CLASSIFIERS[name])(params_of(name), tokens, mask)).all()


@pytest.mark.parametrize("name", ["GPTNeoXRewardModel", "RobertaModel"])
def test_the_head_is_float32_whatever_the_body(name):
    classifier, params = CLASSIFIERS[name], params_of(name)
    half = cast(classifier, jnp.bfloat16)
    batch = padded(TEXTS, 9, "left", 0)
    logits = logits_of(half)(params, *batch)
    assert logits.dtype == jnp.float32
    # A change that bfloat16 could not hold, in the last layer.
    last = {path for path in classifier.head_shapes if "score/" in path and "dense" not in path}
    finer = params | {path: params[path] * (1 + 2**-12) for path in last}
    np.testing.assert_allclose(
        logits_of(half)(finer, *batch) / logits, 1 + 2**-12, rtol=0, atol=2**-16
    )
    close(logits, logits_of(classifier)(params, *batch), 0.1)


@EVERY_HEAD
def test_eight_devices_say_what_one_says(name):
    classifier, params = CLASSIFIERS[name], params_of(name)
    tokens, mask = padded(TEXTS, 9, "left", END)
    one = logits_of(classifier)(params, tokens, mask)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batch = place_rows((tokens, mask), mesh)
    close(logits_of(classifier)(place_params(params, mesh), *batch), one, 2e-5)


def test_scores_are_probabilities_or_the_number_itself():
    logits = jnp.array([[0.3, -2.0, 1.0], [5.0, 5.0, 5.0]])
    single = CLASSIFIERS["GPTNeoXForSequenceClassification"].scores(logits)
    close(single.sum(-1), [1.0, 1.0], 1e-6)
    close(single[1], [1 / 3] * 3, 1e-6)
    several = CLASSIFIERS["GPTNeoXRewardModel"].scores(jnp.array([[0.0], [-30.0], [2.0]]))
    close(several + CLASSIFIERS["RobertaModel"].scores(jnp.array([[0.0], [30.0], [-2.0]])), 1.0)
    close(CLASSIFIERS["LlamaForSequenceClassification"].scores(logits), logits, 0)


@EVERY
def test_a_fresh_classifier_has_the_parameters_that_it_reads(name):
    classifier = CLASSIFIERS[name]
    fresh = jax.eval_shape(classifier.init, jax.random.key(0))
    assert "head/kernel" not in fresh
    assert classifier.head_shapes.items() <= fresh.items()
    assert {path.split("/")[0] for path in classifier.head_shapes} <= {"score", "pooler"}
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for path, leaf in fresh.items():
        assert param_sharding(path, leaf.shape, mesh).mesh == mesh


@pytest.mark.parametrize("head", HEADS)
def test_a_fresh_head_has_random_kernels_and_no_biases(head):
    for path, leaf in initialise(functools.partial(HEADS[head], 32, 3), jax.random.key(0)).items():
        assert np.any(leaf) == path.endswith("kernel"), path
        assert np.abs(leaf).max() < 0.2, path


# opening


@EVERY
def test_what_is_opened_is_what_was_stored(name, tmp_path):
    params = params_of(name)
    stored = opened(write_classifier(tmp_path / "c", name, params))
    assert stored.classifier == CLASSIFIERS[name]
    assert hash(stored.classifier) == hash(CLASSIFIERS[name])
    assert stored.tokenizer.directory == tmp_path / "c"
    assert "params" not in vars(stored)  # no weight is read before it is used
    assert stored.params.keys() == params.keys() and stored.params is stored.params
    for path, leaf in params.items():
        np.testing.assert_array_equal(stored.params[path], leaf, err_msg=path)


@EVERY
def test_only_the_body_is_rounded_to_the_asked_dtype(name, tmp_path):
    params = params_of(name)
    stored = opened(write_classifier(tmp_path / "c", name, params), jnp.bfloat16)
    assert stored.classifier == cast(CLASSIFIERS[name], jnp.bfloat16)
    for path, leaf in stored.params.items():
        if path in stored.classifier.head_shapes:
            np.testing.assert_array_equal(leaf, params[path], err_msg=path)
        else:
            assert leaf.dtype == jnp.bfloat16, path


def test_parameters_land_where_they_are_wanted(tmp_path):
    name = "RobertaModel"
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    stored = open_classifier(
        write_classifier(tmp_path / "c", name, params_of(name)),
        dtype="float32",
        sharding=functools.partial(param_sharding, mesh=mesh),
        attention=Attention("xla", mesh),
    )
    for path, leaf in stored.params.items():
        assert leaf.sharding == param_sharding(path, leaf.shape, mesh), path


def test_labels_are_two_where_the_file_does_not_say_it(tmp_path):
    name = "RobertaForSequenceClassification"
    fields = {"id2label": None, "problem_type": None}
    stored = opened(write_classifier(tmp_path / "c", name, params_of(name), **fields))
    assert stored.classifier.labels == ("LABEL_0", "LABEL_1")
    assert stored.classifier.problem == "single_label_classification"


def test_one_label_is_a_probability_and_an_unstated_pooling_is_the_last_token(tmp_path):
    name = "GPTNeoXRewardModel"
    fields = {"pooling": None, "problem_type": None, "model_type": "gpt_neox_reward_model"}
    classifier = opened(
        write_classifier(tmp_path / "c", name, params_of(name), **fields)
    ).classifier
    assert (classifier.pooling, classifier.problem) == ("last", "multi_label_classification")


def test_a_head_of_its_own_is_part_of_the_fingerprint(tmp_path):
    name, params = "RobertaModel", params_of("RobertaModel")
    path = write_classifier(tmp_path / "c", name, params)
    mark = opened(path).checkpoint.fingerprint()
    assert mark == opened(path).checkpoint.fingerprint()
    write_classifier(
        tmp_path / "c", name, params | {"score/out/bias": params["score/out/bias"] + 1}
    )
    assert mark != opened(path).checkpoint.fingerprint()


def test_masks_and_positions_of_old_exports_and_an_unused_language_head_are_ignored(tmp_path):
    name = "GPT2ForSequenceClassification"
    extra = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
        "transformer.h.1.attn.masked_bias": np.float32([-1e4]),
        "lm_head.weight": np.ones((38, 32), np.float32),
    }
    stored = opened(write_classifier(tmp_path / "c", name, params_of(name), extra=extra))
    assert stored.params.keys() == params_of(name).keys()


# refusals


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("GPTNeoXRewardModel", {"pooling": "max"}, "pooling = 'max' is not implemented"),
        ("GPTNeoXRewardModel", {"pooling": "first"}, "pooling = 'first' is not implemented"),
        (
            "RobertaForSequenceClassification",
            {"problem_type": "ranking"},
            "problem_type = 'ranking' is not implemented",
        ),
        (
            "GPT2ForSequenceClassification",
            {"problem_type": "single_label_classification"},
            "has no meaning for one label",
        ),
        (
            "RobertaForSequenceClassification",
            {"id2label": {"0": "a", "2": "b"}},
            "id2label must name labels 0, 1",
        ),
        ("RobertaForSequenceClassification", {"id2label": {}}, "id2label must name labels"),
        ("RobertaForSequenceClassification", {"id2label": ["a"]}, "id2label must name labels"),
        ("RobertaForSequenceClassification", {"num_labels": 5}, "num_labels = 5, but id2label has"),
        (
            "GPTNeoXForSequenceClassification",
            {"id2label": {"0": "a"}, "problem_type": None},
            "score.weight has the shape (3, 32), expected (1, 32) for 1 labels (a)",
        ),
        (
            "GPT2ForOC_S_offensive",
            {"eos_token_id": 50256},
            "eos_token_id = 50256 is not one of the 38 tokens",
        ),
    ],
)
def test_a_config_that_says_something_else_is_one_clear_line(name, fields, said, tmp_path):
    assert said in refusal(write_classifier(tmp_path / "c", name, params_of(name), **fields))


def test_a_language_model_is_no_classifier(tmp_path):
    name = "GPT2ForSequenceClassification"
    folder = tmp_path / "c"
    write_classifier(folder, name, params_of(name), architectures=["GPT2LMHeadModel"])
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert "GPT2LMHeadModel has no classification head (only Llama" in refusal(folder)


def test_a_missing_head_is_one_clear_line(tmp_path):
    name = "RobertaForSequenceClassification"
    folder = tmp_path / "c"
    write_classifier(folder, name, params_of(name))
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.out_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert "missing classifier.out_proj.weight; unexpected none" in refusal(folder)


def test_a_critics_head_must_lie_beside_it(tmp_path):
    folder = tmp_path / "c"
    write_classifier(folder, "RobertaModel", params_of("RobertaModel"))
    file = folder / HEAD_FILE
    head = load_file(file)
    save_file({**head, "dense.weight": head["dense.weight"][:-1]}, file)
    assert "dense.weight has the shape (511, 32), expected (512, 32)" in refusal(folder)
    save_file({"dense.weight": head["dense.weight"], "other": head["dense.bias"]}, file)
    assert f"{HEAD_FILE} holds dense.weight, other, expected dense.bias" in refusal(folder)
    file.write_bytes(b"{")
    assert f"{HEAD_FILE} is damaged" in refusal(folder)
    file.unlink()
    assert f"put {HEAD_FILE} or {TORCH_HEAD} into the directory" in refusal(folder)
    (folder / TORCH_HEAD).write_bytes(b"\x80\x02.")
    assert f"{TORCH_HEAD} is damaged or not a file of torch.save" in refusal(folder)
