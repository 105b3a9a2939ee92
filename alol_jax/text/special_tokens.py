"""Special tokens in a text: finding them, and reading them as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import tokenizers

from alol_jax.errors import UserError


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the names, the longest first; without names, nothing."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def with_special_tokens_renamed(
    backend: tokenizers.Tokenizer, mark: str, start: int
) -> tokenizers.Tokenizer:
    """Return a tokenizer that encodes the special tokens of ``backend`` as plain text.

    Special token i gets the name ``mark + name`` and the id ``start + i`` instead. Two simpler ways
    do not work. Splitting the text at special tokens and encoding each part alone: whether Llama
    puts a space in front of a part depends on its position. The library's encode_special_tokens: it
    treats template and text alike, and text can still merge into a special token.
    """
    state = json.loads(backend.to_str())
    model, vocabulary = state["model"], state["model"]["vocab"]
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
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


def encoding_of(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """Encode a text without adding special tokens.

    Raises:
      UserError: it is not valid Unicode.
    """
    try:
        return backend.encode(text, add_special_tokens=False)
    except TypeError as error:  # what the library raises for half a surrogate pair
        raise UserError(f"{text!r} is not valid Unicode text: drop or repair the row") from error
