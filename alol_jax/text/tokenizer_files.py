"""Reading and writing tokenizers' files, with transformers and sentencepiece."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from alol_jax.errors import UserError
from alol_jax.paths import check_no_pointer
from alol_jax.text.chat_template import ChatTemplate
from alol_jax.text.tokenizer import Tokenizer

GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
# The files that `transformers` may read from a directory, besides tokenizer_config.json.
_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    CHAT_TEMPLATE,
)
# Model type of config.json -> the class that reads vocab.json with merges.txt.
_CLASSES = {
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "roberta": "RobertaTokenizer",
}
# For a missing tokenizer_config.json: the default of `transformers` drops spaces.
SETTINGS = {"clean_up_tokenization_spaces": False}
# This class splits text as tokenizer.json says. A family's class would use rules of its own:
# LlamaTokenizer drops spaces, and GPT2Tokenizer does not split digits.
_AS_WRITTEN = {"tokenizer_class": "PreTrainedTokenizerFast"}


def _transformers() -> ModuleType:
    """Import transformers without its warning that PyTorch is missing; nothing here needs it."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def from_directory(path: Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face directory.

    It is read from the first of these that exists:

    * tokenizer.json, unchanged;
    * tokenizer.model, a SentencePiece BPE; a begin token is added, as in Llama, unless
      tokenizer_config.json says ``"add_bos_token": false``;
    * vocab.json with merges.txt, of GPT-2, GPT-NeoX or RoBERTa.

    Special tokens come from tokenizer_config.json, then special_tokens_map.json, then, except for
    tokenizer.json, the defaults of the family. The begin and end tokens of a WordPiece (BERT) are
    its cls_token and sep_token. Nothing is downloaded, and no remote code is run.

    Raises:
      UserError: files are missing, damaged or neither BPE nor WordPiece; there is no end token; a
        package is missing; or the tokenizer adds something other than a begin token in front.
    """
    settings = _json_object(path / "tokenizer_config.json")
    elsewhere = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in _json_object(path / "special_tokens_map.json").items()
        if name.endswith("_token") and settings.get(name) is None
    }
    files = _read(path, settings, elsewhere)
    backend = files.backend_tokenizer
    if not isinstance(backend.model, models.BPE | models.WordPiece):
        raise UserError(
            f"{path}: the tokenizer is a {type(backend.model).__name__}, only BPE and WordPiece "
            "are supported: use a model of a family in docs/models.md"
        )
    # BERT's names of the tokens around a text
    framed = isinstance(backend.model, models.WordPiece)
    begin, end = ("cls", "sep") if framed else ("bos", "eos")
    bos_id, eos_id = (getattr(files, f"{name}_token_id") for name in (begin, end))
    if eos_id is None:
        raise UserError(f"{path}/tokenizer_config.json names no {end}_token: add it")
    backend.no_truncation()  # some files still hold the settings of their last training run
    backend.no_padding()
    bare = backend.encode("x", add_special_tokens=False).ids
    full = backend.encode("x").ids
    head = next(full[:i] for i in range(len(full) + 1) if full[i : i + len(bare)] == bare)
    if head not in ([], [bos_id]):
        raise UserError(
            f"{path}: the tokenizer adds the tokens {head} in front, not a {begin}_token"
        )
    return Tokenizer(
        backend,
        eos_id=eos_id,
        pad_id=files.pad_token_id,
        bos_id=bos_id,
        adds_bos=bool(head),
        ends=_generation_ends(path / GENERATION, len(files)),
        chat=_chat_template(files),
        files=[path / name for name in _FILES if (path / name).is_file()],
        settings=(settings or SETTINGS) | elsewhere,
    )


def _generation_ends(file: Path, size: int) -> tuple[int, ...]:
    """Return the tokens below ``size`` at which `transformers` stops generating."""
    ends = _json_object(file).get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    return tuple(i for i in listed if isinstance(i, int) and 0 <= i < size)


def _chat_template(files: Any) -> ChatTemplate | None:
    """Return the chat template that `transformers` found; of several by name, the default one."""
    source = files.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    named = files.special_tokens_map.items()
    tokens = {name: token for name, token in named if isinstance(token, str)}
    return None if source is None else ChatTemplate(source, tokens)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write files from which `transformers.AutoTokenizer` loads a tokenizer with the same ids.

    These are tokenizer.json, tokenizer_config.json, and unchanged copies of the tokenizer's files.
    The config keeps the original fields, except that it names the class that reads tokenizer.json
    unchanged, and that it names no custom code. It has the chat template, unless a file has it.

    Raises:
      UserError: a file exists already, or an original file is gone.
    """
    kept = {k: v for k, v in tokenizer.settings.items() if k != "auto_map"}
    content = {"tokenizer.json": tokenizer.to_json().encode()}
    if tokenizer.chat is not None and CHAT_TEMPLATE not in [file.name for file in tokenizer.files]:
        kept.setdefault("chat_template", tokenizer.chat.source)
    try:
        content |= {file.name: file.read_bytes() for file in tokenizer.files}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be copied: restore it") from error
    content["tokenizer_config.json"] = json.dumps(kept | _AS_WRITTEN, indent=2).encode()
    for name in content:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists: choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)


def _read(path: Path, settings: Mapping[str, Any], named: Mapping[str, str]) -> Any:
    """Load the tokenizer with `transformers`; ``named`` overrides its settings."""
    present = [name for name in _FILES if (path / name).is_file()]
    for name in present:
        check_no_pointer(path / name)
    if "tokenizer.json" in present:
        # Not AutoTokenizer: a class named in tokenizer_config.json would rebuild the pre-tokenizer
        # by its own rules (GPT2Tokenizer drops SmolLM2's digit splitting) instead of reading it.
        return _load("PreTrainedTokenizerFast", path / "tokenizer.json", named)
    if "tokenizer.model" in present:
        # Not LlamaTokenizer: it mistakes a leading space of the text for the one that it adds.
        _check_sentencepiece(path / "tokenizer.model")
        begins = {"add_bos_token": settings.get("add_bos_token", True)}
        return _load("PreTrainedTokenizerFast", path / "tokenizer.model", {**named, **begins})
    parts = {"vocab.json", "merges.txt"}
    if not parts & set(present):
        raise UserError(
            f"{path} has no tokenizer: add tokenizer.json, tokenizer.model, or vocab.json and "
            "merges.txt"
        )
    for name in parts - set(present):
        raise UserError(f"{path}/{name} is missing: vocab.json and merges.txt belong together")
    return _from_vocabulary(path, settings, named)


def _load(name: str, file: Path, options: Mapping[str, Any]) -> Any:
    """Load the directory of ``file`` with the class ``name`` of `transformers`."""
    transformers = _transformers()

    try:
        return getattr(transformers, name).from_pretrained(
            str(file.parent), local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # the library raises a bare Exception for a damaged file
        said = " ".join(str(error).split())
        raise UserError(f"{file} is not readable: {said}: download it again") from error


def _from_vocabulary(path: Path, settings: Mapping[str, Any], named: Mapping[str, str]) -> Any:
    """Load vocab.json and merges.txt with the class that the configs name."""
    kind = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    model_type = _json_object(path / "config.json").get("model_type")
    kind = kind if kind in _CLASSES.values() else _CLASSES.get(model_type, "")
    if not kind:
        raise UserError(
            f"{path}: neither tokenizer_class in tokenizer_config.json nor model_type in "
            f"config.json ({model_type!r}) says which class reads vocab.json and merges.txt: set "
            f"tokenizer_class to one of {', '.join(_CLASSES.values())}"
        )
    vocabulary = _json_object(path / "vocab.json")
    files = _load(kind, path / "merges.txt", named)
    written = [
        _json_object(path / f"{name}.json") for name in ("added_tokens", "special_tokens_map")
    ]
    asked = vocabulary.keys() | _strings([dict(settings), *written])
    invented = sorted(files.get_vocab().keys() - asked)
    if invented:
        raise UserError(
            f"{path}/vocab.json lacks {', '.join(map(repr, invented))}, which {kind} needs: name "
            "the special tokens that it has (eos_token, …) in tokenizer_config.json"
        )
    return files


def _strings(value: Any) -> set[str]:
    """Return every string in a JSON value, including keys."""
    if isinstance(value, dict):
        return set(value).union(*map(_strings, value.values()))
    if isinstance(value, list):
        return set().union(*map(_strings, value))
    return {value} if isinstance(value, str) else set()


def _check_sentencepiece(file: Path) -> None:
    """Raise UserError for a bad file; `transformers` would mistake it for another format."""
    available = _transformers().utils

    if not available.is_sentencepiece_available() or not available.is_protobuf_available():
        raise UserError(f"{file} needs two packages: pip install sentencepiece protobuf")
    import sentencepiece

    try:
        sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{file} is not a SentencePiece model: {said}: download it again"
        ) from error


def _json_object(file: Path) -> dict[str, Any]:
    """Read the object of a JSON file; empty if the file does not exist."""
    if not file.is_file():
        return {}
    check_no_pointer(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable: {error}: download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} does not hold a JSON object: download it again")
    return value


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """Return a byte-level tokenizer without files, for debug runs and tests.

    Id b is byte b. The special tokens are ``<|endoftext|>`` 256, ``<|im_start|>`` 257 and
    ``<|im_end|>`` 258. The last one ends a response and, as in many real tokenizers, also pads.
    The chat template is ChatML.
    """
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={c: byte for byte, c in enumerate(_byte_characters())}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(
        backend,
        eos_id=258,
        pad_id=None,
        bos_id=None,
        adds_bos=False,
        chat=ChatTemplate(CHATML, {"eos_token": "<|im_end|>"}),
        settings=SETTINGS,
    )


def _byte_characters() -> list[str]:
    """Return, by byte, the character that represents it in GPT-2's vocabulary.

    This is the byte itself if printable in Latin-1, else the next free character from 256 on.
    """
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in itself else next(others)) for byte in range(256)]
