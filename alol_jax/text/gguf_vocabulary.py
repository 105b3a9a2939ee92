"""The tokenizer fields of a GGUF file, from a tokenizer's own files.

llama.cpp knows two kinds: ``gpt2``, byte-level BPE with merges and the name of a pre-tokenizer, and
``llama``, SentencePiece BPE, which merges the pair whose result has the highest score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alol_jax.errors import UserError
from alol_jax.text.gguf_tokenizer import (
    BYTE,
    CONTROL,
    GGUF_PRE_TOKENIZERS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    pre_tokenizer_json,
)
from alol_jax.text.tokenizer import Tokenizer


class Vocabulary(NamedTuple):
    """The tokens by id, their types, and what one kind has besides: merges or scores."""

    model: str  # "gpt2" or "llama"
    pre: str  # the pre-tokenizer by its name in llama.cpp
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]  # of gpt2: "left right", best first
    scores: tuple[float, ...]  # of llama, by id
    space_first: bool | None = None  # of llama: whether a text begins with a space

    def fields(self) -> dict[str, Any]:
        """Return the keys and values of the file, without the special tokens."""
        found = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            "tokenizer.ggml.merges": self.merges,
            "tokenizer.ggml.scores": self.scores,
        }
        if self.space_first is not None:
            found["tokenizer.ggml.add_space_prefix"] = self.space_first
        return {key: value for key, value in found.items() if value not in ("", ())}


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read tokenizer.json of a directory.

    Args:
        size: of the model's vocabulary; ids without a token are filled with unused ones.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = state["model"]
    if model["type"] != "BPE":
        raise UserError(f"--what=gguf: a {model['type']} tokenizer has no form in GGUF: only BPE")
    ids = model["vocab"] | {token["content"]: token["id"] for token in state["added_tokens"]}
    added = {token["id"]: token["special"] for token in state["added_tokens"]}
    tokens = {number: text for text, number in ids.items()}
    listed = tuple(tokens.get(n, f"[PAD{n}]") for n in range(size))
    sentencepiece = bool(model.get("byte_fallback"))
    types = []
    for n, token in enumerate(listed):
        kind = NORMAL if n in tokens else UNUSED
        if n in added:
            kind = CONTROL if added[n] else USER_DEFINED
        if token == model.get("unk_token"):
            kind = UNKNOWN
        elif sentencepiece and token.startswith("<0x") and len(token) == 6:
            kind = BYTE
        types.append(kind)
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if sentencepiece:
        scores, space = _scores(listed, pairs), _space_first(state)
        return Vocabulary("llama", "default", listed, tuple(types), (), scores, space)
    merges = tuple(" ".join(pair) for pair in pairs)
    return Vocabulary("gpt2", _pre_of(state), listed, tuple(types), merges, ())


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Return minus the rank of the first merge that makes each token; the least without one."""
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        rank.setdefault(left + right, place)
    return tuple(-float(rank.get(token, len(merges))) for token in tokens)


def _pre_of(state: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer.

    Raises:
        UserError: it has no known name, or llama.cpp has another rule for words that are tokens.
    """
    said = pre_tokenizer_json(state["pre_tokenizer"])
    whole = bool(state["model"].get("ignore_merges"))
    for name, pre in GGUF_PRE_TOKENIZERS.items():
        normalizer = {"type": "NFC"} if pre.composed else None
        if said != pre_tokenizer_json(pre.make()) or state["normalizer"] != normalizer:
            continue
        if whole != pre.whole:
            raise UserError(
                f"--what=gguf: tokenizer.json has ignore_merges {whole}, but llama.cpp's {name} "
                f"has {pre.whole} and would give words that are tokens other ids: use --what=merged"
            )
        return name
    raise UserError(
        "--what=gguf: llama.cpp's name of this tokenizer's pre-tokenizer is not known (only those "
        f"of {', '.join(GGUF_PRE_TOKENIZERS)} and SentencePiece are): use --what=merged and "
        "llama.cpp's own converter"
    )


def _space_first(state: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece BPE puts a space in front of a text: Llama does, Gemma not.

    Raises:
        UserError: it does something else with the text, too.
    """
    normalizer, splits = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepended = {"type": "Prepend", "prepend": "▁"}
    if splits.get("type") == "Metaspace" and not steps and splits["replacement"] == "▁":
        return splits["prepend_scheme"] != "never"
    at_spaces = splits.get("type") == "Split" and splits["pattern"] == {"String": " "}
    if steps in ([spaces], [prepended, spaces]) and (not splits or at_spaces):
        return prepended in steps
    raise UserError(
        "--what=gguf: llama.cpp has no form of this SentencePiece tokenizer's normaliser and "
        "pre-tokenizer (only of those of Llama and Gemma): use --what=merged and llama.cpp's own "
        "converter"
    )


def special_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the keys of the begin, end and padding tokens, and of the chat template."""
    begin = tokenizer.encode_sequence([], limit=2)
    found = {
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": bool(begin),
        "tokenizer.ggml.add_eos_token": False,
    }
    if begin:
        found["tokenizer.ggml.bos_token_id"] = begin[0]
    if more := tokenizer.ends[1:]:
        found["tokenizer.ggml.eot_token_id"] = more[0]
    if tokenizer.chat is not None:
        found["tokenizer.chat_template"] = tokenizer.chat.source
    return found
