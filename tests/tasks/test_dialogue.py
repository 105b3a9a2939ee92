"""dialogue: three forms of rows, histories, what is left out, prompts cut by whole turns."""

import json

import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.stages.load import counter_of, load, read_splits
from alol_jax.tasks import dialogue, sources
from tests.tiny_run import context, tiny_lm

END = "<|endoftext|>"
NOTHING = {"no_passages_used": "no_passages_used"}


def turn(text, **sentence):
    """A turn of Wizard of Wikipedia: the wizard's if it has a checked sentence, or {}."""
    if not sentence:
        return {"speaker": "0_Apprentice", "text": text, "retrieved_passages": []}
    return {"speaker": "1_Wizard", "text": text, "checked_sentence": sentence["sentence"]}


def chosen(knowledge, name="chosen_Tea_0"):
    return {"sentence": {name: knowledge}}


def conversation(*turns):
    """A row of Wizard of Wikipedia."""
    return {"chosen_topic": "Tea", "persona": "i like tea", "wizard_eval": 5, "dialog": list(turns)}


WIZARD = conversation(
    turn("Hi, I like tea.", **chosen("Tea is a drink.")),  # before anything was said
    turn("So do I!"),
    turn("It is old.", **chosen("Tea is 5,000 years old.")),
    turn("Really?"),
    turn("I think so.", sentence=NOTHING),
    turn("Where from?"),
    turn("I do not know.", sentence={}),
    turn("From China?"),
    turn("Yes, China.", **chosen("Tea is from China.")),
)


def answer(n=0, history=("Hello.", "Hi."), **changes):
    """An answer of FaithDial."""
    fields = {"dialog_idx": n, "knowledge": f"Fact {n}.", "history": list(history)}
    return fields | {"response": f"It is {n}.", "BEGIN": ["Entailment"], "VRM": []} | changes


def write(path, rows, *, as_list=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(rows, indent=1) if as_list else "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(lines, encoding="utf-8")
    return str(path)


def options(folder, train=None, **changes):
    """Options of the task: answers 0 to 3 train, 4 validates, 5 tests."""
    files = {
        "train_files": (write(folder / "train.jsonl", [answer(n) for n in range(4)]),),
        "validation_files": (write(folder / "valid.jsonl", [answer(4)]),),
        "test_files": (write(folder / "test.jsonl", [answer(5)]),),
    }
    if train is not None:
        files["train_files"] = tuple(map(str, train))
    fields = {"name": "dialogue", "template": "", "max_tokens": 0, "swapped": 0.0}
    return ConfigDict(fields | {"validation": 0, "test": 0, "limit": 0} | files | changes)


def loaded(folder, *rows, as_list=False, **changes):
    """The splits with these rows as the training file."""
    path = write(folder / "these" / "rows.json", list(rows), as_list=as_list)
    return dialogue.load(options(folder, [path], **changes))


def refused(message, folder, *rows, **changes):
    with pytest.raises(UserError, match=message) as caught:
        loaded(folder, *rows, **changes)
    assert "\n" not in str(caught.value)


# three forms


def test_a_wizards_answer_rests_on_its_sentence_and_follows_every_turn_before_it(tmp_path):
    splits = loaded(tmp_path, WIZARD, as_list=True)
    first, second = splits.train
    assert first.prompt == (f"Knowledge: Tea is 5,000 years old.{END}Hi, I like tea.{END}So do I!")
    assert first.responses == ("It is old.",)
    history = [said["text"] for said in WIZARD["dialog"][:-1]]
    assert second.prompt == END.join(("Knowledge: Tea is from China.", *history))
    assert second.responses == ("Yes, China.",)
    assert {e.source for e in splits.train} == {"these_rows"}


def test_answers_that_rest_on_nothing_or_open_the_conversation_are_counted(tmp_path):
    assert set(loaded(tmp_path, WIZARD).notes) == {
        "Left out train answers that rest on no sentence: 2.",
        "Dropped train answers without a history: 1.",
    }


def test_utterances_and_flat_rows_of_faithdial_give_the_same_examples(tmp_path):
    answers = [answer(n) for n in range(3)]
    flat = loaded(tmp_path, *answers)
    nested = loaded(tmp_path, {"utterances": answers[:2]}, {"utterances": answers[2:]})
    assert flat == nested
    assert [e.prompt for e in flat.train] == [
        f"Knowledge: Fact {n}.{END}Hello.{END}Hi." for n in range(3)
    ]
    assert [e.responses for e in flat.train] == [(f"It is {n}.",) for n in range(3)]


def test_forms_may_be_mixed_in_a_file_and_between_files(tmp_path):
    mixed = loaded(tmp_path, WIZARD, answer(7), {"utterances": [answer(8)]}, as_list=True)
    assert [e.responses[0] for e in mixed.train] == [
        *("It is old.", "Yes, China.", "It is 7.", "It is 8.")
    ]
    one, other = (
        write(tmp_path / "w.json", [WIZARD], as_list=True),
        write(tmp_path / "f.jsonl", [answer(7), {"utterances": [answer(8)]}]),
    )
    apart = dialogue.load(options(tmp_path, [one, other]))
    assert [e.prompt for e in apart.train] == [e.prompt for e in mixed.train]
    assert [e.source.rpartition("_")[2] for e in apart.train] == ["w", "w", "f", "f"]


def test_several_answers_to_one_prompt_are_one_example(tmp_path):
    (example,) = loaded(tmp_path, answer(), answer(response="Well, 0."), answer()).train
    assert example.responses == ("It is 0.", "Well, 0.", "It is 0.")


def test_an_answer_of_faithdial_may_have_a_stored_reward(tmp_path):
    rows = (answer(0, reward=0.75), answer(0, response="No.", reward=0), answer(1, reward=1))
    splits = loaded(tmp_path, *rows)
    assert [example.rewards for example in splits.train] == [(0.75, 0.0), (1.0,)]
    refused("field 'reward': expected a number, got str 'good'", tmp_path, answer(reward="good"))


def test_ids_of_files_of_the_same_name_differ(tmp_path):
    paths = [
        write(tmp_path / name / "rows" / "train.json", [answer(n), answer(n + 1)])
        for n, name in ((10, "a"), (20, "b"))
    ]
    splits = dialogue.load(options(tmp_path, paths))
    assert len({e.id for e in splits.train}) == 4
    assert {e.source for e in splits.train} == {"rows_train"}
    load(dialogue.DIALOGUE, options(tmp_path, paths), (), None, context=context(tmp_path))


def test_a_split_of_the_hub_is_read_by_its_name(tmp_path, monkeypatch):
    asked = []

    def read_rows(name, split, noted, progress):
        asked.append((name, split))
        yield "here", answer(9)

    monkeypatch.setattr(sources, "read_rows", read_rows)
    (example,) = dialogue.load(options(tmp_path, ["McGill-NLP/FaithDial:train"])).train
    assert asked == [("McGill-NLP/FaithDial", "train")]
    assert (example.responses, example.source) == (("It is 9.",), "faithdial")
    held_out = dialogue.files(options(tmp_path, ["McGill-NLP/FaithDial:train"]))
    assert [path.name for path in held_out] == ["valid.jsonl", "test.jsonl"]


# what is left out, and kept apart


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (answer(history=()), "without a history"),
        (answer(history=("", " ")), "without a history"),
        (answer(response=" "), "without a text or knowledge"),
        (answer(knowledge="\n"), "without a text or knowledge"),
        (answer(response=f"a{END}"), f"with {END} in a text"),
        (answer(knowledge=f"a{END}"), f"with {END} in a text"),
        (answer(history=("a", f"b{END}c")), f"with {END} in a text"),
    ],
)
def test_an_answer_that_cannot_be_used_is_counted(tmp_path, row, fault):
    splits = loaded(tmp_path, row, answer(1))
    assert [e.responses for e in splits.train] == [("It is 1.",)]
    assert splits.notes == (f"Dropped train answers {fault}: 1.",)


def test_prompts_of_validation_and_test_are_no_training_prompts(tmp_path):
    splits = loaded(tmp_path, *(answer(n) for n in range(6)))
    assert [e.responses for e in splits.train] == [(f"It is {n}.",) for n in range(4)]
    assert splits.notes == ("Dropped train prompts that are validation or test prompts: 2.",)


def test_as_many_prompts_are_kept_as_are_asked_for(tmp_path):
    many = write(tmp_path / "many.jsonl", [answer(n) for n in range(100, 120)])
    changes = {"validation_files": (many,), "validation": 7, "limit": 2}
    splits = dialogue.load(options(tmp_path, **changes))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 7, 1)


# what is refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 1}, "line 1: neither a conversation .* found: label, text"),
        ({}, "line 1: neither a conversation .* found: none"),
        (conversation("Hi"), "line 1, field 'dialog': expected a list of objects"),
        (conversation({"speaker": "0_Wizard"}), "line 1: no field 'text'"),
        (conversation({"text": "a"}), "line 1: no field 'speaker'"),
        (conversation(turn("a", sentence=["b"])), "field 'checked_sentence': expected a map"),
        ({"dialog": "Hi"}, "line 1, field 'dialog': expected a list, got str"),
        ({"utterances": ["Hi"]}, "line 1, field 'utterances': expected a list of objects"),
        (answer() | {"history": "Hi"}, "line 1, field 'history': expected a list, got str"),
        (answer(history=["Hi", 1]), "field 'history', element 2: expected text, got int"),
        (answer(knowledge=None), "line 1: no field 'knowledge'"),
        (answer(response=1), "line 1, field 'response': expected text, got int"),
        (conversation(), "rows.json: the file has no answers"),
    ],
)
def test_a_malformed_row_is_one_line_with_its_place(tmp_path, row, message):
    refused(message, tmp_path, row)


@pytest.mark.parametrize("key", dialogue.KEYS.values())
def test_files_that_are_not_named_one_by_one_are_refused_before_any_is_read(tmp_path, key):
    for names, message in (("a/b.json", "is a text: expected a tuple"), ((), "is empty: name")):
        wrong = options(tmp_path, **{key: names})
        for ask in (dialogue.files, dialogue.load):
            with pytest.raises(UserError, match=f"task.{key} {message}"):
                ask(wrong)


@pytest.mark.parametrize("name", ["validation", "test", "limit"])
def test_a_negative_count_is_one_line(tmp_path, name):
    refused(f"task.{name} is -1", tmp_path, answer(), **{name: -1})


def test_a_file_that_is_missing_is_one_line(tmp_path):
    refused("/nowhere.json: no such file", tmp_path, answer(), test_files=("/nowhere.json",))


# what reward models read


PROMPT = f"Knowledge: Tea is old.{END}Hello.{END}Hi.{END}Tea?"


def test_a_critic_of_faithfulness_reads_knowledge_and_response_others_the_turns():
    assert dialogue.pair(PROMPT, "Yes.") == ("Tea is old.", "Yes.")
    assert dialogue.turns_of(PROMPT) == ("Hello.", "Hi.", "Tea?")
    exchange = dialogue.DIALOGUE.exchange(PROMPT, "Yes.")
    assert exchange[:3] == (("Hello.", "Hi.", "Tea?"), "Yes.", ("Tea is old.", "Yes."))
    roles = [turn.role for turn in exchange.conversation]
    assert roles == ["system", "user", "assistant", "user"]  # the knowledge is the system turn


def test_a_shorter_prompt_has_lost_its_oldest_turn_and_never_the_last():
    shorter = dialogue.shorten(PROMPT)
    assert shorter == f"Knowledge: Tea is old.{END}Hi.{END}Tea?"
    assert dialogue.pair(shorter, "") == dialogue.pair(PROMPT, "")
    assert dialogue.shorten(dialogue.shorten(shorter)) is None


# prompts that are too long for the model


def words(count, word="ab"):
    return " ".join([word] * count)


def shortened(folder, rows, limit, **changes):
    """The splits of a model that reads so many tokens, which are bytes: an end is one."""
    lm = tiny_lm(limits=tiny_lm().limits._replace(prompt=limit))
    path = write(folder / "rows.jsonl", rows)
    chosen = options(folder, [path], **changes)
    return read_splits(dialogue.DIALOGUE, chosen, counter_of(lm, dialogue.DIALOGUE, chosen)), lm


def test_a_prompt_that_is_too_long_loses_whole_turns_and_keeps_its_knowledge(tmp_path):
    turns = [f"{name} {words(6)}" for name in "abcdef"]
    rows = [answer(7, history=turns), answer(8, history=turns[-1:])]
    splits, lm = shortened(tmp_path, rows, 90)
    counter = counter_of(lm, dialogue.DIALOGUE, options(tmp_path))
    cut, whole = splits.train
    assert dialogue.pair(cut.prompt, "")[0] == "Fact 7."
    kept = dialogue.turns_of(cut.prompt)
    assert 0 < len(kept) < 6 and list(kept) == turns[-len(kept) :]
    assert counter.prompts([cut.prompt])[0] <= 90
    one_more = END.join(("Knowledge: Fact 7.", *turns[-len(kept) - 1 :]))
    assert counter.prompts([one_more])[0] > 90
    assert whole.prompt == f"Knowledge: Fact 8.{END}{turns[-1]}"
    assert splits.notes == (
        "The oldest turns of 1 of 2 train prompts left out, to fit in 90 tokens.",
    )


def test_one_turn_that_is_too_long_stays_and_loses_its_first_tokens_in_the_model(tmp_path):
    rows = [answer(7, history=["Hello.", f"start {words(60)} end."])]
    splits, lm = shortened(tmp_path, rows, 60)
    (example,) = splits.train
    assert dialogue.turns_of(example.prompt) == (rows[0]["history"][1],)
    task = dialogue.DIALOGUE
    ids, truncated = lm.tokenizer.encode_prompts(
        task.template, [example.prompt], limit=60, marks=task.marks
    )
    assert truncated == 1 and ids.lengths.tolist() == [60]
    assert lm.tokenizer.decode(ids[0]).endswith("ab end.")


def test_a_prompt_that_is_short_enough_is_as_it_was(tmp_path):
    rows = [answer(n) for n in range(7, 12)]
    splits, _ = shortened(tmp_path, rows, 90)
    assert splits == dialogue.load(options(tmp_path, [tmp_path / "rows.jsonl"]))


def test_prompts_that_are_alike_without_their_oldest_turns_are_kept_apart(tmp_path):
    rows = [answer(7, history=(f"{name} {words(30)}", "Tea?")) for name in "abc"]
    files = {
        f"{split}_files": (write(tmp_path / "alike" / f"{split}.jsonl", [row, answer(n)]),)
        for n, (split, row) in enumerate(zip(("validation", "test"), rows, strict=False))
    }
    splits, _ = shortened(tmp_path, [rows[2], answer(8)], 60, **files)
    short = f"Knowledge: Fact 7.{END}Tea?"
    assert [e.prompt == short for e in splits.validation] == [True, False]
    assert [e.prompt == short for e in (*splits.test, *splits.train)] == [False, False]
    for split in ("test", "train"):
        said = f"Dropped {split} prompts that are held-out ones without their oldest turns: 1."
        assert said in splits.notes


# lists read in pieces


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 10_000])
def test_a_list_gives_the_same_rows_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    rows = [WIZARD, answer(1, history=['„Tee“ 🍵 [a], {b}: "c\\\\"', "]"]), {"utterances": []}]
    path = write(tmp_path / "a.json", rows, as_list=True)
    monkeypatch.setattr(sources, "PIECE", piece)
    found = list(sources.read_file(tmp_path / "a.json"))
    assert [row for _, row in found] == rows
    assert [where for where, _ in found] == [f"{path}, row {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("piece", [3, 10_000])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a": ', "row 2: not valid JSON: "),
        ('[{"a": 1}, {"a": 2}', "row 3: not valid JSON: "),
        ('[{"a": 1}, {a: 2}]', "row 2: not valid JSON: "),
        ('[{"a": 1} {"a": 2}]', "row 2: not valid JSON: "),
        ('[{"a": 1}, ]', "row 2: not valid JSON: "),
        ('[{"a": 1}] {"a": 2}', "text after the list of 1 rows"),
        ("[] []", "text after the list of 0 rows"),
        ("[", "row 1: not valid JSON: "),
        ("[[1, 2]]", "row 1: expected a JSON object, got list"),
        ('[{"a": 1}, "b"]', "row 2: expected a JSON object, got str"),
        ("[" * 100_000, "row 1: not valid JSON: "),
    ],
)
def test_a_damaged_list_is_one_line_with_the_row(tmp_path, monkeypatch, content, message, piece):
    (tmp_path / "a.json").write_text(content)
    monkeypatch.setattr(sources, "PIECE", piece if len(content) < 999 else 10_000)
    with pytest.raises(UserError, match=rf"a\.json[,:] {message}") as caught:
        list(sources.read_file(tmp_path / "a.json"))
    assert "\n" not in str(caught.value)


def test_an_empty_list_has_no_rows_and_bad_bytes_are_one_line(tmp_path):
    (tmp_path / "a.json").write_text(" [ ] ")
    assert list(sources.read_file(tmp_path / "a.json")) == []
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(UserError, match=r"a\.json, row 1: cannot be read \('utf-8' codec"):
        list(sources.read_file(tmp_path / "a.json"))
