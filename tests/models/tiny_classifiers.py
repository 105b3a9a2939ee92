"""Tiny classifiers of every kind, in memory and as directories of Hugging Face form."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from alol_jax.models.classifiers import Classifier
from alol_jax.models.config import AttentionConfig, Local
from alol_jax.models.families.registry import ARCHITECTURES, FAMILIES
from alol_jax.models.families.roberta import CRITIC_ROWS
from alol_jax.models.files.hf_config import to_hf
from tests.models.small_models import SMALL, SMALLS, random_params, small

END = 7  # the token that ends an utterance

_SINGLE, _MULTI = "single_label_classification", "multi_label_classification"


def _body(family):
    """A body that a config.json can say: heads together as wide as the model, no open head."""
    config = SMALLS[family]
    head_width = config.width // config.heads
    return small(dataclasses.replace(config, head_width=head_width, tied_embeddings=True))


def _named(count):
    return tuple(f"label {i}" for i in range(count))


def _reward(config, family, attention=None):
    """A reward model of today: one number of any size, read off the last token."""
    config = dataclasses.replace(config, family=family, attention=attention or config.attention)
    return Classifier(small(config), "linear", "last", ("reward",), "regression")


CLASSIFIERS = {
    "LlamaForSequenceClassification": Classifier(
        small(SMALLS["llama"]), "linear", "last", ("quality",), "regression"
    ),
    "MistralForSequenceClassification": _reward(SMALL, "mistral", AttentionConfig(local=Local(4))),
    "Qwen2ForSequenceClassification": _reward(
        SMALLS["qwen2: biases, every second layer local"], "qwen2"
    ),
    "Qwen3ForSequenceClassification": _reward(SMALLS["qwen3: norms of heads, a window"], "qwen3"),
    "Gemma2ForSequenceClassification": _reward(SMALLS["gemma2"], "gemma2"),
    "Gemma3TextForSequenceClassification": _reward(SMALLS["gemma3"], "gemma3_text"),
    "Phi3ForSequenceClassification": _reward(SMALL, "phi3", AttentionConfig()),
    "GPTNeoXForSequenceClassification": Classifier(
        _body("gpt_neox"), "linear", "last", _named(3), _SINGLE
    ),
    "GPT2ForSequenceClassification": Classifier(_body("gpt2"), "linear", "last", _named(1), _MULTI),
    "BertForSequenceClassification": Classifier(_body("bert"), "tanh", "first", _named(2), _SINGLE),
    "RobertaForSequenceClassification": Classifier(
        _body("roberta"), "tanh", "first", _named(2), _SINGLE
    ),
    "GPTNeoXRewardModel": Classifier(_body("gpt_neox"), "affine", "mean", ("reward",), _MULTI),
    "GPT2ForOC_S_offensive": Classifier(
        _body("gpt2"), "affine", "last", ("safe", "offensive"), _SINGLE, END
    ),
    "RobertaModel": Classifier(_body("roberta"), "critic", "first", ("valid",), _MULTI),
}
"""A class of transformers (or of the published code) -> what opening its files should give."""


def random_classifier(classifier, seed=0):
    """Parameters at which every part matters."""
    model = types.SimpleNamespace(init=classifier.init, config=classifier.body.config)
    return random_params(model, seed)


def stored_tensors(rows, params, config):
    """Parameters under the names of a table."""
    found = {}
    for row in rows:
        for layer in range(config.layers if row.layered else 1):
            parts = [params[p][layer] if row.layered else params[p] for p in row.paths]
            joined = np.asarray(row.layout.join(config, [jnp.asarray(part) for part in parts]))
            found[row.name.format(i=layer)] = np.ascontiguousarray(joined)
    return found


def config_json(name, **changes):
    """The config.json of one of `CLASSIFIERS`."""
    classifier = CLASSIFIERS[name]
    return {
        **to_hf(classifier.body.config),
        "architectures": [name],
        "id2label": {str(i): label for i, label in enumerate(classifier.labels)},
        "problem_type": classifier.problem,
        "pooling": classifier.pooling,
        "eos_token_id": END,
        **changes,
    }


def write_classifier(folder, name, params, *, extra=None, **changes):
    """The directory of one of `CLASSIFIERS`; ``changes`` are fields of its config.json."""
    config = CLASSIFIERS[name].body.config
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(name, **changes)))
    rows = FAMILIES[config.family].rows(config) + ARCHITECTURES[name].head
    save_file(stored_tensors(rows, params, config) | (extra or {}), folder / "model.safetensors")
    if name == "RobertaModel":
        head = stored_tensors(CRITIC_ROWS, params, config)
        save_file(head, folder / "custom_roberta_classification_head.safetensors")
    return str(folder)


def cast(classifier, dtype):
    """The same classifier with another dtype of the body."""
    body = dataclasses.replace(classifier.body, dtype=jnp.dtype(dtype))
    return dataclasses.replace(classifier, body=body)
