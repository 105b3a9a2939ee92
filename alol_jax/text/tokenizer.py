"""Text to token ids and back.

Special tokens are parsed in templates only, never in the text of a user or a data set. If a
response contains the text ``<|im_end|>``, it is encoded as plain characters and cannot end the
turn.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged
from alol_jax.text import flat_ids
from alol_jax.text.chat_template import ChatTemplate
from alol_jax.text.responses import NO_FRAME, Frame, Responses
from alol_jax.text.special_tokens import SpelledOut, any_of, encoding_of

_PROMPT = "{prompt}"


class SpecialToken(str):
    """The name of a special token among the parts of `Tokenizer.encode_sequence`."""


class Tokenizer:
    """A BPE or WordPiece tokenizer that encodes prompts, responses, single texts and pairs.

    Characters that the vocabulary cannot represent (SmolLM2 lacks 21 rare bytes) are dropped, as
    in the model's own tokenizer.

    Attributes:
      eos_id: id of the end token, which ends a response.
      ends: ids of all tokens that end an answer in decoding; the first is ``eos_id``.
      chat: the model's own chat template; None if it has none.
      pad_id: id of the padding token; ``eos_id`` if there is none. Masks never depend on it.
      vocab_size: the largest id plus one.
      special: the names of its special tokens.
      settings: the fields of tokenizer_config.json.
      files: the files it was read from, without tokenizer_config.json; empty if it did not come
        from a directory.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        pad_id: int | None,
        bos_id: int | None,
        adds_bos: bool,
        ends: Sequence[int] = (),
        chat: ChatTemplate | None = None,
        files: Sequence[Path] = (),
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """
        Args:
          backend: a BPE or WordPiece tokenizer of the `tokenizers` library.
          eos_id, chat, files: see above.
          pad_id, bos_id: ids of the padding and the begin token; None if there is none.
          adds_bos: whether prompts begin with the begin token.
          ends: see above; ``eos_id`` need not be among them.
          settings: the fields of tokenizer_config.json, besides the three tokens above.
        """
        self._parsing = tokenizers.Tokenizer.from_str(backend.to_str())
        added = self._parsing.get_added_tokens_decoder()
        self.special = tuple(token.content for token in added.values() if token.special)
        self.eos_id, self.ends = eos_id, tuple(dict.fromkeys((eos_id, *ends)))
        self.chat, self._in_chat, self._frame = chat, False, NO_FRAME
        self.pad_id = eos_id if pad_id is None else pad_id
        self.vocab_size = 1 + max(self._parsing.get_vocab(with_added_tokens=True).values())
        self._bos = (bos_id,) if adds_bos and bos_id is not None else ()
        named = {"bos_token": bos_id, "eos_token": eos_id, "pad_token": pad_id}
        self.settings = dict(settings) | {
            name: self._parsing.id_to_token(i) for name, i in named.items() if i is not None
        }
        self.files = tuple(files)
        self._plain = SpelledOut(backend, self.vocab_size, self.special)

    def encode(self, text: str) -> list[int]:
        """Encode ``text``, parsing special tokens; none are added."""
        return encoding_of(self._parsing, text).ids

    def encode_rendered(self, texts: Sequence[str], mark: str) -> Ragged:
        """Encode what a chat template wrote. No token is added.

        Args:
          texts: with special tokens, except those that a `Guard` broke.
          mark: the guard's; it is removed.
        """
        parsed = self._plain.parsed(any_of(self.special))
        return self._plain.batch([parsed(text).replace(mark, "") for text in texts])

    def encode_prompt(self, template: str, text: str, *, limit: int) -> tuple[int, ...]:
        """Encode ``template`` with ``{prompt}`` replaced by ``text``.

        Special tokens are parsed in the template but not in ``text``. Otherwise the ids are those
        of the whole string, including merges across the boundaries and the spaces that Llama's
        tokenizers add in front. If the tokenizer adds a begin token and the template has none, it
        is added.

        Args:
          template: contains ``{prompt}`` exactly once.
          text: the user's text.
          limit: the most tokens. A longer prompt loses the oldest tokens of the text, never any of
            the template, because a model tuned on the template needs all of it.

        Raises:
          UserError: the template does not contain ``{prompt}`` exactly once or exceeds the limit
            by itself, or there are no tokens.
        """
        return tuple(self.encode_prompts(template, [text], limit=limit)[0][0].tolist())

    def encode_prompts(
        self, template: str, texts: Sequence[str], *, limit: int, marks: Sequence[str] = ()
    ) -> tuple[Ragged, int]:
        """`encode_prompt` of each text, on all cores.

        Args:
          marks: names that are special tokens in the texts, too, if the tokenizer has them.

        Returns:
          (the ids of each prompt, i32, and how many were truncated)
        """
        parts, truncated = [], 0
        marked = self._plain.parsed(any_of(name for name in marks if name in self.special))
        for batch in flat_ids.batches(texts):
            batch = list(map(marked, batch))
            prompts = self._prompts(template, batch)
            over = np.flatnonzero(prompts.lengths > limit)
            if len(over):
                rows = list(prompts)
                for place in over:
                    excess = len(rows[place]) - limit
                    rows[place] = self._truncated(template, batch[place], limit, excess, marked)
                prompts = Ragged.of(*flat_ids.flat(rows))
            if not prompts.lengths.all():
                text = batch[int(np.argmin(prompts.lengths))]
                raise UserError(
                    f"prompt {text!r} has no tokens in template {template!r}: drop the row"
                )
            parts.append(prompts)
            truncated += len(over)
        return Ragged.joined(parts, np.int32), truncated

    def prompt_length(self, template: str, text: str) -> int:
        """Return the number of tokens of `encode_prompt` without a limit.

        Raises:
          UserError: the template does not contain ``{prompt}`` exactly once.
        """
        return int(self._prompts(template, [text]).lengths[0])

    def encode_response(self, text: str, *, limit: int) -> tuple[tuple[int, ...], bool]:
        """Encode ``text`` as plain text, followed by the end token.

        After `in_chat` it has what the template puts around it. A response that exceeds ``limit``
        tokens, including the end token, is truncated on the right and has no end token, so that the
        model does not learn to stop in mid-sentence.

        Returns:
          (ids, whether the response is complete)

        Raises:
          UserError: the limit is below 1.
        """
        ids, truncated = self.encode_responses([text], limit=limit)
        return tuple(ids[0].tolist()), not truncated

    def encode_responses(self, texts: Sequence[str], *, limit: int) -> tuple[Ragged, int]:
        """`encode_response` of each text; see `Responses.encode`."""
        parsed = self._plain.parsed(any_of(self.special))
        door = Responses(self._plain, parsed, self.eos_id, self.eos, self._frame)
        return door.encode(texts, limit=limit)

    def encode_single(self, text: str, *, limit: int) -> tuple[int, ...]:
        """Encode one text with the tokenizer's own special tokens, like ``<s> text </s>``.

        If there are more than ``limit`` ids, the text is truncated on the right. Special tokens in
        the text are encoded as plain characters, unlike the default of `transformers`.

        Raises:
          UserError: the limit leaves no room for text.
        """
        encoding = encoding_of(self._plain.backend, text)
        encoding.truncate(self._room(limit, pair=False))
        return self._plain.real(self._plain.backend.post_process(encoding).ids)

    def encode_pair(self, first: str, second: str, *, limit: int) -> tuple[int, ...]:
        """Encode two texts with the tokenizer's own special tokens around and between them, like
        RoBERTa's ``<s> first </s></s> second </s>``.

        If there are more than ``limit`` ids, the longer text is truncated on the right until both
        have the same length, then both in turn (``longest_first`` of `transformers`). An empty
        second text is still encoded as a pair. Special tokens in the texts are encoded as plain
        characters, unlike the default of `transformers`.

        Raises:
          UserError: the tokenizer has no special tokens for pairs, or the limit leaves no room.
        """
        if not self._plain.backend.num_special_tokens_to_add(True):
            raise UserError(
                "the tokenizer has no special tokens for two texts: use the tokenizer files of the "
                "model that reads pairs"
            )
        room = self._room(limit, pair=True)
        a, b = encoding_of(self._plain.backend, first), encoding_of(self._plain.backend, second)
        if len(a) + len(b) > room:
            small = min(len(a), len(b), room // 2)
            kept = (room - small, small) if len(a) > len(b) else (small, room - small)
            a.truncate(kept[0])
            b.truncate(kept[1])
        return self._plain.real(self._plain.backend.post_process(a, b).ids)

    def encode_sequence(
        self, parts: Sequence[str | SpecialToken], *, limit: int
    ) -> tuple[int, ...]:
        """Encode the concatenation of ``parts``, keeping the last ``limit`` ids.

        If the tokenizer adds a begin token, it comes first.

        Args:
          parts: texts, whose special tokens are encoded as plain characters, and special tokens.
          limit: the most tokens, including the begin token.

        Raises:
          UserError: the tokenizer has no special token of that name, or there is no room.
        """
        for part in parts:
            if isinstance(part, SpecialToken) and part not in self.special:
                raise UserError(
                    f"the tokenizer has no special token {str(part)!r}: name the form that this "
                    "model was trained on"
                )
        ids = self._plain.ids(
            "".join(
                self._plain.mark + part if isinstance(part, SpecialToken) else part
                for part in parts
            )
        )
        room = limit - len(self._bos)
        if room < 1:
            raise UserError(f"limit of {limit} tokens leaves no room for text: raise it")
        return (*self._bos, *ids[-room:])

    def ends_of(self, text: str, fewer: int) -> Iterator[str]:
        """Yield ever shorter ends of the text, cut between tokens.

        Args:
          fewer: how many tokens the first lacks.
        """
        plain = self._plain.ids(text)
        whole = self._parsing.decode(plain, skip_special_tokens=False)
        for count in range(len(plain) - fewer, 0, -1):
            # Decoding the last tokens instead would drop a leading space.
            lost = self._parsing.decode(plain[:-count], skip_special_tokens=False)
            # A cut inside a character leaves bytes that decode to U+FFFD.
            yield whole[len(lost.rstrip("\ufffd")) :]

    @property
    def second_type(self) -> int:
        """The token type of the second text of a pair: 1 in BERT, 0 in RoBERTa."""
        a, b = (encoding_of(self._plain.backend, text) for text in "ab")
        return max(self._plain.backend.post_process(a, b).type_ids)

    @property
    def eos(self) -> str:
        """The text of the end token."""
        return self._parsing.id_to_token(self.eos_id)

    @property
    def begin(self) -> tuple[int, ...]:
        """The begin token, if prompts begin with it; else ()."""
        return self._bos

    @property
    def ending(self) -> str:
        """What follows the text of a response: the end token, and what stands before it."""
        return self._frame.after + self.eos

    def decode(self, ids: Sequence[int], *, framed: bool = True) -> str:
        """Decode ``ids`` up to the first end token, without special tokens and, if ``framed``,
        what the chat template puts around an answer."""
        kept = list(itertools.takewhile(lambda i: i not in self.ends, map(int, ids)))
        text = self._parsing.decode(kept, skip_special_tokens=True)
        return self._frame.inside(text, ended=len(kept) < len(ids)) if framed else text

    def fingerprint(self) -> str:
        """Return the blake2b hash of everything that determines the ids, as 32 hex digits.

        The chat template is part of it after `in_chat`.
        """
        state = (self._parsing.to_str(), self.eos_id, self.pad_id, self._bos)
        if self.ends != (self.eos_id,):
            state += (self.ends,)
        if self._in_chat:
            state += (self.chat.source, *sorted(self.chat.tokens.items()))
        if self._frame != NO_FRAME:
            state += tuple(self._frame)
        return hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()

    def for_vocab_size(self, size: int) -> Tokenizer:
        """Return this tokenizer for a model with ``size`` tokens.

        If the pad token was added beyond the model's vocabulary, the end token replaces it.

        Raises:
          UserError: other tokens are beyond the model's vocabulary.
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
        fitted.ends = tuple(i for i in self.ends if i < size)
        fitted.vocab_size = 1 + max(i for i in ids.values() if i < size)
        fitted.special = tuple(n for i, n in self.added.items() if n in self.special and i < size)
        return fitted

    def in_chat(
        self, template: ChatTemplate, end: int, marks: Sequence[str], frame: Frame = NO_FRAME
    ) -> Tokenizer:
        """Return this tokenizer for conversations in ``template``, its chat template.

        Args:
          end: the token that ends a turn of the assistant: it ends responses, too.
          marks: added tokens that separate turns. They are special, whatever the files say.
          frame: what the template puts around an answer.
        """
        fitted = copy.copy(self)
        fitted.eos_id, fitted.ends = end, tuple(dict.fromkeys((end, *self.ends)))
        if set(marks) - set(self.special):
            fitted.special = tuple(dict.fromkeys((*self.special, *marks)))
            fitted._plain = SpelledOut(self._parsing, self.vocab_size, fitted.special)
        fitted.chat, fitted._in_chat, fitted._frame = template, True, frame
        return fitted

    @property
    def added(self) -> dict[int, str]:
        """Id -> name of the tokens that are found before a text is split, special or not."""
        found = self._parsing.get_added_tokens_decoder()
        return {i: token.content for i, token in found.items()}

    def to_json(self) -> str:
        """Return the content of tokenizer.json."""
        return self._parsing.to_str(pretty=True)

    def _prompts(self, template: str, texts: Sequence[str]) -> Ragged:
        if template.count(_PROMPT) != 1:
            raise UserError(f"template {template!r} must contain {_PROMPT} exactly once")
        before, after = map(self._plain.parsed(any_of(self.special)), template.split(_PROMPT))
        plain = self._plain.batch([before + text + after for text in texts])
        if not self._bos:
            return plain
        (bos,) = self._bos
        none, lacks = np.zeros(len(plain), bool), flat_ids.first_ids(plain, empty=-1) != bos
        return flat_ids.with_token(plain, bos, before=lacks, kept=plain.lengths, after=none)

    def _truncated(
        self, template: str, text: str, limit: int, excess: int, marked: Callable[[str], str]
    ) -> tuple[int, ...]:
        """Encode the prompt with the longest suffix of ``text`` that fits, cut between tokens.

        An end may merge with the template into different tokens, so each one is tried.
        """
        alone = self.prompt_length(template, "")
        if limit < max(alone, 1):
            raise UserError(
                f"prompt limit of {limit} tokens leaves no room: the template {template!r} alone "
                f"has {alone}: raise the limit"
            )
        for kept in self.ends_of(text, excess):
            (ids,) = self._prompts(template, [marked(kept)])
            if len(ids) <= limit:
                return tuple(ids.tolist())
        return tuple(self._prompts(template, [""])[0].tolist())

    def _room(self, limit: int, *, pair: bool) -> int:
        """Return how many tokens of text fit in ``limit``."""
        room = limit - self._plain.backend.num_special_tokens_to_add(pair)
        if room < 1:
            raise UserError(f"text limit of {limit} tokens leaves no room for text: raise it")
        return room
