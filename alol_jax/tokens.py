"""Text to token ids and back, and token ids to padded ``Tokens``: the only door of transformers
and tokenizers.

What a user or a data set wrote is never parsed for special tokens: a response that contains the
text ``<|im_end|>`` is that text, spelled out, and cannot end the turn. Only templates are parsed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from alol_jax.types import Tokens, UserError

_PROMPT = "{prompt}"


class Tokenizer:
    """Token ids of prompts and responses.

    Characters that the vocabulary cannot spell at all (SmolLM2 lacks 21 rare bytes) are left out,
    as the model's own tokenizer does.

    Attributes:
      eos_id: ends a response.
      pad_id: fills up; ``eos_id`` where the tokenizer has none. Masks never depend on it.
      vocab_size: one more than the largest id.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        pad_id: int | None,
        bos_id: int | None,
        adds_bos: bool,
    ) -> None:
        # Two copies, because whether special tokens are parsed is a state of the library's object.
        self._parsing = tokenizers.Tokenizer.from_str(backend.to_str())
        self._plain = tokenizers.Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        added = self._parsing.get_added_tokens_decoder()
        self._special_ids = {token.content: i for i, token in added.items() if token.special}
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self.eos_id = eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.vocab_size = 1 + max(self._parsing.get_vocab(with_added_tokens=True).values())
        self._head = (bos_id,) if adds_bos and bos_id is not None else ()

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``; special tokens in it are parsed, none is added."""
        return _ids(self._parsing, text)

    def prompt(self, template: str, text: str, *, limit: int) -> tuple[int, ...]:
        """The ids of ``template`` with ``{prompt}`` replaced by ``text``.

        Special tokens of the template are parsed, those in ``text`` are not. Where ``text`` has
        none the ids are those of the whole string; else each stretch between the template's special
        tokens is encoded on its own, which is the same for byte-level tokenizers. A begin token is
        put in front if the tokenizer adds one and the template does not bring it.

        Args:
          template: has ``{prompt}`` once.
          text: the user's text.
          limit: most tokens; of a longer prompt the text loses its oldest tokens, the template
            none: a model that was tuned on the template must find all of it.

        Raises:
          UserError: ``{prompt}`` is not there once, the template alone is beyond the limit, or no
            token results.
        """
        ids = self._prompt(template, text)
        if len(ids) > limit:
            ids = self._shortened(template, text, limit, len(ids) - limit)
        if not ids:
            raise UserError(f"prompt {text!r} has no tokens in template {template!r}: drop the row")
        return ids

    def prompt_length(self, template: str, text: str) -> int:
        """The number of tokens that `prompt` gives where no limit cuts.

        Raises:
          UserError: ``{prompt}`` is not in the template once.
        """
        return len(self._prompt(template, text))

    def response(self, text: str, *, limit: int) -> tuple[tuple[int, ...], bool]:
        """The ids of ``text`` as plain text with the end token, and whether that fits.

        A response that does not fit in ``limit`` tokens, the end token included, is cut on the
        right and has no end token: a cut row must not teach to stop in mid-sentence.

        Returns:
          (ids, complete)
        """
        if limit < 1:
            raise UserError(f"response limit of {limit} tokens leaves no room: raise it")
        ids = _ids(self._plain, text)
        complete = len(ids) < limit
        return (*ids, self.eos_id) if complete else tuple(ids[:limit]), complete

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` before the first end token; special tokens are left out."""
        listed = [int(i) for i in ids]
        if self.eos_id in listed:
            listed = listed[: listed.index(self.eos_id)]
        return self._parsing.decode(listed, skip_special_tokens=True)

    def fingerprint(self) -> str:
        """blake2b of everything that decides about ids: 32 hex digits."""
        state = (self._parsing.to_str(), self.eos_id, self.pad_id, self._head)
        return hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()

    def _prompt(self, template: str, text: str) -> tuple[int, ...]:
        if template.count(_PROMPT) != 1:
            raise UserError(f"template {template!r} must contain {_PROMPT} exactly once")
        before, after = template.split(_PROMPT)
        ids = tuple(self._filled(before, text, after))
        return self._head + (ids[1:] if self._head and ids[:1] == self._head else ids)

    def _shortened(self, template: str, text: str, limit: int, excess: int) -> tuple[int, ...]:
        """The prompt with the longest end of ``text`` that fits, cut between tokens.

        An end may merge with the template into other tokens than it had, so each is tried.
        """
        alone = self.prompt_length(template, "")
        if limit < max(alone, 1):
            raise UserError(
                f"prompt limit of {limit} tokens leaves no room: the template {template!r} alone "
                f"has {alone}: raise the limit"
            )
        plain = _ids(self._plain, text)
        for count in range(len(plain) - excess, 0, -1):
            # A cut through a character leaves bytes that decode to U+FFFD.
            end = self._plain.decode(plain[-count:], skip_special_tokens=False).lstrip("\ufffd")
            ids = self._prompt(template, end)
            if len(ids) <= limit:
                return ids
        return self._prompt(template, "")

    def _filled(self, before: str, text: str, after: str) -> list[int]:
        found = self._special.findall
        if found(before + text + after) == found(before) + found(after):
            return self.encode(before + text + after)
        # Splitting at a captured pattern alternates: plain, special, plain, …, plain.
        left, right = self._special.split(before), self._special.split(after)
        ids: list[int] = []
        for i, piece in enumerate([*left[:-1], left[-1] + text + right[0], *right[1:]]):
            ids += [self._special_ids[piece]] if i % 2 else _ids(self._plain, piece)
        return ids


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        return backend.encode(text, add_special_tokens=False).ids
    except TypeError as error:  # how the library refuses half a surrogate pair
        raise UserError(f"{text!r} is no valid Unicode text: drop or repair the row") from error


# ------------------------------------------------------------------ where tokenizers come from


class Vocabulary(Protocol):
    """The tokenizer fields of a GGUF file, in the file's own terms."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    add_bos: bool


def from_directory(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: tokenizer.json with tokenizer_config.json.

    Raises:
      UserError: tokenizer.json is missing or damaged, there is no end token, or the tokenizer puts
        something other than a begin token in front.
    """
    from transformers import PreTrainedTokenizerFast

    if not (path / "tokenizer.json").is_file():
        raise UserError(
            f'{path}/tokenizer.json is missing: write it with `python -c "from transformers import '
            f"AutoTokenizer as T; T.from_pretrained('{path}').save_pretrained('{path}')\"`"
        )
    # Not AutoTokenizer: a class named in tokenizer_config.json would rebuild the pre-tokenizer by
    # its own rules (GPT2Tokenizer drops SmolLM2's digit splitting) instead of reading it.
    try:
        files = PreTrainedTokenizerFast.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises a bare Exception for a damaged file
        said = " ".join(str(error).split())
        raise UserError(f"{path}/tokenizer.json is not readable: {said}") from error
    if files.eos_token_id is None:
        raise UserError(f"{path}/tokenizer_config.json names no eos_token: add it")
    backend, bos_id = files.backend_tokenizer, files.bos_token_id
    backend.no_truncation()  # some files carry the settings of their last training run
    backend.no_padding()
    bare = backend.encode("x", add_special_tokens=False).ids
    full = backend.encode("x").ids
    head = next(full[:i] for i in range(len(full)) if full[i : i + len(bare)] == bare)
    if head not in ([], [bos_id]):
        raise UserError(f"{path}: the tokenizer puts the tokens {head} in front, not a bos_token")
    return Tokenizer(
        backend,
        eos_id=files.eos_token_id,
        pad_id=files.pad_token_id,
        bos_id=bos_id,
        adds_bos=bool(head),
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


# By llama.cpp's names (llama-vocab.cpp): the ones whose Hugging Face twin is known exactly.
_PRE_TOKENIZERS = {"gpt-2": _gpt2, "smollm": _smollm}

# Token types of a GGUF file.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


def from_gguf(fields: Vocabulary) -> Tokenizer:
    """The byte-level BPE tokenizer that a GGUF file carries.

    Raises:
      UserError: another kind of tokenizer or pre-tokenizer, or fields that do not fit together.
    """
    if fields.model != "gpt2" or fields.pre not in _PRE_TOKENIZERS:
        raise UserError(
            f"GGUF tokenizer {fields.model!r} with pre-tokenizer {fields.pre!r} is not supported "
            f"(only 'gpt2' with {', '.join(_PRE_TOKENIZERS)}): use the model's Hugging Face files"
        )
    vocabulary = {token: i for i, token in enumerate(fields.tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields.merges]
    if (
        len(vocabulary) != len(fields.tokens)
        or len(fields.token_types) != len(fields.tokens)
        or _BYTE in fields.token_types
        or any(len(merge) != 2 for merge in merges)
        or fields.eos_id is None
    ):
        raise UserError("GGUF tokenizer: tokens, types, merges or eos are damaged: download again")
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises a bare Exception for a merge of no token
        raise UserError(f"GGUF tokenizer: {error}: download the file again") from error
    backend.pre_tokenizer = _PRE_TOKENIZERS[fields.pre]()
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(fields.tokens, fields.token_types, strict=True):
        if kind in (_UNKNOWN, _CONTROL):
            backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    return Tokenizer(
        backend,
        eos_id=fields.eos_id,
        pad_id=fields.pad_id,
        bos_id=fields.bos_id,
        adds_bos=fields.add_bos,
    )


def byte_level() -> Tokenizer:
    """A tokenizer without files, for debug runs and tests: id b is byte b, then the three special
    tokens ``<|endoftext|>`` 256, ``<|im_start|>`` 257 and ``<|im_end|>`` 258, which ends a response
    and, as in many real tokenizers, pads as well."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={c: byte for byte, c in enumerate(_byte_characters())}, merges=[])
    )
    backend.pre_tokenizer = _gpt2()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend, eos_id=258, pad_id=None, bos_id=None, adds_bos=False)


def _byte_characters() -> list[str]:
    """By byte, the printable character that stands for it in GPT-2's vocabulary: itself if it is
    printable in Latin-1, else the next free one from 256 on."""
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in itself else next(others)) for byte in range(256)]


# ------------------------------------------------------------------ padding


def shape_for(
    prompt_length: int, response_length: int, shapes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The smallest (P, R) of ``shapes``, by P + R, that holds both lengths (in tokens).

    Raises:
      UserError: none does.
    """
    fitting = [(p, r) for p, r in shapes if p >= prompt_length and r >= response_length]
    if not fitting:
        raise UserError(
            f"a prompt of {prompt_length} and a response of {response_length} tokens fit none of "
            f"the shapes {list(shapes)}: add a larger shape or lower the limits"
        )
    return min(fitting, key=lambda shape: (sum(shape), shape))


def to_tokens(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    shape: tuple[int, int],
    pad_id: int,
) -> Tokens:
    """Token ids as padded arrays on the host: prompts on the left, responses on the right.

    Args:
      prompts: B rows of at most P ids.
      responses: B · K rows of at most R ids, those of one prompt side by side.
      shape: (P, R).
      pad_id: what fills up. May well be the end token: masks come from the lengths.

    Returns:
      Tokens of numpy arrays: i32[B, P], f32[B, P], i32[B · K, R], f32[B · K, R].

    Raises:
      UserError: not the same number of responses for each prompt, or a row does not fit.
    """
    if len(responses) % max(len(prompts), 1):
        raise UserError(f"{len(prompts)} prompts for {len(responses)} responses")
    prompt, prompt_mask = _right_padded([ids[::-1] for ids in prompts], shape[0], pad_id, "prompt")
    response, mask = _right_padded(responses, shape[1], pad_id, "response")
    flipped = (np.ascontiguousarray(array[:, ::-1]) for array in (prompt, prompt_mask))
    return Tokens(*flipped, response, mask)


def _right_padded(
    rows: Sequence[Sequence[int]], length: int, pad_id: int, what: str
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), np.float32)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise UserError(f"a {what} of {len(row)} tokens does not fit in {length}: cut it")
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1.0
    return ids, mask
