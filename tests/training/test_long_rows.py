"""What is cut at the limits keeps tokens to learn from, in both responses of a pair too."""

import numpy as np
import pytest

from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.tables.columns import Texts
from alol_jax.training.batches import shuffled
from alol_jax.training.grids import packer_of
from alol_jax.training.items import ranked_items, tokenise
from alol_jax.types import Limits, Scored
from tests.tiny_run import TASK, scored_table, tiny_lm

LIMITS = Limits(16, 6)
LM = tiny_lm(limits=LIMITS)
SHORT, LONG, OTHER = "No.", "word " * 400, "other " * 400


def rows_of(*texts):
    """Rows of one prompt each pair of responses, the first of them better."""
    return scored_table(
        Scored(f"p{n // 2}", prompt, response, "web", (), float(-n))
        for n, (prompt, response) in enumerate(texts)
    )


@pytest.mark.parametrize("pair", [(SHORT, LONG), (LONG, SHORT), (LONG, OTHER)])
def test_pairs_of_very_unequal_length_keep_tokens_in_both(pair):
    rows, cut = tokenise(rows_of(*(("Why?", one) for one in pair)), TASK, LM.tokenizer, LIMITS)
    assert cut.responses == sum(one is not SHORT for one in pair)
    texts = Texts.of(pair)
    items = ranked_items(rows, texts, OBJECTIVES["dpo"].responses, "reward", "dpo").items
    draw = shuffled(np.ones(1, bool), size=1, seed=0)
    (responses,) = items.examples(draw(0)).responses
    assert [len(one) for one in responses] == [min(len(one) + 1, 6) for one in pair]
    (grid,), _ = packer_of(LM, items, draw)(items.examples(draw(0)))
    assert grid.real.sum() == sum(map(len, responses))


@pytest.mark.parametrize("response", [SHORT, LONG])
def test_a_prompt_beyond_the_limit_keeps_its_response(response):
    rows, cut = tokenise(rows_of((LONG, response)), TASK, LM.tokenizer, LIMITS)
    (row,) = rows
    assert cut.prompts == 1 and len(row.prompt) == 16
    assert LM.tokenizer.decode(row.response) == response[: 6 if response is LONG else 3]
    assert (row.response[-1] == LM.tokenizer.eos_id) is (response is SHORT)
