"""The byte-level tokenizers of GGUF files."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from alol_jax.errors import UserError
from alol_jax.text.chat_template import ChatTemplate
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokenizer_files import SETTINGS


@dataclasses.dataclass(frozen=True)
class GGUFVocabulary:
    """The tokenizer fields of a GGUF file, unconverted."""

    model: str  # "gpt2": byte-level BPE
    pre: str  # the pre-tokenizer, by its name in llama.cpp
    tokens: tuple[str, ...]  # by id
    token_types: tuple[int, ...]  # by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused
    merges: tuple[str, ...]  # "left right", best first
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    add_bos: bool
    chat_template: str | None = None
    more_ends: tuple[int, ...] = ()  # of a turn, of a message


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytewise])


def _words(digits: str) -> str:
    """The pattern of Llama 3 and Qwen 2, which differ in how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + "|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


class Pre(NamedTuple):
    """One of llama.cpp's names of a pre-tokenizer, as the `tokenizers` library has it.

    Attributes:
        make: the pre-tokenizer.
        whole: a word that is a token is not split, whatever the merges say.
        composed: texts are brought to NFC; llama.cpp itself takes them as they are.
    """

    make: Callable[[], pre_tokenizers.PreTokenizer]
    whole: bool = False
    composed: bool = False


GGUF_PRE_TOKENIZERS = {
    "gpt-2": Pre(_gpt2),
    "smollm": Pre(_smollm),
    "llama-bpe": Pre(lambda: _split(_words(r"\p{N}{1,3}")), whole=True),
    "qwen2": Pre(lambda: _split(_words(r"\p{N}")), composed=True),
}
"""llama.cpp's name (llama-vocab.cpp) -> the same in the `tokenizers` library, known exactly."""


def pre_tokenizer_json(made: pre_tokenizers.PreTokenizer | Mapping[str, Any] | None) -> str:
    """Return what a pre-tokenizer does, as text to compare.

    Args:
        made: a pre-tokenizer, or its part of a tokenizer.json.
    """
    if isinstance(made, pre_tokenizers.PreTokenizer):
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = made
        made = json.loads(backend.to_str())["pre_tokenizer"]
    # trim_offsets says where a token is in the text, not which it is.
    return re.sub(r'"trim_offsets": (true|false)', "", json.dumps(made, sort_keys=True))


# Token types of a GGUF file.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def _is_merged(token: str, kind: int) -> bool:
    """Whether a token can only come from a merge."""
    return kind == NORMAL and len(token) > 1


def from_gguf(fields: GGUFVocabulary) -> Tokenizer:
    """Load the byte-level BPE tokenizer of a GGUF file.

    Raises:
      UserError: the tokenizer or pre-tokenizer is of another kind, or the fields are inconsistent.
    """
    if fields.model != "gpt2" or fields.pre not in GGUF_PRE_TOKENIZERS:
        raise UserError(
            f"GGUF tokenizer {fields.model!r} with pre-tokenizer {fields.pre!r} is not supported "
            f"(only 'gpt2' with {', '.join(GGUF_PRE_TOKENIZERS)}): use the model's Hugging Face "
            "files"
        )
    vocabulary = {token: i for i, token in enumerate(fields.tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields.merges]
    if (
        len(vocabulary) != len(fields.tokens)
        or len(fields.token_types) != len(fields.tokens)
        or BYTE in fields.token_types
        or any(len(merge) != 2 for merge in merges)
        or (not merges and any(map(_is_merged, fields.tokens, fields.token_types)))
        or fields.eos_id is None
    ):
        raise UserError("GGUF tokenizer: tokens, types, merges or eos are damaged: download again")
    try:
        pre = GGUF_PRE_TOKENIZERS[fields.pre]
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.whole)
        backend = tokenizers.Tokenizer(model)
    except Exception as error:  # the library raises a bare Exception for a merge of unknown tokens
        raise UserError(f"GGUF tokenizer: {error}: download the file again") from error
    backend.pre_tokenizer = pre.make()
    if pre.composed:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(fields.tokens, fields.token_types, strict=True):
        if kind in (UNKNOWN, CONTROL):
            backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])
        elif kind == USER_DEFINED:
            backend.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    if fields.add_bos and fields.bos_id is not None:
        begin = fields.tokens[fields.bos_id]
        backend.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"],
            pair=[begin, "$A", begin, "$B"],
            special_tokens=[(begin, fields.bos_id)],
        )
    named = {"bos_token": fields.bos_id, "eos_token": fields.eos_id, "pad_token": fields.pad_id}
    tokens = {name: fields.tokens[i] for name, i in named.items() if i is not None}
    source = fields.chat_template
    return Tokenizer(
        backend,
        eos_id=fields.eos_id,
        pad_id=fields.pad_id,
        bos_id=fields.bos_id,
        adds_bos=fields.add_bos,
        ends=fields.more_ends,
        chat=None if source is None else ChatTemplate(source, tokens),
        settings=SETTINGS,
    )
