"""lm-eval's own model class on the exported policy: the same likelihoods, answers and figures."""

import pytest

from alol_jax.export import export
from alol_jax.export import parse as parse_export
from tests.finished_run import config_of, finished_run, random_policy
from tests.harness.tasks import write_tasks
from tests.models.torch_models import CAUSAL, random_torch
from tests.text.chat_templates import directory

pytestmark = [
    pytest.mark.parity,
    pytest.mark.lm_eval,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

FAMILIES = {"llama 2": "llama: rope scaled as llama 3.1's", "smollm2": "qwen2"}
"""A tokenizer with a begin token in front of prompts, and one without -> a model."""

PAIRS = [
    ("the cat", " sat on the mat"),
    ("They say ", "it is cold.\n\nIt is"),
    ("", "helpful, detailed"),
    ("<s>how do I cook rice?", " rinse it"),
    ("naïve café", " 日本語"),
    ("x " * 60, "it"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """Our policy, and lm-eval's own class on what is exported of it."""
    return pair(tmp_path_factory.mktemp("both"), request.param, FAMILIES[request.param])


def pair(folder, tokenizer, family, **theirs):
    """Both of a random model; ``theirs`` are options of lm-eval's class."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from alol_jax.harness.model import HarnessModel

    base = directory(tokenizer, folder / "base")
    config = CAUSAL[family]()
    config.vocab_size = 512
    random_torch(config, AutoModelForCausalLM.from_config).save_pretrained(base)
    lm = finished_run(folder / "run", config_of(str(base)))
    export(
        parse_export([f"--workdir={folder / 'run'}", "--what=merged", f"--out={folder / 'out'}"])
    )
    options = {"batch_size": 2, "date": "2024-07-26", "label": "policy", "say": lambda line: None}
    ours = HarnessModel(lm, random_policy(lm, 2).trained, **options)
    out = str(folder / "out")
    return ours, HFLM(pretrained=out, dtype="float32", device="cpu", batch_size=2, **theirs)


def asked(kind, questions):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, question, n) for n, question in enumerate(questions)]


def test_tokens_and_limits_are_those_of_lm_evals_own_class(both):
    ours, theirs = both
    assert ours.max_length == theirs.max_length
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id
    for pair in PAIRS:
        for text in filter(None, pair):
            assert ours.tok_encode(text) == theirs.tok_encode(text), text
            plain = theirs.tok_encode(text, add_special_tokens=False)
            assert ours.tok_encode(text, add_special_tokens=False) == plain


def test_likelihoods_are_those_of_lm_evals_own_class(both):
    ours, theirs = (model.loglikelihood(asked("loglikelihood", PAIRS)) for model in both)
    for mine, right, pair in zip(ours, theirs, PAIRS, strict=True):
        assert mine[0] == pytest.approx(right[0], abs=1e-3), pair
        assert mine[1] == right[1], pair


def test_whole_texts_are_as_likely_as_there(both):
    texts = [("the cat sat. " * 12,), ("日本語",)]
    mine, right = (
        model.loglikelihood_rolling(asked("loglikelihood_rolling", texts)) for model in both
    )
    assert mine == pytest.approx(right, abs=1e-3)


def test_answers_are_those_of_lm_evals_own_class(both):
    kwargs = ({"until": ["e", "\n\n"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 6})
    # Of a batch, its class looks for a begin token in the first context alone.
    contexts = [context for context, _ in PAIRS if context and not context.startswith("<s>")]
    questions = [(context, dict(asks)) for asks in kwargs for context in contexts]
    mine, right = (model.generate_until(asked("generate_until", questions)) for model in both)
    assert mine == right


def test_conversations_are_written_as_there(both):
    ours, theirs = both
    talk = [{"role": "user", "content": "tea?"}]
    said = [*talk, {"role": "assistant", "content": "yes, it"}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)
    begun = theirs.apply_chat_template(said, add_generation_prompt=False)
    assert ours.apply_chat_template(said, add_generation_prompt=False) == begun


def test_figures_of_tasks_are_those_of_lm_evals_own_class(both, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from alol_jax.harness.model import run_tasks

    ours, theirs = both
    folder = write_tasks(tmp_path / "tasks")
    found = run_tasks(ours, [str(folder)], num_fewshot=1, limit=None, chat=False)
    names = ["answer", "choice", "perplexity"]
    right = lm_eval.simple_evaluate(
        model=theirs,
        tasks=names,
        num_fewshot=1,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert sorted(found.results) == names
    for task in names:
        figures = {k: v for k, v in right[task].items() if "," in k and "stderr" not in k}
        for metric, value in figures.items():
            assert found.results[task][metric] == pytest.approx(value, rel=1e-3), (task, metric)


@pytest.mark.parametrize("text", ["it is cold and the cat sat on the mat. " * 4, "tea"])
def test_whole_texts_are_as_likely_where_positions_are_scaled_by_the_length(text, tmp_path):
    """The run's texts, of 24 tokens, are within the 32 of pre-training."""
    family = "phi3: fused, full heads, longrope"
    ours, theirs = pair(tmp_path, "smollm2", family, max_length=32)
    assert ours.max_length == 32 < ours.lm.transformer.config.longest
    mine, right = (
        model.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,)]))
        for model in (ours, theirs)
    )
    assert mine == pytest.approx(right, abs=1e-3)


def test_answers_keep_what_a_chat_template_puts_around_them(tmp_path):
    ours, theirs = pair(tmp_path, "llama 2", FAMILIES["llama 2"])
    lm = ours.lm.for_template("chat")
    written = lm.tokenizer.encode_response("yes", limit=9)[0]
    assert lm.tokenizer.decode(written, framed=False) == theirs.tok_decode(list(written))
