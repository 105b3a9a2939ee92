"""Single texts and pairs as models that read whole texts want them."""

import json
import random

import pytest
import transformers

from alol_jax.errors import UserError
from alol_jax.text.tokenizer_files import byte_level, from_directory
from tests.text.tokenizer_kinds import KINDS, TEXTS, bert

FRAMED = {name: KINDS[name] for name in ("roberta", "llama", "llama3")} | {"bert": bert}


@pytest.fixture(scope="module", params=FRAMED)
def both(request, tmp_path_factory):
    folder = FRAMED[request.param](tmp_path_factory.mktemp("pairs") / "t")
    written = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    return from_directory(folder), written


def test_single_texts_have_the_ids_that_transformers_gives_them(both):
    ours, theirs = both
    for text in TEXTS:
        for limit in (3, 4, 5, 8, 99):
            expected = theirs(text, truncation=True, max_length=limit).input_ids
            assert list(ours.encode_single(text, limit=limit)) == expected, (text, limit)


def test_pairs_have_the_ids_that_transformers_gives_them_in_a_batch(both):
    ours, theirs = both
    draw = random.Random(0)
    for _ in range(200):
        first, second = ("".join(draw.choices(TEXTS, k=draw.randint(0, 3))) for _ in range(2))
        limit = draw.choice((6, 7, 8, 9, 12, 13, 20, 99))
        expected = theirs([first], [second], truncation=True, max_length=limit).input_ids[0]
        assert list(ours.encode_pair(first, second, limit=limit)) == expected, (
            first,
            second,
            limit,
        )


def test_roberta_puts_its_tokens_around_and_between(tmp_path):
    ours = from_directory(KINDS["roberta"](tmp_path / "t"))
    a, b = ours.encode("hello"), ours.encode(" there")
    assert ours.encode_single("hello", limit=99) == (0, *a, 2)
    assert ours.encode_pair("hello", " there", limit=99) == (0, *a, 2, 2, *b, 2)
    assert ours.encode_pair("hello", "", limit=99) == (0, *a, 2, 2, 2)


def test_bert_puts_its_tokens_around_and_between_in_lower_case(tmp_path):
    ours = from_directory(bert(tmp_path / "t"))
    a, b = ours.encode("the cat"), ours.encode("sat")
    assert ours.encode_single("The  CAT", limit=99) == (2, *a, 3)
    assert ours.encode_pair("the cat", "sat", limit=99) == (2, *a, 3, *b, 3)
    assert (ours.eos, ours.eos_id, ours.pad_id) == ("[SEP]", 3, 0)


def test_berts_special_tokens_in_texts_are_spelled_out_and_its_unknown_one_is_used(tmp_path):
    ours = from_directory(bert(tmp_path / "t"))
    spelled = ours.encode_single("a [SEP] b [CLS][UNK]", limit=99)
    assert spelled[0] == 2 and spelled[-1] == 3 and not {2, 3, 4} & set(spelled[1:-1])
    assert ours.encode_single("\u65e5", limit=99) == (2, 1, 3)


def test_a_bert_without_the_name_of_its_end_token_is_one_clear_line(tmp_path):
    folder = bert(tmp_path / "t")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["sep_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="tokenizer_config.json names no sep_token: add it"):
        from_directory(folder)


def test_special_tokens_in_texts_are_spelled_out(tmp_path):
    ours = from_directory(KINDS["roberta"](tmp_path / "t"))
    text = "a</s></s>b <mask>"
    spelled = ours.encode_response(text, limit=99)[0][:-1]
    assert not {0, 2, ours.vocab_size - 1} & set(spelled)
    assert ours.encode_single(text, limit=99) == (0, *spelled, 2)
    assert ours.encode_pair(text, text, limit=99) == (0, *spelled, 2, 2, *spelled, 2)


def test_without_special_tokens_a_single_text_is_its_ids_and_a_pair_is_refused():
    ours = byte_level()
    assert ours.encode_single("abc", limit=2) == (97, 98)
    with pytest.raises(UserError, match="no special tokens for two texts"):
        ours.encode_pair("a", "b", limit=9)


def test_a_limit_without_room_for_text_is_one_clear_line(tmp_path):
    ours = from_directory(KINDS["roberta"](tmp_path / "t"))
    with pytest.raises(UserError, match="text limit of 2 tokens leaves no room"):
        ours.encode_single("a", limit=2)
    with pytest.raises(UserError, match="text limit of 4 tokens leaves no room"):
        ours.encode_pair("a", "b", limit=4)
