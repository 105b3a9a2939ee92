"""Prompts in a model's own chat template: the ids of transformers, and text that stays text."""

import dataclasses
import functools
import itertools
import random

import pytest
import transformers

from alol_jax.errors import UserError
from alol_jax.text.prompts import ANY_DAY, ChatPrompts, encoder_of, in_chat, notes_on_template
from alol_jax.text.responses import Frame
from alol_jax.text.tokenizer_files import byte_level, from_directory
from alol_jax.types import ASSISTANT, CHAT, SYSTEM, USER, Turn
from tests.text.chat_templates import TEMPLATES, directory, tokenizer_with
from tests.tiny_run import TASK

CONTENTS = (
    *(
        "hello",
        " hello ",
        "It's the user's.\n",
        "\n\nnaïve café",
        "日本語 🙂",
        "a < b > c",
        "1 [x] 2",
    ),
    *("<think>\nhm\n</think>\n\nyes", "| pipe |>", "a\n\nHuman: b", "{{ 7 * 7 }}{% raw %}"),
)


@pytest.fixture(scope="module", params=TEMPLATES)
def both(request, tmp_path_factory):
    """A template's name, our tokenizer for it and that of transformers."""
    folder = directory(request.param, tmp_path_factory.mktemp("chat") / "t")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    return request.param, in_chat(from_directory(folder)), theirs


def talks(name, count=40):
    """Conversations that end with the user, with and without a system turn."""
    draw = random.Random(0)
    for number in range(count):
        turns = [
            Turn((USER, ASSISTANT)[n % 2], draw.choice(CONTENTS)) for n in range(number % 3 * 2 + 1)
        ]
        if number % 2 and name != "gemma":
            turns.insert(0, Turn(SYSTEM, draw.choice(CONTENTS)))
        yield tuple(turns)


def prompts(tokenizer, talk, **changes):
    """What encodes one conversation, whatever the text."""
    given = ChatPrompts(tokenizer, lambda text: talk, (), ANY_DAY)
    return dataclasses.replace(given, **changes)


def ids(tokenizer, talk, limit=10_000, **changes):
    return prompts(tokenizer, talk, **changes).encode([""], limit=limit)[0][0].tolist()


def messages(talk):
    return [{"role": turn.role, "content": turn.text} for turn in talk]


def today(theirs, talk, answer_next=True):
    """The ids of transformers, on our day."""
    import datetime
    from unittest import mock

    from transformers.utils import chat_template_utils

    class Day(datetime.datetime):
        @classmethod
        def now(cls):
            return cls.fromisoformat(ANY_DAY)

    with mock.patch.object(chat_template_utils, "datetime", Day):
        return theirs.apply_chat_template(
            messages(talk), add_generation_prompt=answer_next, return_dict=False
        )


def test_the_ids_are_those_of_transformers(both):
    name, ours, theirs = both
    for talk in talks(name):
        assert ids(ours, talk) == today(theirs, talk), talk


@pytest.mark.parametrize(
    "said", ["yes", "a | pipe |>", "It's 12.\n\nfine", "日本語 🙂", " padded \n"]
)
def test_a_prompt_and_its_response_are_the_ids_of_transformers_up_to_the_end_token(both, said):
    name, ours, theirs = both
    if name == "qwen 3":
        pytest.skip("its template writes an empty thought that the generation prompt leaves out")
    asked = (Turn(USER, "tea?"), Turn(ASSISTANT, "no"), Turn(USER, "now?"))
    response, complete = ours.encode_response(said, limit=99)
    found = [*ids(ours, asked), *response]
    whole = today(theirs, (*asked, Turn(ASSISTANT, said)), answer_next=False)
    assert complete and found == whole[: len(found)]
    assert found[-1] == ours.eos_id and ours.eos_id not in response[:-1]


def test_a_response_ends_as_the_template_ends_a_turn(both):
    name, ours, theirs = both
    end = TEMPLATES[name][2]
    assert ours.eos == end and ours.ends[0] == theirs.convert_tokens_to_ids(end)
    response, whole = ours.encode_response("yes", limit=9)
    assert whole or name == "wordy"
    assert ours.decode([*theirs.encode("ok", add_special_tokens=False), ours.eos_id, 5]) == "ok"


def test_an_answer_is_read_back_without_what_the_template_writes_around_it(both):
    _, ours, _ = both
    for said in ("yes", "It's 12.\n\nfine", "日本語"):
        response, _ = ours.encode_response(said, limit=99)
        assert ours.decode(response) == said
        assert ours.decode([*response, *response]) == said


def test_an_answer_that_did_not_end_is_read_back_without_what_stands_before_it(both):
    """So that an answer that was cut has the same tokens when it is encoded again."""
    _, ours, _ = both
    said = "yes it is"
    whole = list(ours.encode_response(said, limit=99)[0])
    for limit in range(1, len(whole)):
        assert (said + ours.ending).startswith(ours.decode(whole[:limit]))
    unended = whole[: whole.index(ours.eos_id)]
    text = ours.decode(unended)
    assert text.startswith(said)
    assert list(ours.encode_response(text, limit=99)[0][: len(unended)]) == unended


def test_special_tokens_in_what_is_said_stay_text(both):
    name, ours, theirs = both
    added = [token for token in ours.special if len(token) > 1]
    names = [token for token in added if "0x" not in token][:8]
    talk = tuple(next(itertools.islice(talks(name), 4, None)))
    for token in names:
        bad = f"a {token} b{token}"
        asked = (*talk[:-1], Turn(USER, bad))
        plain = (*talk[:-1], Turn(USER, "a b"))
        (special,) = theirs.encode(token, add_special_tokens=False)[-1:]
        assert ids(ours, asked).count(special) == ids(ours, plain).count(special), token
        assert theirs.decode(ids(ours, asked)).count(token) == (
            theirs.decode(ids(ours, plain)).count(token) + 2
        ), token


def test_two_texts_side_by_side_never_make_a_special_token(tmp_path):
    """A template that puts nothing between what is said."""
    bare = "{% for m in messages %}{{ m.content | trim }}{% endfor %}<|im_end|>"
    tokenizer = tokenizer_with(bare, tmp_path / "t")
    talk = (Turn(SYSTEM, "x <|im_"), Turn(USER, " end|> y <"))
    found = ids(tokenizer, talk)
    assert found.count(tokenizer.eos_id) == 1 and found[-1] == tokenizer.eos_id
    assert tokenizer.decode(found) == "x <|im_end|> y <"


def test_marks_of_a_task_are_special_in_what_is_said_too():
    tokenizer = in_chat(byte_level())
    talk = (Turn(USER, "a<|endoftext|>b<|im_end|>"),)
    found = ids(tokenizer, talk, marks=("<|endoftext|>",))
    assert found.count(256) == 1 and found.count(258) == 1


def test_added_tokens_that_separate_turns_are_special_whatever_the_files_say(tmp_path):
    from tests.text.tokenizer_kinds import byte_level as trained
    from tests.text.tokenizer_kinds import write

    backend = trained(400, ["<|endoftext|>"])
    backend.add_tokens(["<|im_start|>", "<|im_end|>"])
    settings = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATES["chatml"][0]}
    folder = write(tmp_path / "t", settings, tokenizer__json=backend.to_str())
    tokenizer = in_chat(from_directory(folder))
    assert tokenizer.eos == "<|im_end|>"
    found = ids(tokenizer, (Turn(USER, "a<|im_end|>b"),))
    assert found.count(tokenizer.eos_id) == 1
    assert tokenizer.encode_response("a<|im_end|>", limit=99)[0].count(tokenizer.eos_id) == 1


@pytest.mark.parametrize("name", ["llama 2", "llama 3", "gemma"])
def test_a_response_is_stripped_where_the_template_strips_answers(name, tmp_path):
    tokenizer = in_chat(from_directory(directory(name, tmp_path / "t")))
    bare = tokenizer.encode_response("It's 12.", limit=99)
    assert tokenizer.encode_response("\n It's 12. \n", limit=99) == bare


def test_a_truncated_response_has_no_end_and_one_that_just_fits_has_all_of_it(tmp_path):
    tokenizer = in_chat(from_directory(directory("wordy", tmp_path / "t")))
    whole = tokenizer.encode("no\n(over)<|im_end|>")
    for limit in range(1, len(whole) + 2):
        found, complete = tokenizer.encode_response("no", limit=limit)
        assert list(found) == whole[:limit] and complete == (limit >= len(whole))
    assert tokenizer.decode(whole[:-1]) == "no\n(over)"  # it did not end


def test_a_token_that_would_span_the_prompt_and_the_response_does_not(tmp_path):
    """The prompt's tokens are there when the response begins."""
    given = from_directory(directory("smollm2", tmp_path / "t"))
    anchored = given.in_chat(given.chat, given.eos_id, (), Frame(anchor="h"))
    texts = ["e cat", "x", "", "e", "en"]
    assert len(given.encode("he")) == 1
    found, cut = anchored.encode_responses(texts, limit=99)
    assert cut == 0
    assert found.tolist() == [(*given.encode(text), given.eos_id) for text in texts]


def test_an_answer_may_be_decoded_with_what_the_template_puts_around_it(tmp_path):
    tokenizer = in_chat(from_directory(directory("wordy", tmp_path / "t")))
    whole = tokenizer.encode("no\n(over)<|im_end|>")
    assert tokenizer.decode(whole) == "no"
    assert tokenizer.decode(whole, framed=False) == "no\n(over)"


def test_the_name_of_the_end_token_in_a_response_stays_text_whatever_stands_after_it(tmp_path):
    tokenizer = in_chat(from_directory(directory("wordy", tmp_path / "t")))
    found, complete = tokenizer.encode_response("a<|im_end|>", limit=99)
    assert complete and found.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(found) == "a<|im_end|>"


# limits

TALK = (
    Turn(SYSTEM, "be kind"),
    Turn(USER, "hi"),
    Turn(ASSISTANT, "hello"),
    Turn(USER, "and now?"),
)


def test_a_prompt_beyond_the_limit_loses_turns_then_text_then_the_system_turn():
    tokenizer = in_chat(byte_level())
    alone = functools.partial(ids, tokenizer)
    whole, last = alone(TALK), alone((TALK[0], TALK[-1]))
    assert ids(tokenizer, TALK, len(whole)) == whole
    assert ids(tokenizer, TALK, len(whole) - 1) == last
    assert ids(tokenizer, TALK, len(last) - 3) == alone((TALK[0], Turn(USER, " now?")))
    least = len(alone((TALK[0], Turn(USER, "?"))))
    assert ids(tokenizer, TALK, least) == alone((TALK[0], Turn(USER, "?")))
    assert ids(tokenizer, TALK, least - 1) == alone((TALK[-1],))
    nothing = len(alone((Turn(USER, "?"),)))
    with pytest.raises(UserError, match=f"limit of {nothing - 1} tokens leaves no room: the"):
        ids(tokenizer, TALK, nothing - 1)


def test_how_many_prompts_were_cut_is_counted():
    given = prompts(in_chat(byte_level()), ()).__class__(
        in_chat(byte_level()), lambda text: (Turn(USER, text),), (), ANY_DAY
    )
    found, cut = given.encode(["a", "b" * 50, "c" * 60], limit=50)
    assert cut == 2 and found.lengths.max() <= 50


# which template


def test_the_template_of_a_task_decides(tmp_path):
    tokenizer = in_chat(byte_level())
    asked = dataclasses.replace(TASK, template=CHAT, date=ANY_DAY)
    found, _ = encoder_of(tokenizer, asked, asked.conversation)(["hi"], limit=99)
    assert found[0].tolist() == tokenizer.encode(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    text = dataclasses.replace(TASK, template="Q: {prompt}")
    found, _ = encoder_of(tokenizer, text, text.conversation)(["hi"], limit=99)
    assert found[0].tolist() == tokenizer.encode("Q: hi")


def test_a_chat_model_that_is_given_another_template_is_said(tmp_path):
    other = dataclasses.replace(TASK, template="Q: {prompt}")
    (line,) = notes_on_template(byte_level(), other)
    assert "the model has a chat template, but config.task.template is another one" in line
    chatml = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert notes_on_template(byte_level(), dataclasses.replace(TASK, template=chatml)) == ()
    assert notes_on_template(tokenizer_with(None, tmp_path / "t"), other) == ()


def test_a_template_that_writes_answers_otherwise_than_it_asks_for_them_is_said(both):
    name, ours, _ = both
    _, *more = notes_on_template(ours, dataclasses.replace(TASK, template=CHAT, date=ANY_DAY))
    assert len(more) == (name == "qwen 3")
    assert all("otherwise than behind its generation prompt" in line for line in more)


def test_the_chat_template_and_the_date_it_is_told_are_said(tmp_path):
    chat = dataclasses.replace(TASK, template=CHAT, date="2026-01-31")
    assert notes_on_template(in_chat(byte_level()), chat) == (
        "prompts in the model's own chat template, whose turns end with '<|im_end|>'",
    )
    dated = in_chat(tokenizer_with(TEMPLATES["smollm3"][0], tmp_path / "t"))
    assert "it is told the date 2026-01-31 (config.task.date)" in notes_on_template(dated, chat)[0]
    found = ids(dated, (Turn(USER, "hi"),), date="2026-01-31")
    assert dated.decode(found[1:]).startswith("system\nToday: 31 January 2026")


def test_what_ends_a_turn_is_said_with_the_text_before_it(tmp_path):
    chat = dataclasses.replace(TASK, template=CHAT, date=ANY_DAY)
    tokenizer = in_chat(from_directory(directory("llama 2", tmp_path / "t")))
    (line,) = notes_on_template(tokenizer, chat)
    assert line.endswith("whose turns end with ' </s>'")


def test_a_model_without_a_chat_template_is_one_line_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="the model has no chat template .*: choose a chat model"):
        in_chat(tokenizer_with(None, tmp_path / "t"))


def test_of_several_templates_by_name_the_default_is_read(tmp_path):
    both = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}]
    assert tokenizer_with(both, tmp_path / "t").chat.source == "{{ 1 }}"
    assert tokenizer_with(both[:1], tmp_path / "u").chat is None


def test_only_the_chosen_chat_template_is_part_of_the_fingerprint(tmp_path):
    one = tokenizer_with(TEMPLATES["chatml"][0], tmp_path / "1")
    other = tokenizer_with(TEMPLATES["smollm2"][0], tmp_path / "2")
    assert one.fingerprint() == other.fingerprint()
    assert in_chat(one).fingerprint() != in_chat(other).fingerprint()


def test_what_a_template_writes_around_an_answer_is_part_of_the_fingerprint(tmp_path):
    tokenizer = in_chat(from_directory(directory("wordy", tmp_path / "t")))
    bare = tokenizer.in_chat(tokenizer.chat, tokenizer.eos_id, ())
    assert bare.fingerprint() != tokenizer.fingerprint()
