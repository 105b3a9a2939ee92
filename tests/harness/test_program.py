"""lm-eval on a finished run: what is asked, what is answered, and what is refused in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from alol_jax.decoding.sampling import Sampling
from alol_jax.errors import UserError
from alol_jax.harness.__main__ import FILE, compare, parse
from alol_jax.tables.columns import Ragged
from alol_jax.training.annotate import continuations
from alol_jax.types import Watch
from tests.finished_run import config_of, finished_run, policy_logits, random_policy
from tests.harness.tasks import write_tasks
from tests.running import ROOT, environment

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a tiny random Llama, whose base is the chat tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("run") / "workdir"
    return folder, finished_run(folder, config_of("random:llama-tiny"))


@pytest.fixture
def harness():
    """The door to lm_eval."""
    pytest.importorskip("lm_eval", reason='pip install --no-deps "lm_eval>=0.4.13,<0.5": absent')
    from alol_jax.harness import model

    return model


@pytest.fixture
def policy(finished, harness):
    """The policy of the run, as lm-eval sees it."""
    lm = finished[1]
    trained = random_policy(lm, 2).trained
    options = {"batch_size": 2, "date": "2024-07-26", "label": "policy", "say": lambda line: None}
    return harness.HarnessModel(lm, trained, **options)


def asked(kind, *questions):
    """Requests as lm-eval makes them."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, question, n) for n, question in enumerate(questions)]


# without lm_eval


def test_without_lm_eval_it_is_one_line_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "alol_jax.harness.model", raising=False)
    said = r'^lm_eval cannot be imported \(.*lm_eval.*\): pip install "lm_eval>=0\.4\.13,<0\.5"$'
    with pytest.raises(UserError, match=said):
        compare(parse([str(tmp_path), "--tasks=x.yaml"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x"], "required: --tasks"),
        (["--tasks=a"], "required: WORKDIR"),
        (["x", "--tasks=a", "--wat"], "unrecognized arguments: --wat"),
        (["x", "--tasks=a", "--limit=0"], "--limit=0 must be 1 or more"),
        (["x", "--tasks=a", "--num_fewshot=-1"], "--num_fewshot=-1 must be 0 or more"),
        (["x", "--tasks=a", "--limit=many"], "invalid int value: 'many'"),
    ],
)
def test_bad_flags_are_one_line(words, said):
    with pytest.raises(UserError, match=said):
        parse(words)


def test_the_numbers_of_a_continuation_are_those_of_the_models_logits(finished):
    lm, trained = finished[1], random_policy(finished[1], 2).trained
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 256, n) for n in (9, 30, 5)]
    prompts, responses = ([row[:3] for row in rows], [row[3:] for row in rows])
    logits = [policy_logits(lm, trained, row[None])[0] for row in rows]
    responses[0] = np.argmax(logits[0], axis=-1)[2:3]  # what greedy decoding writes first
    found = continuations(
        lm,
        trained,
        *(
            Ragged.of(np.concatenate(p).astype(np.int32), [*map(len, p)])
            for p in (prompts, responses)
        ),
        watch=Watch("x"),
    )
    for logp, lead, response, theirs in zip(*found, responses, logits, strict=True):
        theirs = theirs[2 : 2 + len(response)]
        right = theirs - np.log(np.exp(theirs).sum(-1, keepdims=True))
        chosen = np.take_along_axis(right, response[:, None], 1)[:, 0]
        np.testing.assert_allclose(logp, chosen, atol=1e-4)
        np.testing.assert_allclose(lead, chosen - right.max(-1), atol=1e-4)
    assert found[1][0].tolist() == [0.0]


# with lm_eval


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


def test_the_program_ends_in_one_line(finished, tmp_path):
    command = [sys.executable, "-m", "alol_jax.harness", str(tmp_path), "--tasks=x", "--limit=0"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and done.stderr == "error: --limit=0 must be 1 or more\n"
