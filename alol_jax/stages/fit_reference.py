"""fit_reference: the reference policy π_ref, fine-tuned with NLL on the training rows."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.devices import processes
from alol_jax.devices.sharding import place_like_params
from alol_jax.models.language_model import LanguageModel
from alol_jax.models.untrained_tokens import warning_of_untrained
from alol_jax.objectives.advantage import SAMPLING, resolve_sampling
from alol_jax.objectives.losses import nll
from alol_jax.text.prompts import encoder_of
from alol_jax.training.annotate import annotate
from alol_jax.training.batches import read_ahead, shuffled
from alol_jax.training.fit import (
    Look,
    Validator,
    fit_best,
    init_state,
    make_update,
    plan_epochs,
    policy_forward,
)
from alol_jax.training.fit_in_memory import fit_in_memory
from alol_jax.training.grids import Packer, packer_of
from alol_jax.training.items import first_responses, single_items, tokenise
from alol_jax.training.optim import make_optimizer, warmup_warning
from alol_jax.types import Policy, ScoredSplits, StageContext, Task, silent


def fit_reference(
    lm: LanguageModel,
    task: Task,
    options: ConfigDict,
    seed: int,
    scored: ScoredSplits,
    *,
    context: StageContext,
) -> Policy:
    """Fine-tune π_ref on the training rows and keep the step with the best validation likelihood.

    With ``options.epochs`` = 0 nothing is trained: the reference is the model itself, with
    ``config.model.adapter`` if there is one.

    Args:
        options: ``config.reference``; sampling is uniform, over all rows or only the good ones.
        seed: for adapter initialisation, dropout and row order.
    """
    init_key, fit_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    start = lm.trainable(init_key)
    asked, _ = encoder_of(lm.tokenizer, task, task.conversation)(["?"], limit=lm.limits.prompt)
    if (warning := warning_of_untrained(lm, {**lm.frozen(), **start}, asked[0])) is not None:
        context.say(warning)
    if options.epochs == 0:
        context.say("config.reference.epochs=0: the reference is the model itself, untrained")
        return Policy(start, 0, (), ())
    tokens = context.folder / "tokens.arrow"
    rows, cut = tokenise(scored.train, task, lm.tokenizer, lm.limits, file=tokens)
    processes.from_first("tokens", tokens.unlink)  # its rows stay mapped
    context.say(f"training: {cut.summary(len(rows), lm.limits)}")
    held_out, cut = tokenise(scored.validation, task, lm.tokenizer, lm.limits)
    context.say(f"validation: {cut.summary(len(held_out), lm.limits)}")
    items = single_items(rows)
    sampling = resolve_sampling(options.sampling, None, field="reference")
    keep = first_responses(rows) if SAMPLING[sampling].good else np.ones(len(rows), bool)
    plan = plan_epochs(options, int(keep.sum()))
    order = shuffled(keep, size=options.batch_size, seed=seed)
    packer = packer_of(lm, items, order)
    context.say(packer.summary)
    for line in warmup_warning(options.optimizer, plan.steps):
        context.say(line)
    tx = make_optimizer(options.optimizer, steps=plan.steps)
    state = place_like_params(init_state(start, tx), lm.mesh)

    def validate(trained):
        logps, _ = annotate(
            lm,
            trained,
            held_out,
            watch=context.watch("validation rows")._replace(say=silent),
        )
        return Look(float(np.mean(logps.sums())))

    forward = policy_forward(lm.transformer, chunk=lm.logprob_chunk, branches=False)

    def fit(packer: Packer) -> Policy:
        return fit_best(
            state,
            lm.frozen(),
            read_ahead(items, order, packer, lm.mesh),
            make_update(forward, nll, tx, fit_key, state),
            plan,
            Validator("mean logp of the validation responses", validate),
            context,
            label="fit_reference",
        )

    return fit_in_memory(lm, packer, fit, context, label="fit_reference")
