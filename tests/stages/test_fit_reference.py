"""fit_reference: the end token is learned, and tokens that the model never learned are said."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from alol_jax.stages.fit_reference import fit_reference
from alol_jax.types import CHAT, Limits, Watch
from tests.tiny_run import TASK, context, scored_splits, setup, small_options, tiny_lm
from tests.tiny_run import scored_table as table

ASKED = dataclasses.replace(TASK, template=CHAT, date="2026-01-01")
LIMITS = Limits(48, 8)


@pytest.mark.parametrize("task", [TASK, ASKED], ids=["string", "chat"])
def test_a_model_learns_to_stop_although_its_end_token_also_pads(task, tmp_path):
    """The tokenizer adds no end token by itself, and pads with it, as many do."""
    lm = tiny_lm(rank=0, limits=LIMITS).for_template(task.template)
    assert lm.tokenizer.pad_id == lm.tokenizer.eos_id
    assert lm.tokenizer.encode("ok") == [*b"ok"]
    config, scored = small_options(), scored_splits(train=16)
    config.reference.update({"epochs": 10})
    config.reference.optimizer.update({"learning_rate": 1e-2})
    splits = {"train": scored.train, "validation": scored.validation}
    for name, rows in splits.items():
        said = table(dataclasses.replace(row, response="ok") for row in rows)
        scored = dataclasses.replace(scored, **{name: said})
    options = config.reference
    policy = fit_reference(lm, task, options, 0, scored, context=context(tmp_path))
    answers = (
        setup(lm, task, {"positivity": 0.0}, config.decode)
        .deterministic_sampler()
        .generate(policy.trained, ["new?", "what"], key=jax.random.key(0), watch=Watch("answers"))
    )
    assert answers == ((*b"ok", lm.tokenizer.eos_id),) * 2


def test_tokens_of_the_template_that_the_model_never_learned_are_said_first(tmp_path):
    lm = tiny_lm(limits=LIMITS).for_template(CHAT)
    rows = lm.base["embed/embedding"]
    changed = dict(lm.base, **{"embed/embedding": rows.at[lm.tokenizer.eos_id].set(0.0)})
    said, options = [], small_options().reference
    options.epochs = 0
    untaught = dataclasses.replace(lm)
    untaught.__dict__["base"] = changed
    fit_reference(
        untaught, ASKED, options, 0, scored_splits(), context=context(tmp_path, said=said)
    )
    assert "never learned <|im_end|> (which ends a response)" in said[0]
    assert jnp.any(rows[lm.tokenizer.eos_id])
    said.clear()
    fit_reference(lm, ASKED, options, 0, scored_splits(), context=context(tmp_path, said=said))
    assert len(said) == 1 and "untrained" in said[0]
