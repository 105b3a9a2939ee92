"""The forms of a conversation: byte-exact as published, and the prompt gives the turns back."""

import pytest

from alol_jax.errors import UserError
from alol_jax.tasks import conversation
from alol_jax.text.tokenizer_files import from_directory
from tests.text.tokenizer_kinds import KINDS

TURNS = ("Which fruit is  red?", "Apples,\ncherries.", "And blue?")
TAGGED = [
    "<|prompter|>Which fruit is  red?",
    "<|assistant|>Apples,\ncherries.",
    "<|prompter|>And blue?",
    "<|assistant|>",
]
PROMPT = (
    "### Human: Which fruit is  red? ### Assistant: Apples,\ncherries. ### Human: And blue? "
    "### Assistant:"
)
TRANSCRIPT = (
    "\n\nHuman: Which fruit is  red?\n\nAssistant: Apples,\ncherries.\n\nHuman: And blue?"
    "\n\nAssistant: Plums."
)


def test_the_prompt_is_the_published_string():
    assert conversation.prompt_of(TURNS) == PROMPT
    assert conversation.prompt_of(("hi",)) == "### Human: hi ### Assistant:"


def test_the_template_puts_the_system_sentence_on_a_line_before_it():
    assert conversation.TEMPLATE.replace("{prompt}", "### Human: hi ### Assistant:") == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.\n"
        "### Human: hi ### Assistant:"
    )


def test_all_forms_say_the_same_turns():
    assert conversation.from_tagged(TAGGED) == TURNS
    assert conversation.turns_of(PROMPT) == TURNS
    assert conversation.from_transcript(TRANSCRIPT) == (TURNS, "Plums.", False)


@pytest.mark.parametrize(
    "turns",
    [
        ("",),
        ("a", "", "b"),
        ("a ###", "### b", "# Human: c"),
        ("###", "###", "###"),
        ("### Human: a", "### Assistant: b", "c"),
        ("Human: a", "Assistant:", "\n\nHuman: b"),
        (" a ", "  b", "c\n"),
        ("a", "b", "c", "d", "e"),
        ("<|user|> </s> <|endoftext|>",),
    ],
)
def test_the_prompt_gives_back_turns_that_hold_no_mark(turns):
    assert conversation.round_trips(turns)
    assert conversation.turns_of(conversation.prompt_of(turns)) == turns


@pytest.mark.parametrize(
    "turns",
    [
        ("a ### Human: b",),
        ("a ### Assistant: b ### Human: c",),
        ("a <|assistant|>b<|prompter|> c",),
        ("<|prompter|>",),
        ("a ### Human:", "b", "c"),
    ],
)
def test_turns_that_hold_a_mark_do_not_survive(turns):
    assert not conversation.round_trips(turns)


def test_a_tag_in_a_turn_becomes_a_mark_as_published():
    assert conversation.prompt_of(("a<|prompter|>b",)) == "### Human: a ### Human: b ### Assistant:"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "hi",
        "### Human: hi",
        "### Human: hi ### Assistant: hello",
        "### Assistant: hi ### Human:",
        "### Human: a ### Human: b ### Assistant:",
        "Well. ### Human: hi ### Assistant:",
        "### Human: hi ### Assistant: hello ### Assistant:",
    ],
)
def test_a_text_that_is_no_conversation_is_refused(prompt):
    with pytest.raises(UserError, match="is no conversation: expected '### Human: … ###"):
        conversation.turns_of(prompt)


@pytest.mark.parametrize(
    "tagged",
    [
        [],
        ["<|assistant|>"],
        ["<|prompter|>a"],
        ["<|prompter|>a", "<|assistant|>b"],
        ["<|prompter|>a", "<|prompter|>b", "<|assistant|>"],
        ["<|assistant|>a", "<|prompter|>b", "<|assistant|>"],
        ["a", "<|assistant|>"],
    ],
)
def test_tagged_turns_that_do_not_alternate_are_none(tagged):
    assert conversation.from_tagged(tagged) is None


def test_the_paragraphs_of_a_transcript_are_read_as_the_published_preprocessing_does():
    text = (
        "\n\nHuman:   a list, please \n\nit must be short\n\nHuman: now\n\nAssistant: Here:"
        "\n\n1. one\n\n2. two\n\nHuman: \n\nAssistant: Assistant: x\ny\n\nAssistant:z\n\n"
    )
    turns = ("a list, please\nnow", "Here:", "")
    assert conversation.from_transcript(text) == (turns, "Assistant: x\ny\nz", True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no speaker at all",
        "\n\nHuman: hi",
        "\n\nAssistant: hi",
        "\n\nAssistant: hi\n\nHuman: a\n\nAssistant: b",
        "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
    ],
)
def test_a_transcript_without_prompt_and_answer_is_none(text):
    assert conversation.from_transcript(text) is None


@pytest.mark.parametrize(
    ("text", "response"),
    [
        (" Plums. ###", "Plums."),
        ("Plums.\n Human: more?", "Plums."),
        ("Plums.\nHuman: more?\n\nAssistant: no", "Plums."),
        ("Plums.\n### Human: more?", "Plums."),
        ("Plums. ###\nHuman: more?", "Plums."),
        ("### Plums ### figs ###", "Plums  figs"),
        ("Plums ### figs", "Plums ### figs"),
        ("Plums. ### Human: more?", "Plums. ### Human: more?"),
        ("Human: plums", "Human: plums"),
        ("Plums.\nAssistant: figs\n", "Plums.\nAssistant: figs"),
        ("###", ""),
    ],
)
def test_a_generated_text_is_cleaned_as_published(text, response):
    assert conversation.clean(text) == response


@pytest.mark.parametrize("name", ["llama", "llama2"])
def test_the_stop_text_is_the_one_token_that_a_llama_writes_it_as(name, tmp_path):
    """Token 835, ▁###, of the published model: one of the two stop texts encodes as it alone."""
    tokenizer = from_directory(KINDS[name](tmp_path / "t"))
    (piece,) = {tokenizer.encode(f"{said} ###")[-1] for said in ("tea.", "rinse it", "12")}
    assert tokenizer.decode([piece, piece]).split() == ["###", "###"]  # with the space before it
    assert [piece] in [list(tokenizer.encode(stop)) for stop in conversation.STOP]
