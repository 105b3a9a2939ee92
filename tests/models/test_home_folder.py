"""``~`` stands for the user's folder in every path of a config."""

import pytest
from ml_collections import ConfigDict

from alol_jax.paths import with_home, with_local_copies
from alol_jax.prepare.places import PLACES
from alol_jax.prepare.wanted import wanted
from alol_jax.rewards.opening import open_reward_model
from alol_jax.text.tokenizer_files import byte_level, save
from configs import hha
from tests.models.files.test_peft_adapter import LLAMA, lora_of, random_leaves, written
from tests.models.test_language_model import opened
from tests.models.tiny_classifiers import CLASSIFIERS, random_classifier, write_classifier
from tests.models.tiny_llama import random_weights, write_directory
from tests.rewards.test_classifier import NEOX, tokenizer_beside


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_in_texts_tuples_and_inner_sections(home):
    options = ConfigDict({"a": "~/x", "b": ("~/y", "z~/"), "c": {"d": "~/e"}, "n": 1})
    expected = {"a": f"{home}/x", "b": (f"{home}/y", "z~/"), "c": {"d": f"{home}/e"}, "n": 1}
    assert with_home(options).to_dict() == with_local_copies(options).to_dict() == expected


def test_of_a_model_an_adapter_and_a_reward_model(home):
    write_directory(home / "m", random_weights())
    save(byte_level(), home / "m")
    lora = lora_of(LLAMA, "q_proj")
    written(home / "a", LLAMA, lora, random_leaves(LLAMA, lora))
    lm = opened(path="~/m", adapter="~/a")
    assert lm.checkpoint.files[0].parent == home / "m" and lm.adapter.folder == home / "a"
    write_classifier(home / "r", NEOX, random_classifier(CLASSIFIERS[NEOX]), pooling="last")
    tokenizer_beside(home / "r")
    assert open_reward_model("~/r", reads="oasst", max_tokens=64).path == "~/r"


def test_of_data_that_is_prepared(home):
    (home / "train.json").write_text("[]")
    config = hha.get_config("debug")
    config.task.update({"train_files": ("~/train.json",), "validation_files": ()})
    config.task.update({"test_files": (), "bad_test_indices": ""})
    (data, *_) = wanted(config, PLACES)
    assert data.title == f"data {home}/train.json" and data.there()
