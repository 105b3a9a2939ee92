"""own: a user's own rows, and every way in which they can be wrong."""

import json

import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.tasks import own
from alol_jax.tasks.registry import get_task
from alol_jax.types import Example
from configs import jsonl
from configs import own as own_config


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _options(
    train_file,
    validation_file="",
    test_file="",
    validation=1,
    test=1,
    limit=0,
    template="",
    date="2024-07-26",
) -> ConfigDict:
    return ConfigDict(
        dict(
            name="own",
            template=template,
            date=date,
            train_file=train_file,
            validation_file=validation_file,
            test_file=test_file,
            validation=validation,
            test=test,
            limit=limit,
            columns={},
            bad_rows="stop",
            bad_share=0.05,
        )
    )


def _rows(count, extra=()):
    return [{"prompt": f"p{n}", "response": f"r{n}", **dict(extra)} for n in range(count)]


def _all(splits):
    everywhere = (*splits.train, *splits.validation, *splits.test)
    return sorted(everywhere, key=lambda e: e.prompt)


def test_one_file_is_split_by_prompt(tmp_path):
    splits = own.load(_options(_write(tmp_path / "a.jsonl", _rows(10)), validation=2, test=3))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [5, 2, 3]
    assert splits.notes == ("Read as a prompt and its responses (prompt, response): 10 rows.",)


def test_three_files_are_three_splits(tmp_path):
    rows = _rows(6)
    splits = own.load(
        _options(
            _write(tmp_path / "a.jsonl", rows[:3]),
            validation_file=_write(tmp_path / "b.jsonl", rows[3:4]),
            test_file=_write(tmp_path / "c.jsonl", rows[4:]),
        )
    )
    assert [e.prompt for e in splits.train] == ["p0", "p1", "p2"]
    assert [e.prompt for e in splits.validation] == ["p3"]
    assert [e.prompt for e in splits.test] == ["p4", "p5"]
    assert splits.test[1] == Example("test_file:2", "p5", ("r5",), "c")


def test_all_fields_are_read_and_texts_stay_raw(tmp_path):
    rows = _rows(2) + [
        {
            "prompt": " Hi {prompt}\n",
            "responses": ["a ", "b"],
            "rewards": [1, 0.25],
            "source": "web",
            "id": 17,
        }
    ]
    rows[0] |= {"reward": 0.5}
    rows[1] |= {"reward": 0.75, "id": "mine"}
    first, *others = _all(own.load(_options(_write(tmp_path / "a.jsonl", rows))))
    assert first == Example("17", " Hi {prompt}\n", ("a ", "b"), "web", (1.0, 0.25))
    assert [(e.id, e.source, e.rewards) for e in others] == [
        ("train_file:1", "a", (0.5,)),
        ("mine", "a", (0.75,)),
    ]


def test_rows_with_one_prompt_are_joined_and_it_is_noted(tmp_path):
    rows = _rows(3) + [{"prompt": "p0", "response": "another"}]
    splits = own.load(_options(_write(tmp_path / "a.jsonl", rows)))
    assert _all(splits)[0].responses == ("r0", "another")
    assert splits.notes[1:] == ("1 of 4 rows joined to an earlier row with the same prompt.",)


def test_fields_that_are_not_read_are_noted(tmp_path):
    splits = own.load(_options(_write(tmp_path / "a.jsonl", _rows(3, {"rewrad": 1}))))
    assert splits.notes[1:] == ("Field 'rewrad' of 3 rows is not read.",)


def test_a_csv_file_works_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response,reward\n" + "".join(f"p{n},r{n},0.5\n" for n in range(3)))
    assert _all(own.load(_options(str(path))))[0] == Example(
        "train_file:1", "p0", ("r0",), "a", (0.5,)
    )


def test_a_limit_keeps_that_many_training_prompts(tmp_path):
    splits = own.load(_options(_write(tmp_path / "a.jsonl", _rows(10)), limit=3))
    assert len(splits.train) == 3


def test_the_template_is_the_bare_prompt_unless_the_config_says_otherwise():
    assert get_task(_options("a")).template == "{prompt}"
    assert get_task(_options("a", template="Q: {prompt}")).template == "Q: {prompt}"


def test_the_template_may_be_the_models_own_with_a_day_that_stays_the_same():
    task = get_task(_options("a", template="chat", date="2026-02-28"))
    assert (task.template, task.date, task.stop) == ("chat", "2026-02-28", ())
    assert [turn.role for turn in task.conversation("hi")] == ["user"]
    with pytest.raises(UserError, match="task.date=.2026-02-30. is no date: expected YYYY-MM-DD"):
        get_task(_options("a", template="chat", date="2026-02-30"))
    with pytest.raises(UserError, match="has no {prompt}: add it .*, or give .chat. for the model"):
        get_task(_options("a", template="Chat"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "r"}, "line 3: no field 'prompt'; expected text"),
        ({"prompt": "p"}, "line 3: no field 'response'; expected text"),
        ({"prompt": 5, "response": "r"}, "line 3, field 'prompt': expected text, got int 5"),
        ({"prompt": " ", "response": "r"}, "line 3, field 'prompt': the prompt is empty"),
        ({"prompt": "p", "response": "\n"}, "line 3: response 1 of 1 is empty"),
        ({"prompt": "p", "responses": ["a", ""]}, "line 3: response 2 of 2 is empty"),
        ({"prompt": "p", "responses": []}, "line 3, field 'responses': the list is empty"),
        ({"prompt": "p", "responses": "a"}, "line 3, field 'responses': expected a list"),
        ({"prompt": "p", "response": "a", "responses": ["a"]}, "line 3: has both 'response' and"),
        ({"prompt": "p", "response": "a", "reward": float("nan")}, "line 3, field 'reward'.*nan"),
        ({"prompt": "p", "response": "a", "reward": "good"}, "field 'reward': expected a number"),
        ({"prompt": "p", "response": "a", "rewards": [1, 2]}, "line 3: 2 rewards for 1 responses"),
        ({"prompt": "p", "responses": ["a", "b"], "reward": 1}, "line 3: 1 rewards for 2 resp"),
        ({"prompt": "p", "response": "a", "id": [1]}, "line 3, field 'id': expected text"),
        ({"prompt": "p", "response": "a", "source": 1}, "line 3, field 'source': expected text"),
        ({"prompt": "p", "response": "a", "reward": 1.0}, r"a\.jsonl, line 1: no field 'reward'"),
    ],
)
def test_a_bad_row_names_file_line_and_fault(tmp_path, row, message):
    path = _write(tmp_path / "a.jsonl", [*_rows(2), row])
    with pytest.raises(UserError, match=message) as caught:
        own.load(_options(path))
    assert "a.jsonl, line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rewards_in_one_file_only_are_a_clear_error(tmp_path):
    options = _options(
        _write(tmp_path / "a.jsonl", _rows(3, {"reward": 1.0})),
        validation_file=_write(tmp_path / "b.jsonl", [{"prompt": "x", "response": "r"}]),
        test_file=_write(tmp_path / "c.jsonl", [{"prompt": "y", "response": "r"}]),
    )
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: no field 'reward', but .*a\.jsonl"):
        own.load(options)


def test_a_prompt_in_two_files_is_a_clear_error(tmp_path):
    options = _options(
        _write(tmp_path / "a.jsonl", _rows(3)),
        validation_file=_write(tmp_path / "b.jsonl", [{"prompt": "x", "response": "r"}]),
        test_file=_write(tmp_path / "c.jsonl", [{"prompt": "P1!", "response": "r"}]),
    )
    with pytest.raises(UserError, match=r"c\.jsonl: the prompt 'P1!' .* is in .*a\.jsonl too"):
        own.load(options)


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"b\.jsonl: no such file"):
        own.load(_options(str(tmp_path / "b.jsonl")))


def test_an_empty_file_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: the file has no rows"):
        own.load(_options(_write(tmp_path / "a.jsonl", [])))


def test_an_unnamed_training_file_is_a_clear_error():
    with pytest.raises(UserError, match="task.train_file is empty"):
        own.load(_options(""))


def test_a_validation_file_without_a_test_file_is_a_clear_error(tmp_path):
    path = _write(tmp_path / "a.jsonl", _rows(3))
    with pytest.raises(UserError, match="name both, or neither"):
        own.load(_options(path, validation_file=path))


def test_the_former_name_is_the_same_task_and_a_note_says_so(tmp_path):
    options = _options(_write(tmp_path / "a.jsonl", _rows(5)))
    options.name = jsonl.get_config().task.name
    assert get_task(options) is own.OWN
    splits = own.load(options)
    assert splits.notes[0] == "task.name='jsonl' is the former name of 'own'."
    assert own.OWN.name == own_config.get_config().task.name
