"""Marks of a task: special tokens in a prompt's text, where the tokenizer has them."""

import pytest

from alol_jax.tasks import comet
from alol_jax.text import tokenizer_files
from tests.text import tokenizer_kinds

END = "<|endoftext|>"
TEXTS = (
    f"Knowledge: it is old.{END}Hello.{END}How are you?",
    f"{END}{END}a",
    f"naïve 日本語{END}🙂",
    "no mark",
)


def ids(tokenizer, text, *, marks=(), limit=10_000, template="{prompt}:"):
    found, truncated = tokenizer.encode_prompts(template, [text], limit=limit, marks=marks)
    return found[0].tolist(), bool(truncated)


@pytest.fixture(scope="module", params=["gpt2", "neox", "byte"])
def tokenizer(request, tmp_path_factory):
    """Tokenizers to which the end of a turn is a special token."""
    if request.param == "byte":
        return tokenizer_files.byte_level()
    folder = tmp_path_factory.mktemp("kinds") / request.param
    return tokenizer_files.from_directory(tokenizer_kinds.JSON_KINDS[request.param](folder))


@pytest.mark.parametrize("text", TEXTS)
def test_a_mark_is_parsed_as_if_it_stood_in_the_template(tokenizer, text):
    assert ids(tokenizer, text, marks=(END,)) == (tokenizer.encode(f"{text}:"), False)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_without_marks_the_same_text_is_plain(tokenizer, text):
    (special,) = tokenizer.encode(END)
    assert special not in ids(tokenizer, text)[0]
    assert ids(tokenizer, text, marks=(END,))[0].count(special) == text.count(END)


def test_other_special_tokens_of_the_text_stay_text():
    tokenizer = tokenizer_files.byte_level()
    found, _ = ids(tokenizer, f"a<|im_end|>{END}<|im_start|>", marks=(END,))
    assert found == [*b"a<|im_end|>", 256, *b"<|im_start|>:"]


def test_a_mark_that_the_tokenizer_lacks_stays_the_text_it_is(tokenizer):
    prompt = comet.PROMPT.format(head="PersonX eats", relation="xWant")
    marked = ids(tokenizer, prompt, marks=comet.MARKS)
    assert marked == ids(tokenizer, prompt) == (tokenizer.encode(f"{prompt}:"), False)


def test_marks_of_the_vocabulary_are_parsed_be_they_special_or_only_added(tmp_path):
    backend = tokenizer_kinds.gpt2_backend()
    backend.add_special_tokens(["<head>", "[GEN]"])
    backend.add_tokens(["</head>"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    folder = tokenizer_kinds.write(tmp_path / "t", settings, tokenizer__json=backend.to_str())
    tokenizer = tokenizer_files.from_directory(folder)
    text = "<head> a </head> [GEN] "
    found, _ = ids(tokenizer, text, marks=comet.MARKS)
    for mark in ("<head>", "</head>", "[GEN]"):
        assert found.count(backend.token_to_id(mark)) == 1
    assert tokenizer.encode_response(text, limit=99)[0].count(backend.token_to_id("[GEN]")) == 0


def test_a_response_never_has_a_mark(tokenizer):
    (special,) = tokenizer.encode(END)
    (response,), _ = tokenizer.encode_responses([f"yes{END}no"], limit=99)
    assert special not in response[:-1]


@pytest.mark.parametrize("text", TEXTS[:3])
def test_what_is_cut_keeps_its_marks_parsed(tokenizer, text):
    (special,) = tokenizer.encode(END)
    whole, _ = ids(tokenizer, text, marks=(END,))
    shortest = len(ids(tokenizer, "", marks=(END,))[0])
    for limit in range(shortest, len(whole)):
        cut, truncated = ids(tokenizer, text, marks=(END,), limit=limit)
        assert truncated and len(cut) <= limit
        kept = text[len(text) - len(_decoded(tokenizer, cut)) + 1 :]
        assert cut == ids(tokenizer, kept, marks=(END,))[0]
        assert cut.count(special) == kept.count(END)


def _decoded(tokenizer, cut):
    """The text of ids, with special tokens."""
    return tokenizer._parsing.decode(cut, skip_special_tokens=False)


def test_each_of_many_prompts_is_cut_as_it_is_alone(tokenizer):
    texts = [*TEXTS, *(text * 3 for text in TEXTS)]
    together, truncated = tokenizer.encode_prompts("{prompt}:", texts, limit=12, marks=(END,))
    alone = [ids(tokenizer, text, marks=(END,), limit=12) for text in texts]
    assert list(map(list, together.tolist())) == [found for found, _ in alone]
    assert truncated == sum(cut for _, cut in alone) > 0
