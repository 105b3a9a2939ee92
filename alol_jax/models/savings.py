"""What a config can still change so that a program needs less memory, in words."""

from __future__ import annotations

from collections.abc import Callable

from alol_jax.devices.out_of_memory import SAVINGS, Program
from alol_jax.models.language_model import LanguageModel

SMALLEST_CHUNK = 64  # response tokens whose logits are computed together
STEP, PASS, DECODING = "a training step", "a pass over rows", "decoding"


def _remat(lm: LanguageModel, kind: str, rows: int) -> str:
    wanted = kind == STEP and lm.options["remat"] != "full"
    return SAVINGS["remat"] if wanted else ""


def _chunk(lm: LanguageModel, kind: str, rows: int) -> str:
    chunk = lm.logprob_chunk // 8
    wanted = kind != DECODING and chunk >= SMALLEST_CHUNK
    return f"config.model.logprob_chunk={chunk}" if wanted else ""


def _grids(lm: LanguageModel, kind: str, rows: int) -> str:
    fewer = half_of(rows, lm.shards)
    field = "decode.batch_size" if kind == DECODING else "model.rows"
    return f"config.{field}={fewer}" if fewer < rows else "config.model.max_prompt"


def _quantisation(lm: LanguageModel, kind: str, rows: int) -> str:
    wanted = lm.transformer.nf4 is None and lm.transformer.lora is not None
    return SAVINGS["quantisation"] if wanted else ""


def _chips(lm: LanguageModel, kind: str, rows: int) -> str:
    return SAVINGS["chips"]


_WORDS: dict[str, Callable[[LanguageModel, str, int], str]] = {
    "remat": _remat,
    "chunk": _chunk,
    "grids": _grids,
    "quantisation": _quantisation,
    "chips": _chips,
}


def half_of(rows: int, multiple: int) -> int:
    """Return half of the rows of a grid, a multiple of ``multiple``, and at least that."""
    return max(rows // 2 // multiple, 1) * multiple


def program_of(
    lm: LanguageModel, kind: str, name: str, rows: int, width: int, *more: str
) -> Program:
    """Describe a program of the language model for an error.

    Args:
        kind: `STEP`, `PASS` or `DECODING`; only a step has a backward pass.
        name: what the user calls it.
        rows, width: of its grid; in decoding the slots, and the columns of their cache.
        more: further ways out.
    """
    words = (_WORDS[saving](lm, kind, rows) for saving in SAVINGS)
    return Program(name, rows, width, (*filter(None, words), *more))
