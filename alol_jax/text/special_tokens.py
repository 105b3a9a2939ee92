"""Special tokens in a text: finding them, and reading them as plain text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import tokenizers

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged
from alol_jax.text import flat_ids


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the names, the longest first; without names, nothing."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class Guard:
    """Keeps the special tokens of a text from being found once a template has taken it.

    A special token inside the text is broken by a mark behind its first character. So is what could
    become one beside other text: the mark is put before or after a text that begins with the end
    of a name or ends with the beginning of one, white space left aside. All else stays, so that a
    template can trim the text, test it and cut it as it does with any.

    Attributes:
      mark: digits, which filters like ``upper`` leave alone; remove them before encoding.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Guard against the names. One of a single character has no other encoding."""
        self.mark = str(secrets.randbits(160))
        long = tuple(name for name in names if len(name) > 1)
        self._names = any_of(long)
        self._heads = tuple({name[:end] for name in long for end in range(1, len(name))})
        self._tails = tuple({name[start:] for name in long for start in range(1, len(name))})

    def __call__(self, text: str) -> str:
        """Return the text with marks."""
        broken, found = text, 1
        while found:  # breaking one name can leave another that it overlapped
            broken, found = self._names.subn(self._broken, broken)
        inside = broken.strip()
        if not inside:
            return broken
        start = broken.index(inside)
        before = self.mark if inside.startswith(self._tails) else ""
        after = self.mark if inside.endswith(self._heads) else ""
        whole = before + inside + after
        return broken[:start] + whole + broken[start + len(inside) :]

    def _broken(self, found: re.Match[str]) -> str:
        return found[0][0] + self.mark + found[0][1:]


def with_special_tokens_renamed(
    backend: tokenizers.Tokenizer, mark: str, start: int, names: Collection[str]
) -> tokenizers.Tokenizer:
    """Return a tokenizer that encodes these added tokens of ``backend`` as plain text.

    Token i gets the name ``mark + name`` and the id ``start + i`` instead. Two simpler ways
    do not work. Splitting the text at special tokens and encoding each part alone: whether Llama
    puts a space in front of a part depends on its position. The library's encode_special_tokens: it
    treats template and text alike, and text can still merge into a special token.
    """
    state = json.loads(backend.to_str())
    model, vocabulary = state["model"], state["model"]["vocab"]
    special = {token["content"] for token in state["added_tokens"]} & set(names)
    gone = {name for name in special if len(name) > 1}  # a single character has no other encoding
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
    if "merges" in model:  # WordPiece has none
        model["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if not {left, right, left + right} & gone
        ]
    return tokenizers.Tokenizer.from_str(json.dumps(state))


class SpelledOut:
    """Encodes texts with their special tokens spelled out, except those behind a mark.

    Attributes:
      mark: random, so no text can contain it. Ids do not depend on it.
      backend: the tokenizer with its special tokens renamed.
    """

    def __init__(self, backend: tokenizers.Tokenizer, start: int, names: Collection[str]) -> None:
        """
        Args:
          backend: the tokenizer.
          start: its largest id plus one.
          names: of the special tokens.
        """
        self.mark, self._start = secrets.token_hex(16), start
        self.backend = with_special_tokens_renamed(backend, self.mark, start, names)

    def parsed(self, names: re.Pattern[str]) -> Callable[[str], str]:
        """Return a function that marks these special tokens in a text, so that they are parsed."""
        return lambda text: names.sub(lambda found: self.mark + found[0], text)

    def ids(self, text: str) -> tuple[int, ...]:
        """Encode one text."""
        return tuple(self.batch([text])[0].tolist())

    def batch(self, texts: Sequence[str]) -> Ragged:
        """Encode many texts, on all cores: i32 ids.

        Raises:
          UserError: a text is not valid Unicode.
        """
        try:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            encodings = [encoding_of(self.backend, text) for text in texts]  # names the text
        ids, lengths = flat_ids.flat([encoding.ids for encoding in encodings])
        return Ragged.of(self._named(ids), lengths)

    def real(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Map ids of ``backend`` to those of the vocabulary."""
        return tuple(self._named(np.array(ids, np.int32)).tolist())

    def _named(self, ids: np.ndarray) -> np.ndarray:
        return np.where(ids >= self._start, ids - self._start, ids)


def encoding_of(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """Encode a text without adding special tokens.

    Raises:
      UserError: it is not valid Unicode.
    """
    try:
        return backend.encode(text, add_special_tokens=False)
    except TypeError as error:  # what the library raises for half a surrogate pair
        raise UserError(f"{text!r} is not valid Unicode text: drop or repair the row") from error
