"""Tokenizers in and out of directories: which files count, bad files, saving."""

import dataclasses
import json
import socket

import pytest
import tokenizers
import transformers
from tokenizers import models

from alol_jax.errors import UserError
from alol_jax.text.gguf_tokenizer import from_gguf
from alol_jax.text.tokenizer_files import byte_level, from_directory, save
from tests.text.test_tokenizer import needs_smollm2, smollm2, smollm2_fields
from tests.text.tokenizer_kinds import (
    KINDS,
    NAMES,
    TEXTS,
    dialogpt,
    gpt2,
    gpt2_backend,
    llama,
    llama_model,
    needs_sentencepiece,
    roberta,
    roberta_parts,
    sentencepiece_model,
    vocabulary_files,
    write,
)

END = "<|endoftext|>"


def edit(file, **fields):
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: v for name, v in content.items() if v != "gone"}))


# which files count


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_of_the_network(name, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder = KINDS[name](tmp_path / "t")
    if (folder / "tokenizer_config.json").exists():
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a/b--c.D", None]})
    assert from_directory(folder).encode("hello")


def test_tokenizer_json_counts_before_other_files(tmp_path):
    folder = gpt2(tmp_path / "t")
    (folder / "vocab.json").write_text("{")
    (folder / "tokenizer.model").write_bytes(b"damaged")
    assert from_directory(folder).encode("hello") == gpt2_backend().encode("hello").ids


@pytest.mark.parametrize("token", [END, {"content": END, "lstrip": False}])
@pytest.mark.parametrize("config", [{"eos_token": "gone"}, {"eos_token": None}])
@pytest.mark.parametrize("added", ["gone", {"0": {"content": END, "special": True}}])
def test_special_tokens_may_stand_in_special_tokens_map(tmp_path, token, config, added):
    folder = gpt2(tmp_path / "t")
    edit(folder / "tokenizer_config.json", **config, added_tokens_decoder=added)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": token}))
    ours = from_directory(folder)
    assert ours.eos_id == ours.pad_id == 0


def test_tokens_that_were_added_behind_the_vocabulary_count(tmp_path):
    folder = dialogpt(tmp_path / "t")
    base = from_directory(folder).vocab_size
    added = {"<head>": base, "</head>": base + 1, "[GEN]": base + 2}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    ours = from_directory(folder)
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(folder))
    text = "<head> the cat </head> [GEN] "
    assert ours.vocab_size == base + 3 == len(theirs)
    assert ours.encode(text) == theirs.encode(text)
    assert {base, base + 1, base + 2} <= set(ours.encode(text))
    assert ours.for_vocab_size(base + 3) is ours
    with pytest.raises(
        UserError, match=f"{base + 3} tokens, the model only {base + 1} .*'</head>'"
    ):
        ours.for_vocab_size(base + 1)


def test_a_pad_token_behind_the_models_vocabulary_is_not_used(tmp_path):
    folder = llama(tmp_path / "t")
    base = from_directory(folder).vocab_size
    edit(folder / "tokenizer_config.json", pad_token="[PAD]")
    ours = from_directory(folder)
    assert (ours.pad_id, ours.vocab_size) == (base, base + 1)
    fitted = ours.for_vocab_size(base)
    assert (fitted.pad_id, fitted.vocab_size) == (fitted.eos_id, base)
    assert max(fitted.encode_prompt("[PAD]{prompt}", "[PAD]", limit=99)) < base
    assert base in ours.encode_prompt("[PAD]{prompt}", "[PAD]", limit=99)
    assert fitted.fingerprint() != ours.fingerprint()
    with pytest.raises(UserError, match="the model only 9"):
        ours.for_vocab_size(9)


@needs_sentencepiece
def test_a_sentencepiece_model_has_a_begin_token_unless_the_config_says_no(tmp_path):
    folder = llama_model(tmp_path / "t")
    assert from_directory(folder).encode_single("hello", limit=9)[0] == 1
    edit(folder / "tokenizer_config.json", add_bos_token=False)
    assert from_directory(folder).encode_single("hello", limit=9)[0] != 1
    assert from_directory(folder).encode_prompt("{prompt}", "hello", limit=9)[0] != 1


# bad files


def without(folder, name):
    (folder / name).unlink()
    return folder


def damaged(folder, name, content=b"{"):
    (folder / name).write_bytes(content)
    return folder


def without_end(folder):
    edit(folder / "tokenizer_config.json", eos_token="gone")
    return folder


def of_nobody(folder):
    edit(folder / "config.json", model_type="opt")
    return folder


def words(folder):
    backend = tokenizers.Tokenizer(models.WordLevel({"x": 0, "</s>": 1}, unk_token="x"))
    return write(folder, {"eos_token": "</s>"}, tokenizer__json=backend.to_str())


def unmerged(folder):
    parts = vocabulary_files(gpt2_backend()) | {"merges__txt": "#version: 0.2\nq qqqqqq\n"}
    return write(folder, None, "gpt2", **parts)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda f: write(f, None), "has no tokenizer: add tokenizer.json, tokenizer.model, or"),
        (lambda f: damaged(gpt2(f), "tokenizer.json"), "tokenizer.json is not readable"),
        (lambda f: damaged(gpt2(f), "tokenizer.json", b"{}"), "tokenizer.json is not readable"),
        (lambda f: damaged(gpt2(f), "tokenizer_config.json"), "_config.json is not readable"),
        (lambda f: damaged(gpt2(f), "special_tokens_map.json", b"\xff"), "_map.json is not read"),
        (lambda f: damaged(gpt2(f), "tokenizer_config.json", b"[]"), "does not hold a JSON object"),
        (lambda f: without_end(gpt2(f)), "tokenizer_config.json names no eos_token: add it"),
        (lambda f: without(dialogpt(f), "vocab.json"), "vocab.json is missing"),
        (lambda f: without(dialogpt(f), "merges.txt"), "merges.txt is missing"),
        (lambda f: damaged(dialogpt(f), "vocab.json"), "vocab.json is not readable"),
        (lambda f: damaged(dialogpt(f), "merges.txt", b"\xff\xfe"), "merges.txt is not readable"),
        (unmerged, "out of vocabulary: download it again"),
        (lambda f: without(dialogpt(f), "config.json"), "says which class reads vocab.json"),
        (
            lambda f: of_nobody(roberta_parts(f)),
            r"config.json \('opt'\) says which class",
        ),
        (words, "the tokenizer is a WordLevel, only BPE and WordPiece are supported"),
        (
            lambda f: write(f, None, "roberta", **vocabulary_files(gpt2_backend())),
            "vocab.json lacks '</s>', '<mask>', '<pad>', '<s>', '<unk>', which RobertaTokenizer",
        ),
    ],
)
def test_a_directory_without_a_usable_tokenizer_is_one_clear_line(make, named, tmp_path):
    with pytest.raises(UserError, match=named) as error:
        from_directory(make(tmp_path / "t"))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@needs_sentencepiece
@pytest.mark.parametrize(
    "content, named",
    [
        (lambda: b"damaged", "tokenizer.model is not a SentencePiece model"),
        (lambda: sentencepiece_model()[:2000], "tokenizer.model is not a SentencePiece model"),
        (lambda: b"IQ== 0\nIg== 1\n", "tokenizer.model is not a SentencePiece model"),
        (lambda: sentencepiece_model("unigram"), "the tokenizer is a Unigram, only BPE"),
    ],
)
def test_a_bad_tokenizer_model_is_one_clear_line(content, named, tmp_path):
    folder = write(tmp_path / "t", None, tokenizer__model=content())
    with pytest.raises(UserError, match=named) as error:
        from_directory(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_a_package_that_is_missing_is_named(package, tmp_path, monkeypatch):
    folder = write(tmp_path / "t", None, tokenizer__model=b"any")
    monkeypatch.setattr(f"transformers.utils.is_{package}_available", lambda: False)
    with pytest.raises(UserError, match="needs two packages: pip install sentencepiece protobuf"):
        from_directory(folder)


# saving


def check_saved(ours, folder, config=None):
    """The directory has the tokenizer's ids for `transformers` and for ourselves."""
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": config}))
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    again = from_directory(folder)
    end = theirs.eos_token
    for text in (*TEXTS, f"{end} a", f"a {end}{end} b", f"{end}7{end}\n"):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, repr(text)
        assert again.encode_response(text, limit=999) == ours.encode_response(text, limit=999), (
            repr(text)
        )
        filled = [t.encode_prompt(f"{end}{{prompt}}{end}", text, limit=999) for t in (ours, again)]
        assert filled[0] == filled[1], repr(text)
        if end not in text:
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert list(ours.encode_single("hello", limit=99)) == theirs("hello").input_ids
    assert theirs.eos_token_id == ours.eos_id == again.eos_id
    assert (again.pad_id, again.vocab_size) == (ours.pad_id, ours.vocab_size)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_config", [False, True])
def test_a_saved_tokenizer_has_the_same_ids_in_transformers(name, with_config, tmp_path):
    folder = KINDS[name](tmp_path / "from")
    config = json.loads((folder / "config.json").read_text())["model_type"]
    ours = from_directory(folder)
    save(ours, tmp_path / "out" / "to")
    check_saved(ours, tmp_path / "out" / "to", config if with_config else None)


def test_a_saved_tokenizer_keeps_the_original_files(tmp_path):
    folder = roberta(tmp_path / "from")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    edit(folder / "tokenizer_config.json", model_max_length=77, auto_map={"AutoTokenizer": "a.B"})
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    ours = from_directory(folder)
    assert [file.name for file in ours.files] == ["tokenizer.json", "chat_template.jinja"]
    save(ours, tmp_path / "to")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "to" / name).read_bytes() == before[name]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    settings = json.loads((tmp_path / "to" / "tokenizer_config.json").read_text())
    assert "auto_map" not in settings and settings["model_max_length"] == 77
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "to"))
    assert (theirs.mask_token, theirs.model_max_length) == ("<mask>", 77)
    assert theirs.chat_template == "{{ messages }}"


def test_the_byte_tokenizer_can_be_saved(tmp_path):
    save(byte_level(), tmp_path)
    check_saved(byte_level(), tmp_path)


@needs_smollm2
def test_the_tokenizer_of_a_gguf_file_can_be_saved(tmp_path):
    save(smollm2(), tmp_path)
    check_saved(smollm2(), tmp_path, "llama")


@needs_smollm2
def test_a_begin_token_that_a_gguf_file_asks_for_is_saved(tmp_path):
    ours = from_gguf(dataclasses.replace(smollm2_fields(), add_bos=True, bos_id=1, pad_id=4))
    assert (
        ours.encode_single("x", limit=9)[0] == ours.encode_prompt("{prompt}", "x", limit=9)[0] == 1
    )
    save(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.pad_token_id == 4 and theirs("x").input_ids == list(
        ours.encode_single("x", limit=9)
    )


def test_saving_overwrites_nothing_and_leaves_nothing_half_written(tmp_path):
    folder = dialogpt(tmp_path / "from")
    ours = from_directory(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match="vocab.json exists: choose an empty folder"):
        save(ours, folder)
    assert sorted(folder.iterdir()) == before
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match="merges.txt cannot be copied: restore it"):
        save(ours, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_decoding_ends_at_every_end_token_of_the_generation_config(tmp_path):
    folder = gpt2(tmp_path / "from")
    for ends in ([5, 7, 5, 10**6, "x"], 5, None):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        ours = from_directory(folder)
        listed = {list: (5, 7), int: (5,), type(None): ()}[type(ends)]
        assert ours.ends == (ours.eos_id, *listed)
    plain = ours.fingerprint()
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    ours = from_directory(folder)
    ids = [i for i in ours.encode("hello the cat") if i != 7]
    assert ours.decode([*ids, 7, 9]) == ours.decode(ids) != ours.decode([9])
    assert ours.fingerprint() != plain
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="generation_config.json is not readable"):
        from_directory(folder)


@needs_smollm2
def test_the_chat_template_of_a_gguf_file_is_read_and_saved(tmp_path):
    template = smollm2().chat.source
    assert "You are a helpful AI assistant named SmolLM" in template
    save(smollm2(), tmp_path / "to")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "to"))
    assert theirs.chat_template == template == from_directory(tmp_path / "to").chat.source


@needs_smollm2
def test_further_end_tokens_of_a_gguf_file_end_an_answer():
    fields = smollm2_fields()
    assert from_gguf(dataclasses.replace(fields, more_ends=(0, 4))).ends == (2, 0, 4)
