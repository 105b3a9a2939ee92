"""lm-eval on a finished run: what is asked, what is answered, and what is refused in one line."""

import dataclasses
import json
import math

import pytest

from alol_jax.decoding.sampling import Sampling
from alol_jax.errors import UserError
from alol_jax.harness.__main__ import FILE, compare, parse
from alol_jax.models.language_model import open_language_model
from alol_jax.models.rotary import LongRope, Rotary
from alol_jax.text.prompts import in_chat
from alol_jax.text.tokenizer_files import from_directory
from tests.finished_run import config_of, random_policy
from tests.harness.tasks import write_tasks
from tests.text.chat_templates import directory
from tests.tiny_run import mesh_of

pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture
def harness():
    """The door to lm_eval."""
    from alol_jax.harness import model

    return model


@pytest.fixture
def policy(finished, harness):
    """The policy of the run, as lm-eval sees it."""
    return shown(harness, finished[1])


def shown(harness, lm, say=lambda line: None):
    """A random policy as lm-eval sees it."""
    options = {"batch_size": 2, "date": "2024-07-26", "label": "policy", "say": say}
    return harness.HarnessModel(lm, random_policy(lm, 2).trained, **options)


def asked(kind, *questions):
    """Requests as lm-eval makes them."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, question, n) for n, question in enumerate(questions)]


def test_a_task_of_each_kind_is_run_on_both_models_and_kept(finished, harness, tmp_path, capsys):
    folder, _ = finished
    tasks = write_tasks(tmp_path / "tasks")
    found = compare(parse([str(folder), f"--tasks={tasks}"]))
    by_name = {(one.task, one.metric): one for one in found}
    assert by_name.keys() == {
        ("choice", "acc"),
        ("choice", "acc_norm"),
        ("answer", "exact_match"),
        ("perplexity", "word_perplexity"),
    }
    assert {one.documents for one in found} == {4}
    one = by_name["perplexity", "word_perplexity"]
    assert one.reference.value != one.policy.value and one.interval is None
    assert by_name["choice", "acc"].interval is not None
    kept = json.loads((folder / FILE).read_text())
    assert [row["task"] for row in kept["scores"]] == [one.task for one in found]
    assert kept["settings"]["tasks"] == [str(tasks)]
    out = capsys.readouterr().out
    assert "choice (4 documents)" in out and f"written: {folder / FILE}" in out


def test_files_may_be_named_and_documents_limited(finished, harness, tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    names = f"{tasks / 'choice.yaml'},{tasks / 'answer.yaml'}"
    found = compare(parse([str(finished[0]), f"--tasks={names}", "--limit=2"]))
    assert {(one.task, one.documents) for one in found} == {("choice", 2), ("answer", 2)}


def test_the_same_model_twice_has_no_difference(policy, harness, tmp_path):
    tasks = [str(write_tasks(tmp_path / "tasks"))]
    options = {"num_fewshot": 1, "limit": None, "chat": True}
    first, second = (harness.run_tasks(policy, tasks, **options) for _ in range(2))
    assert first == second


def recorded(policy, monkeypatch):
    """The contexts that are asked, one list for each call of lm-eval."""
    seen, each = [], policy.loglikelihood

    def record(requests, **options):
        seen.append([request.args for request in requests])
        return each(requests, **options)

    monkeypatch.setattr(policy, "loglikelihood", record)
    return seen


def test_the_examples_before_a_question_are_those_of_lm_eval(
    policy, harness, tmp_path, monkeypatch
):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = write_tasks(tmp_path / "tasks")
    (tasks / "text.py").write_text(
        "import random\ndef text(doc):\n    return f'{random.random()} ' + doc['question']\n"
    )
    file = tasks / "choice.yaml"
    file.write_text(file.read_text().replace('"{{question}}"', "!function text.text"))
    seen = recorded(policy, monkeypatch)
    harness.run_tasks(policy, [str(file)], num_fewshot=2, limit=None, chat=False)
    simple_evaluate(
        model=policy,
        tasks=["choice"],
        num_fewshot=2,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        torch_random_seed=None,
    )
    assert len(seen) == 2 and len({context for context, _ in seen[0]}) == 4
    assert seen[0] == seen[1]


def test_a_task_that_says_no_examples_gets_none(finished, harness, tmp_path, monkeypatch):
    said = []
    policy = shown(harness, finished[1], said.append)
    seen = recorded(policy, monkeypatch)
    file = write_tasks(tmp_path / "tasks") / "choice.yaml"
    options = {"limit": None, "chat": False}
    harness.run_tasks(policy, [str(file)], num_fewshot=None, **options)
    file.write_text(file.read_text() + "num_fewshot: 0\n")
    harness.run_tasks(policy, [str(file)], num_fewshot=2, **options)
    assert seen[0] == seen[1]
    assert said.count("task choice says num_fewshot: 0, which --num_fewshot does not change") == 1


def test_a_likelihood_does_not_depend_on_what_else_is_asked(policy):
    pairs = [("a b c", " d e"), ("", "hello"), ("a b ", "d"), ("a b", " d"), ("x" * 300, "y")]
    together = policy.loglikelihood(asked("loglikelihood", *pairs))
    for pair, found in zip(pairs, together, strict=True):
        (alone,) = policy.loglikelihood(asked("loglikelihood", pair))
        assert alone[0] == pytest.approx(found[0], abs=1e-4) and alone[1] == found[1]
    assert together[2] == together[3]  # a space before a word is the word's


def test_what_greedy_decoding_writes_is_greedy_and_nothing_else_is(policy):
    (text,) = policy.generate_until(asked("generate_until", ("abc", {"max_gen_toks": 1})))
    assert text
    found = policy.loglikelihood(asked("loglikelihood", ("abc", text), ("abc", text + "\x00")))
    assert found[0][1] is True and found[1][0] < found[0][0]
    other = "q" if text[0] != "q" else "r"
    ((_, greedy),) = policy.loglikelihood(asked("loglikelihood", ("abc", other)))
    assert greedy is False


def test_a_text_longer_than_the_model_reads_is_scored_in_pieces(policy, monkeypatch):
    text = "It is a long text, and then some."
    (whole,) = policy.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    parts = policy.loglikelihood(asked("loglikelihood", ("", text)))
    assert whole == pytest.approx(parts[0][0], abs=1e-3)
    monkeypatch.setattr(type(policy), "max_length", 8)
    shorter = policy.loglikelihood_rolling(asked("loglikelihood_rolling", (text,), ("",)))
    assert shorter[0] != pytest.approx(whole, abs=1e-3) and shorter[1] == 0.0


def test_a_piece_as_long_as_the_learned_positions_leaves_its_neighbours_alone(harness):
    lm = open_language_model(config_of("random:gpt2-tiny").model, mesh_of(1))
    policy = shown(harness, lm)
    assert policy.max_length == 1024
    texts = [("x" * 1029,), ("short",)]
    found = policy.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
    (alone,) = policy.loglikelihood_rolling(asked("loglikelihood_rolling", texts[1]))
    assert all(map(math.isfinite, found)) and found[1] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("length", "longest", "said"),
    [
        (24, 64, ["texts are read up to 64 tokens, not 1,024: this run scales positions for"]),
        (80, 1024, ["positions are scaled as in the run's longest text, of config.model.max_"]),
    ],
)
def test_positions_are_scaled_as_transformers_would_or_it_is_said(
    finished, harness, length, longest, said
):
    lm = finished[1]
    count = lm.transformer.config.rotary.width // 2
    rotary = Rotary(1e4, 2 * count, LongRope((1.0,) * count, (4.0,) * count, 64))
    config = dataclasses.replace(lm.transformer.config, rotary=rotary).for_texts(length)
    scaled = dataclasses.replace(lm, transformer=dataclasses.replace(lm.transformer, config=config))
    assert shown(harness, scaled).max_length == longest
    notes = harness.notes_on_length(config)
    assert len(notes) == len(said) and all(map(str.startswith, notes, said))
    assert harness.notes_on_length(lm.transformer.config) == ()


def test_an_answer_keeps_what_the_chat_template_puts_in_front_of_the_end_token(
    finished, harness, tmp_path, monkeypatch
):
    tokenizer = in_chat(from_directory(directory("llama 2", tmp_path / "t")))
    written = tokenizer.encode_response("yes", limit=99)[0]
    assert tokenizer.decode(written) == "yes"
    policy = shown(harness, dataclasses.replace(finished[1], tokenizer=tokenizer))
    monkeypatch.setattr(harness, "respond", lambda *_, **__: [written])
    found = policy.generate_until(asked("generate_until", ("abc", {"max_gen_toks": 9})))
    assert found == ["yes "]


def test_an_answer_ends_before_the_first_stop_sequence(policy):
    free = {"until": [], "max_gen_toks": 12}
    (text,) = policy.generate_until(asked("generate_until", ("abc", free)))
    stop = text[3:5]
    cut = {"until": [stop, "never there"], "max_gen_toks": 12}
    found = policy.generate_until(
        asked("generate_until", ("abc", cut), ("abc", free), ("abc", {**free, "until": stop}))
    )
    assert found == [text.partition(stop)[0], text, text.partition(stop)[0]]


def test_a_temperature_is_a_temperature(harness):
    kwargs = {"do_sample": True, "temperature": 0.5, "top_k": 3, "max_new_tokens": 7}
    assert harness._sampling(kwargs) == Sampling(7, temperature=0.5, top_k=3)
    assert harness._sampling({"do_sample": False, "temperature": 0.5}) == Sampling(256)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ("{num_beams: 4}", "generation_kwargs ask for num_beams, which is not supported"),
        ("{max_gen_toks: 100000}", "asks for max_gen_toks=100000, and the model has"),
    ],
)
def test_generation_that_the_engine_cannot_do_is_one_line(
    finished, harness, tmp_path, kwargs, said
):
    tasks = write_tasks(tmp_path / "tasks", kwargs)
    with pytest.raises(UserError, match=said) as refused:
        compare(parse([str(finished[0]), f"--tasks={tasks / 'answer.yaml'}"]))
    assert "\n" not in str(refused.value)


def test_a_continuation_that_is_too_long_is_one_line(policy, monkeypatch):
    monkeypatch.setattr(type(policy), "max_length", 8)
    with pytest.raises(UserError, match="'yyyyyyyyy', of 9 tokens: expected 1 to 8"):
        policy.loglikelihood(asked("loglikelihood", ("x", "y" * 9)))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no such file or folder"),
        ({"t/readme.md": "x"}, "no tasks there"),
        ({"t": "task: [a"}, "lm-eval cannot load them"),
        (
            {"t": "task: a\ndataset_path: json\ndataset_kwargs: {data_files: gone.jsonl}\n"},
            "cannot",
        ),
    ],
)
def test_tasks_that_cannot_be_read_are_one_line(policy, harness, tmp_path, files, said):
    for name, text in files.items():
        place = tmp_path / (name if "/" in name else f"{name}.yaml")
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    place = next((str(tmp_path / (n if "/" in n else f"{n}.yaml")) for n in files), "nowhere")
    place = place.removesuffix("/readme.md")
    options = {"num_fewshot": None, "limit": None, "chat": False}
    with pytest.raises(UserError, match=said) as refused:
        harness.run_tasks(policy, [place], **options)
    assert str(refused.value).startswith(f"--tasks={place}: ") and "\n" not in str(refused.value)


def test_a_row_that_does_not_fit_its_template_is_one_line(policy, harness, tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    file, data = tasks / "choice.yaml", tasks / "rows.jsonl"
    file.write_text(file.read_text().replace("{{question}}", "{{question.upper()}}"))
    data.write_text(data.read_text().replace('"\\u00dcnter"', "null"))
    options = {"num_fewshot": None, "limit": None, "chat": False}
    with pytest.raises(UserError, match="task choice: lm-eval cannot make its questions: Undef"):
        harness.run_tasks(policy, [str(file)], **options)
    assert harness.run_tasks(policy, [str(file)], **{**options, "limit": 3}).documents
