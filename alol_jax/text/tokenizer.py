"""Text to token ids and back.

What a user or a data set wrote is never parsed for special tokens: a response that contains the
text ``<|im_end|>`` is that text, spelled out, and cannot end the turn. Only templates are parsed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from alol_jax.types import UserError

_PROMPT = "{prompt}"
# Says how text is split: PreTrainedTokenizerFast as tokenizer.json does, a family's class by rules
# of its own, in which LlamaTokenizer leaves spaces out and GPT2Tokenizer digits together.
_AS_WRITTEN = {"tokenizer_class": "PreTrainedTokenizerFast"}


class Special(str):
    """The name of a special token where text could stand."""


class Tokenizer:
    """Token ids of prompts and responses, of single texts and of pairs.

    Characters that the vocabulary cannot spell at all (SmolLM2 lacks 21 rare bytes) are left out,
    as the model's own tokenizer does.

    Attributes:
      eos_id: ends a response.
      pad_id: fills up; ``eos_id`` where the tokenizer has none. Masks never depend on it.
      vocab_size: one more than the largest id.
      files: what it was read from, except tokenizer_config.json; empty if not from a directory.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        pad_id: int | None,
        bos_id: int | None,
        adds_bos: bool,
        files: Sequence[Path] = (),
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """
        Args:
          backend: a BPE tokenizer of the library.
          eos_id: see above.
          pad_id: see above; None where there is none.
          bos_id: the begin token.
          adds_bos: whether prompts begin with it.
          files: see above.
          settings: what `save` writes to tokenizer_config.json besides the three tokens above.
        """
        self._parsing = tokenizers.Tokenizer.from_str(backend.to_str())
        added = self._parsing.get_added_tokens_decoder()
        self._special = _any_of(token.content for token in added.values() if token.special)
        self.eos_id = eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.vocab_size = 1 + max(self._parsing.get_vocab(with_added_tokens=True).values())
        self._head = (bos_id,) if adds_bos and bos_id is not None else ()
        named = {"bos_token": bos_id, "eos_token": eos_id, "pad_token": pad_id}
        self._settings = dict(settings) | {
            name: self._parsing.id_to_token(i) for name, i in named.items() if i is not None
        }
        self.files = tuple(files)
        self._renamed_from = self.vocab_size
        # Nobody can know the mark, so no text can contain it; ids do not depend on it.
        self._mark = secrets.token_hex(16)
        self._plain = _with_special_tokens_renamed(backend, self._mark, self._renamed_from)

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``; special tokens in it are parsed, none is added."""
        return _encoding(self._parsing, text).ids

    def prompt(self, template: str, text: str, *, limit: int) -> tuple[int, ...]:
        """The ids of ``template`` with ``{prompt}`` replaced by ``text``.

        Special tokens of the template are parsed, those in ``text`` are not. But for that the ids
        are those of the whole string, seams and the spaces that Llama's tokenizers put in front
        included. A begin token is put in front if the tokenizer adds one and the template does not
        bring it.

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
        ids = self._plain_ids(text)
        complete = len(ids) < limit
        return (*ids, self.eos_id) if complete else ids[:limit], complete

    def single(self, text: str, *, limit: int) -> tuple[int, ...]:
        """The ids of ``text`` between the special tokens that the tokenizer itself puts around one
        text, like RoBERTa's ``<s> text </s>``; more than ``limit`` are cut on the right of the
        text.

        As everywhere, special tokens in the text are spelled out, other than `transformers` does
        by default.

        Raises:
          UserError: the limit leaves no room for text.
        """
        encoding = _encoding(self._plain, text)
        encoding.truncate(self._room(limit, pair=False))
        return self._real(self._plain.post_process(encoding).ids)

    def pair(self, first: str, second: str, *, limit: int) -> tuple[int, ...]:
        """The ids of two texts with the special tokens that the tokenizer itself puts around and
        between them, like RoBERTa's ``<s> first </s></s> second </s>``.

        Of more than ``limit`` ids the longer text loses its last ones, and both in turn once they
        are of one length (``longest_first`` of `transformers`). An empty second text is a text.
        As everywhere, special tokens in the texts are spelled out, other than `transformers` does
        by default.

        Raises:
          UserError: the tokenizer puts nothing between two texts, or the limit leaves no room.
        """
        if not self._plain.num_special_tokens_to_add(True):
            raise UserError(
                "the tokenizer has no special tokens for two texts: use the tokenizer files of the "
                "model that reads pairs"
            )
        room = self._room(limit, pair=True)
        a, b = _encoding(self._plain, first), _encoding(self._plain, second)
        if len(a) + len(b) > room:
            small = min(len(a), len(b), room // 2)
            kept = (room - small, small) if len(a) > len(b) else (small, room - small)
            a.truncate(kept[0])
            b.truncate(kept[1])
        return self._real(self._plain.post_process(a, b).ids)

    def sequence(self, parts: Sequence[str | Special], *, limit: int) -> tuple[int, ...]:
        """The ids of ``parts`` one after the other as one text; of more than ``limit`` the oldest
        are lost. A begin token is put in front if the tokenizer adds one.

        Args:
          parts: texts, in which special tokens are spelled out, and special tokens by name.
          limit: most tokens.

        Raises:
          UserError: the tokenizer has no special token of such a name, or there is no room.
        """
        for part in parts:
            if isinstance(part, Special) and not self._special.fullmatch(part):
                raise UserError(
                    f"the tokenizer has no special token {str(part)!r}: name the form that this "
                    "model was trained on"
                )
        ids = self._plain_ids(
            "".join(self._mark + part if isinstance(part, Special) else part for part in parts)
        )
        room = limit - len(self._head)
        if room < 1:
            raise UserError(f"limit of {limit} tokens leaves no room for text: raise it")
        return (*self._head, *ids[-room:])

    @property
    def eos(self) -> str:
        """The name of the end token."""
        return self._parsing.id_to_token(self.eos_id)

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

    def fitted(self, size: int) -> Tokenizer:
        """This tokenizer for a model that has ``size`` tokens.

        A pad token that was added behind the model's vocabulary is not used: the end token pads.

        Raises:
          UserError: other tokens are beyond the model.
        """
        ids = self._parsing.get_vocab(with_added_tokens=True)
        beyond = {token: i for token, i in ids.items() if i >= size}
        if not beyond:
            return self
        if set(beyond.values()) != {self.pad_id} - {self.eos_id}:
            some = ", ".join(repr(token) for token in sorted(beyond, key=beyond.__getitem__)[:3])
            raise UserError(
                f"the tokenizer has {self.vocab_size} tokens, the model only {size} (without {some}"
                f"{', …' if len(beyond) > 3 else ''}): use the tokenizer files of the model"
            )
        fitted = copy.copy(self)
        fitted.pad_id = self.eos_id
        fitted.vocab_size = 1 + max(i for i in ids.values() if i < size)
        added = self._parsing.get_added_tokens_decoder()
        kept = (token.content for i, token in added.items() if token.special and i < size)
        fitted._special = _any_of(kept)
        return fitted

    def save(self, folder: Path) -> None:
        """Writes what `transformers.AutoTokenizer` reads, with the same ids: tokenizer.json,
        tokenizer_config.json, and what else `files` has, unchanged.

        The config keeps what the original said, except that the class is the one that reads
        tokenizer.json as it is written, and that no code is named that could be run.

        Raises:
          UserError: one of the files is there already, or an original is gone.
        """
        settings = {k: v for k, v in self._settings.items() if k != "auto_map"} | _AS_WRITTEN
        content = {"tokenizer.json": self._parsing.to_str(pretty=True).encode()}
        try:
            content |= {file.name: file.read_bytes() for file in self.files}
        except OSError as error:
            raise UserError(f"{error.filename} cannot be copied: bring it back") from error
        content["tokenizer_config.json"] = json.dumps(settings, indent=2).encode()
        for name in content:
            if (folder / name).exists():
                raise UserError(f"{folder / name} exists: choose an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            (folder / name).write_bytes(data)

    def _prompt(self, template: str, text: str) -> tuple[int, ...]:
        if template.count(_PROMPT) != 1:
            raise UserError(f"template {template!r} must contain {_PROMPT} exactly once")
        before, after = (
            self._special.sub(lambda found: self._mark + found[0], part)
            for part in template.split(_PROMPT)
        )
        ids = self._plain_ids(before + text + after)
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
        plain = self._plain_ids(text)
        whole = self._parsing.decode(plain, skip_special_tokens=False)
        for count in range(len(plain) - excess, 0, -1):
            # Not the text of the last tokens: decoding would take a space off its front.
            lost = self._parsing.decode(plain[:-count], skip_special_tokens=False)
            # A cut through a character leaves bytes that decode to U+FFFD.
            ids = self._prompt(template, whole[len(lost.rstrip("\ufffd")) :])
            if len(ids) <= limit:
                return ids
        return self._prompt(template, "")

    def _room(self, limit: int, *, pair: bool) -> int:
        """How many tokens of text fit in ``limit``."""
        room = limit - self._plain.num_special_tokens_to_add(pair)
        if room < 1:
            raise UserError(f"text limit of {limit} tokens leaves no room for text: raise it")
        return room

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        return self._real(_encoding(self._plain, text).ids)

    def _real(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids by which the rest of the world knows those of ``_plain``."""
        start = self._renamed_from
        return tuple(i - start if i >= start else i for i in ids)


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _encoding(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    try:
        return backend.encode(text, add_special_tokens=False)
    except TypeError as error:  # how the library refuses half a surrogate pair
        raise UserError(f"{text!r} is no valid Unicode text: drop or repair the row") from error


def _with_special_tokens_renamed(
    backend: tokenizers.Tokenizer, mark: str, start: int
) -> tokenizers.Tokenizer:
    """A tokenizer to which the special tokens of ``backend`` are plain text like any other.

    Special token i goes by the name ``mark + name`` and the id ``start + i`` instead. Splitting the
    text at special tokens and encoding each stretch alone would not do: whether a stretch gets
    Llama's space in front depends on where it stands. Nor would the library's own switch
    (encode_special_tokens): it spares the template no more than the text, and where merges lead to
    a special token, text still does.
    """
    state = json.loads(backend.to_str())
    model, vocabulary = state["model"], state["model"]["vocab"]
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    gone = {name for name in special if len(name) > 1}  # one character has no other spelling
    for token in state["added_tokens"]:
        name = token["content"]
        if name in special:
            vocabulary[mark + name] = start + token["id"]
            token |= {"content": mark + name, "id": start + token["id"], "normalized": False}
        else:
            vocabulary[name] = token["id"]
    if model["unk_token"] in gone:
        model["unk_token"] = mark + model["unk_token"]
    model["vocab"] = {name: i for name, i in vocabulary.items() if name not in gone}
    model["merges"] = [
        (left, right) for left, right in model["merges"] if not {left, right, left + right} & gone
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(state))
