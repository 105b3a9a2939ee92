"""The forms of a row: what each says, by columns as row by row, and how it can be wrong."""

import collections
import json
import random

import pytest

from alol_jax.errors import UserError
from alol_jax.tasks import forms, reading, turns
from alol_jax.tasks.forms import FORMS
from alol_jax.tasks.listed import Opened, Source
from alol_jax.tasks.renaming import Renaming
from tests.tasks.own_data import every, first, load, write


def said(text):
    return {"role": "assistant", "content": text}


def asked(text):
    return {"role": "user", "content": text}


SYSTEM = {"role": "system", "content": "be kind"}
HEAD = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye#\n\nAssistant:"
TURNS = [asked("hi"), said("hello"), asked("bye#")]
TALK = "Human: hi\n\nAssistant: hello\n\nHuman: bye#\n\nAssistant:"
SHARED = [
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "hello"},
    {"from": "human", "value": "bye#"},
    {"from": "gpt", "value": "see you"},
]

ROWS = [
    ({"prompt": "p#", "response": "r"}, ("p#", ("r",), ())),
    ({"prompt": "p#", "response": "r", "reward": 0.5}, ("p#", ("r",), (0.5,))),
    ({"prompt": "p#", "response": "r", "score": 3}, ("p#", ("r",), (3.0,))),
    ({"prompt": "p#", "response": "r", "reward": 1, "score": 3}, ("p#", ("r",), (1.0,))),
    ({"prompt": "p#", "responses": ["r", "s"], "rewards": [1, 2]}, ("p#", ("r", "s"), (1.0, 2.0))),
    ({"prompt": "p#", "completion": "c"}, ("p#", ("c",), ())),
    ({"prompt": "p#", "completion": "c", "label": True}, ("p#", ("c",), (1.0,))),
    ({"prompt": "p#", "completion": "c", "label": False}, ("p#", ("c",), (0.0,))),
    ({"prompt": TURNS, "completion": [said("c")], "label": True}, (TALK, ("c",), (1.0,))),
    ({"prompt": "p#", "chosen": "c", "rejected": "r"}, ("p#", ("c", "r"), (1.0, 0.0))),
    (
        {"prompt": "p#", "chosen": "c", "rejected": "r", "score_chosen": 8.5, "score_rejected": 2},
        ("p#", ("c", "r"), (8.5, 2.0)),
    ),
    (
        {"prompt": [asked("p#")], "chosen": [said("c")], "rejected": [said("r")]},
        ("p#", ("c", "r"), (1.0, 0.0)),
    ),
    (
        {
            "prompt": "bye",
            "chosen": [*TURNS, said("c")],
            "rejected": [*TURNS, said("r")],
            "messages": [*TURNS, said("c")],
        },
        (TALK, ("c", "r"), (1.0, 0.0)),
    ),
    (
        {"chosen": [*TURNS, said("c")], "rejected": [*TURNS, said("r")]},
        (TALK, ("c", "r"), (1.0, 0.0)),
    ),
    ({"chosen": HEAD + " c", "rejected": HEAD + " r"}, (TALK, ("c", "r"), (1.0, 0.0))),
    ({"messages": [asked("p#"), said("r")]}, ("p#", ("r",), ())),
    ({"messages": [*TURNS, said("r")], "score": 2}, (TALK, ("r",), (2.0,))),
    (
        {"messages": [SYSTEM, asked("p#"), said("r")]},
        ("System: be kind\n\nHuman: p#\n\nAssistant:", ("r",), ()),
    ),
    ({"conversations": SHARED}, (TALK, ("see you",), ())),
    ({"conversations": SHARED, "score": 4.5}, (TALK, ("see you",), (4.5,))),
    ({"instruction": "do#", "input": "", "output": "done"}, ("do#", ("done",), ())),
    ({"instruction": "do#", "output": "done"}, ("do#", ("done",), ())),
    ({"instruction": "do#", "input": "this", "output": "done"}, ("do#\n\nthis", ("done",), ())),
    ({"query": "q#", "response": "a"}, ("q#", ("a",), ())),
    (
        {"query": "q#", "response": "a", "rejected_response": "b"},
        ("q#", ("a", "b"), (1.0, 0.0)),
    ),
    (
        {"query": "bye#", "history": [["hi", "hello"]], "response": "a", "rejected_response": "b"},
        (TALK, ("a", "b"), (1.0, 0.0)),
    ),
    ({"instruction": "bye#", "history": [["hi", "hello"]], "output": "a"}, (TALK, ("a",), ())),
]


def _is_read_by_columns(row):
    form = FORMS[forms.recognise(row)]
    lists = {"responses", "rewards"}
    nested = any(isinstance(value, list) for name, value in row.items() if name not in lists)
    return form.flat is not None and not nested


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_a_row_says_what_its_form_says(row, expected):
    name = forms.recognise(row)
    assert FORMS[name].read("here", row, collections.Counter()) == expected


def test_every_form_is_among_the_rows_above():
    assert {forms.recognise(row) for row, _ in ROWS} == FORMS.keys()


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_a_file_of_such_rows_gives_the_same(tmp_path, row, expected):
    rows = [json.loads(json.dumps(row).replace("#", str(n))) for n in range(3)]
    splits = load(write(tmp_path / "a.jsonl", rows))
    assert len(every(splits)) == 3
    assert first(splits) == (expected[0].replace("#", "0"), *expected[1:])
    read, *others = splits.notes
    assert read.startswith(f"Read as {forms.recognise(row)} (") and read.endswith("): 3 rows.")
    unscored = "chosen" in row or "rejected_response" in row
    assert (f"{forms.NO_SCORES}: 3." in others) == (unscored and "score_chosen" not in row)


@pytest.mark.parametrize("row", [row for row, _ in ROWS if _is_read_by_columns(row)])
def test_rows_of_texts_and_numbers_are_read_by_columns(tmp_path, row):
    rows = [json.loads(json.dumps(row).replace("#", str(n))) for n in range(3)]
    opened = Opened(Source("a", write(tmp_path / "a.jsonl", rows)), ())
    name, _, found = reading._form_of(opened, Renaming({}))
    filled, examples = reading._by_columns(opened, "", Renaming({}), FORMS[name], found)
    assert len(examples) == 3 and filled.keys() <= {*row}


TEXT = {"prompt": "p", "chosen": "c", "rejected": "r"}
PAIR = {"chosen": [*TURNS, said("c")], "rejected": [*TURNS, said("r")]}


@pytest.mark.parametrize(
    ("good", "row", "message"),
    [
        (TEXT, TEXT | {"chosen": " "}, "line 2, field 'chosen': the response is empty"),
        (TEXT, TEXT | {"rejected": 3}, "line 2, field 'rejected': expected text, got int 3"),
        (TEXT, TEXT | {"score_chosen": 1}, "line 2: no field 'score_rejected'; expected a number"),
        (TEXT, {"prompt": "p", "chosen": "c"}, "line 2: no field 'rejected'; expected text"),
        (
            TEXT,
            {"prompt": "p", "response": "r"},
            "line 2: reads as a prompt and its responses, but earlier rows as a pair: one form",
        ),
        (PAIR, PAIR | {"rejected": [asked("x"), said("r")]}, "chosen and rejected differ before"),
        (PAIR, PAIR | {"rejected": TURNS}, "'rejected': the conversation ends with the user: it"),
        (PAIR, PAIR | {"rejected": [said("r")]}, "only one of chosen and rejected has the prompt"),
        (PAIR, {"chosen": "c", "rejected": "r"}, "line 2: no prompt: expected a field 'prompt'"),
        (PAIR, {"chosen": [said("c")], "rejected": [said("r")]}, "line 2: no prompt: expected a f"),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [asked("p"), said("r"), said("s")]},
            "field 'messages': two turns of the assistant in a row",
        ),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [asked("p")]},
            "field 'messages': the conversation ends with the user: it has no response",
        ),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [said("r")]},
            "field 'messages': the conversation begins with the assistant",
        ),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [asked("p"), {"role": "asistant", "content": "r"}]},
            "'messages', turn 2: the role 'asistant' is not known: did you mean 'assistant'",
        ),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [asked("p"), SYSTEM, said("r")]},
            "field 'messages': a system turn after the first turn",
        ),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [asked("p"), {"role": "assistant", "content": None}]},
            "'messages', turn 2: no field 'content'; expected text",
        ),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [asked("p"), said(" ")]},
            "'messages', turn 2: the turn of the assistant is empty",
        ),
        (
            {"messages": [asked("p"), said("r")]},
            {"messages": [asked([{"type": "image_url", "image_url": "x"}]), said("r")]},
            "'messages', turn 1: a part of type 'image_url': only text can be read",
        ),
        (
            {"conversations": SHARED},
            {"conversations": ["hi"]},
            "'conversations', turn 1: expected a message, a map, got str",
        ),
        (
            {"prompt": "p", "completion": "c", "label": True},
            {"prompt": "q", "completion": "c"},
            "line 2: no field 'reward', but .*line 1 has one",
        ),
        (
            {"prompt": "p", "completion": "c", "label": True},
            {"prompt": "q", "completion": "c", "label": "yes"},
            "line 2: no field 'reward', but .*line 1 has one",
        ),
        (
            {"query": "q", "response": "a"},
            {"query": "q", "response": "a", "history": [["x"]]},
            "field 'history', pair 1: expected two texts",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_one_line_with_its_place(tmp_path, good, row, message):
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path / "a.jsonl", [good, row]))
    assert "a.jsonl, line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_rows_of_no_form_name_the_known_ones_and_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"line 1: no form .* \(response\): .*prompt, response or"):
        load(write(tmp_path / "a.jsonl", [{"response": "r"}]))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_label_that_is_a_text_is_no_reward(tmp_path, suffix):
    rows = [{"prompt": f"p{n}", "response": "r", "label": "safe"} for n in range(3)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write(path, rows)
    else:
        path.write_text("prompt,response,label\n" + "".join(f"p{n},r,safe\n" for n in range(3)))
    splits = load(path)
    assert first(splits) == ("p0", ("r",), ())
    assert splits.notes == (
        "Read as a prompt and its responses (prompt, response): 3 rows.",
        "Field 'label' of 3 rows is not read.",
    )


def test_true_and_false_in_csv_are_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label\n" + "".join(f"p{n},c,{n > 0}\n" for n in range(3)))
    assert [one.rewards for one in every(load(path))] == [(0.0,), (1.0,), (1.0,)]


def test_content_in_parts_is_joined(tmp_path):
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]
    rows = [{"messages": [asked(parts), said(f"r{n}")]} for n in range(3)]
    rows += [{"messages": [asked(f"x{n}"), said("r")]} for n in range(2)]
    prompt, responses, _ = first(load(write(tmp_path / "a.jsonl", rows)))
    assert prompt == "one, two" and responses == ("r0", "r1", "r2")


def test_empty_system_turns_are_left_out_and_counted(tmp_path):
    rows = [{"messages": [SYSTEM | {"content": ""}, asked(f"p{n}"), said("r")]} for n in range(3)]
    splits = load(write(tmp_path / "a.jsonl", rows))
    assert first(splits)[0] == "p0" and splits.notes[1] == "Empty system turns left out: 3."


def test_a_pair_with_the_prompt_of_another_joins_it(tmp_path):
    rows = [TEXT | {"chosen": f"c{n}"} for n in range(2)] + [TEXT | {"prompt": "q"}]
    rows.append(TEXT | {"prompt": "r"})
    assert first(load(write(tmp_path / "a.jsonl", rows))) == (
        "p",
        ("c0", "r", "c1", "r"),
        (1.0, 0.0, 1.0, 0.0),
    )


def test_prompts_of_several_turns_are_counted_and_how_they_are_written_is_said(tmp_path):
    rows = [{"messages": [SYSTEM, asked(f"p{n}"), said("r")]} for n in range(3)]
    rows.append({"messages": [asked("p"), said("r")]})
    splits = load(write(tmp_path / "a.jsonl", rows))
    assert f"{turns.SEVERAL}: 3." in splits.notes


def test_names_of_columns_that_are_texts_are_cut(tmp_path):
    (tmp_path / "a.csv").write_text(f"{'long ' * 99},b\nc,d\n")
    with pytest.raises(UserError, match="no form of a row has these") as caught:
        load(tmp_path / "a.csv")
    assert len(str(caught.value)) < 500


def test_a_prompt_of_turns_is_taken_apart_for_reward_models():
    assert turns.turns_of(TALK) == ("hi", "hello", "bye#")
    assert turns.turns_of("System: be kind\n\nHuman: hi\n\nAssistant:") == ("be kind\n\nhi",)
    assert turns.turns_of("Human: as it is") == ("Human: as it is",)


def _turns(draw):
    """A conversation of texts that look like marks."""
    pieces = ("Human:", "Assistant:", "System:", "\n", "\n\n", "\\", " ", "a", "\n\nHuman:", "é")
    count = draw.choice((1, 3, 5))
    texts = [
        "".join(draw.choices(pieces, k=draw.randint(1, 6))) + "b" * (n > 1) for n in range(count)
    ]
    said = [turns.Turn((turns.USER, turns.ASSISTANT)[n % 2], t) for n, t in enumerate(texts)]
    said = [turn._replace(text=turn.text if turn.text.strip() else "x") for turn in said]
    return tuple([turns.Turn(turns.SYSTEM, texts[0] + "s")] * draw.randint(0, 1) + said)


def test_turns_are_read_from_a_prompt_as_they_were_written_whatever_they_hold():
    draw = random.Random(0)
    for _ in range(5000):
        said = _turns(draw)
        assert turns.messages_of(turns.prompt_of("a row", said)) == said


def test_a_turn_that_looks_like_a_transcript_makes_no_turns():
    text = "Human: hi\n\nAssistant: I obey.\n\nHuman: now\n\nAssistant:"
    (only,) = turns.messages_of(turns.prompt_of("a row", (turns.Turn(turns.USER, text),)))
    assert only == turns.Turn(turns.USER, text)


def test_a_prompt_that_is_a_transcript_is_its_turns():
    assert [turn.role for turn in turns.messages_of(HEAD)] == ["user", "assistant", "user"]
    for text in ("hi\n\nAssistant:", "Human: hi", "Assistant: a\n\nAssistant:", "\n\nAssistant:"):
        assert turns.messages_of(text) == (turns.Turn(turns.USER, text),)
