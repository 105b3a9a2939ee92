"""comet.py, reddit.py and dialogue.py: published values, and what their sizes leave out."""

import pytest

from configs import comet, dialogue, reddit

FULL = {
    "comet": comet.get_config(),
    "reddit": reddit.get_config("sign=neg"),
    "dialogue": dialogue.get_config("data=wow"),
}
CONFIGS = {"comet": comet, "reddit": reddit, "dialogue": dialogue}


def paid(config):
    return {name for name, weight in config.rewards.items() if weight}


@pytest.mark.parametrize("name", FULL)
def test_every_weight_is_trained_as_published(name):
    config = FULL[name]
    assert config.seed == 901 and config.model.lora.rank == 0 and config.model.max_prompt == 512
    for fit in (config.reference, config.policy):
        optimizer = fit.optimizer
        assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup) == (
            2e-5,
            "linear",
            0,
        )
        assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.01, 1.0)
        assert (optimizer.b1, optimizer.b2, optimizer.epsilon) == (0.9, 0.999, 1e-8)
        assert fit.batch_size == 16
    decode = config.decode
    assert (decode.beams, decode.repetition_penalty, decode.batch_size) == (2, 2.5, 32)
    assert decode.max_new_tokens == config.model.max_response == (30 if name == "comet" else 128)


@pytest.mark.parametrize(
    ("name", "reference", "policy", "validations"),
    [("comet", 0, 1, 16), ("reddit", 6, 3, 6), ("dialogue", 6, 3, 6)],
)
def test_the_epochs_are_the_published_ones(name, reference, policy, validations):
    config = FULL[name]
    assert (config.reference.epochs, config.policy.epochs) == (reference, policy)
    assert config.policy.validations == validations


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("comet", {"p_valid_model"}),
        ("reddit", {"fluency", "depth", "updown", "safe", "diversity"}),
        ("dialogue", {"fluency", "faithdial", "depth", "diversity"}),
    ],
)
def test_the_reward_is_the_unweighted_sum_of_the_published_terms(name, rewards):
    config = FULL[name]
    assert paid(config) == rewards and {config.rewards[term] for term in rewards} == {1.0}


def test_reward_models_read_what_they_were_trained_on():
    told = {
        key: (model.reads, model.score)
        for config in FULL.values()
        for key, model in config.reward_models.items()
    }
    assert told == {
        "p_valid_model": ("pair", "sigmoid"),
        "fluency": ("response", "LABEL_1"),
        "faithdial": ("pair", "0"),
        "depth": ("between_ends", "sigmoid"),
        "updown": ("between_ends", "sigmoid"),
        "safe": ("ended", "safe"),
    }
    for config in FULL.values():
        for key in {"fluency", "faithdial", "p_valid_model"} & {*config.reward_models}:
            assert config.reward_models[key].max_tokens == 512  # positions of RoBERTa


def test_comet_trains_on_stored_rewards_and_is_tested_on_the_best_tail():
    config = FULL["comet"]
    assert config.score.stored == ("train", "validation") and config.score.best == ("test",)
    assert (config.task.validation, config.task.test) == (10_000, 0)


def test_reddit_has_the_published_sample_limits_and_sizes():
    task = FULL["reddit"].task
    assert (task.sample, task.max_words, task.max_tokens) == (102_000, 100, 300)
    assert (task.validation, task.test, task.sign) == (1000, 1000, "negative")
    assert reddit.get_config().task.sign == "positive"


@pytest.mark.parametrize("data", dialogue.DATA)
def test_dialogue_trains_and_validates_on_what_is_said_and_is_tested_on_faithdial(data):
    config = dialogue.get_config(f"data={data}")
    wow, faithdial = data in ("wow", "both"), data in ("faithdial", "both")
    for names, split in ((config.task.train_files, "train"), (config.task.validation_files, "val")):
        assert any("wow" in name and split in name for name in names) == wow
        assert any("FaithDial" in name and f":{split}" in name for name in names) == faithdial
        assert len(names) == wow + faithdial
    assert config.task.test_files == ("McGill-NLP/FaithDial:test",)
    assert config.policy.choose_by == ("faithdial" if wow else "")
    assert config.evaluate.measures == ("coverage", "density")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", ["debug", "size=smollm2"])
def test_a_small_size_needs_no_reward_model(name, size):
    config = CONFIGS[name].get_config(size)
    assert paid(config).isdisjoint(config.reward_models) and paid(config)
    assert config.policy.choose_by in {"", *paid(config)} and not config.score.stored
    assert config.model.lora.rank > 0
