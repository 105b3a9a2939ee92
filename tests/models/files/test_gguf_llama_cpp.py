"""llama.cpp reads what we write: the same log-probabilities, the same tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from alol_jax.text.gguf_vocabulary import read_vocabulary, special_fields
from alol_jax.text.tokenizer_files import from_directory, save
from tests.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.models.files.test_gguf_file import MORE, TINY, TOKENS, logits, random_weights_of, written
from tests.text import gguf_kinds, tokenizer_kinds

pytestmark = [pytest.mark.parity, needs_llama_cpp]


def fields_of(folder, size):
    """The keys of the tokenizer in a directory, and that tokenizer."""
    ours = from_directory(folder)
    save(ours, folder / "saved")
    return read_vocabulary(folder / "saved", size).fields() | special_fields(ours), ours


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """The keys of a tokenizer with merges, without which llama.cpp takes no file."""
    folder = tmp_path_factory.mktemp("tokenizer") / "its"
    backend = tokenizer_kinds.byte_level(262, ["<|end|>"])
    tokenizer_kinds.write(folder, {"eos_token": "<|end|>"}, tokenizer__json=backend.to_str())
    return fields_of(folder, 264)[0]


@pytest.mark.parametrize("name", [*TINY, *MORE])
def test_llama_cpp_computes_our_log_probabilities(name, fields, tmp_path):
    """Of texts within the windows and longer ones. Its GELU is a table in half precision."""
    config = (TINY | MORE)[name]
    params = random_weights_of(config)
    theirs = LlamaCpp(written(tmp_path / "m.gguf", config, params, fields=fields))
    ours = np.asarray(jax.nn.log_softmax(logits(config.for_texts(40), params)))
    allowed = 5e-3 if config.activation == "gelu_tanh" else 1e-4
    worst = 0.0
    for row in range(2):
        for length in (1, 23, 40):
            found = theirs.logp(TOKENS[row, :length])
            worst = max(worst, np.abs(found - ours[row, length - 1]).max())
    assert worst < allowed


BYTE_LEVEL = (gguf_kinds.gpt2, gguf_kinds.smollm, gguf_kinds.llama3, gguf_kinds.qwen2)
SENTENCEPIECE = (tokenizer_kinds.llama, gguf_kinds.gemma)


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *SENTENCEPIECE])
def test_llama_cpp_finds_our_tokens(kind, tmp_path):
    """But for letters with their accents apart, which Qwen's tokenizer composes and it does not."""
    fields, ours = fields_of(kind(tmp_path / "its"), 600)
    config = dataclasses.replace(TINY["llama"], vocab_size=600)
    file = written(tmp_path / "m.gguf", config, random_weights_of(config), fields=fields)
    theirs = LlamaCpp(file)
    texts = (*tokenizer_kinds.TEXTS, *tokenizer_kinds.SENTENCES, "a\n\nb<|end|>", "12345")
    apart = [text for text in texts if theirs.ids(text) != list(ours.encode(text))]
    assert apart == (["e\u0301"] if kind is gguf_kinds.qwen2 else [])
