"""A fit on grids that the memory holds: with ``config.model.fit`` = auto, on smaller ones."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable

from alol_jax.devices import processes
from alol_jax.devices.out_of_memory import OutOfMemory, watching_memory
from alol_jax.models.language_model import LanguageModel
from alol_jax.models.savings import STEP, half_of, program_of
from alol_jax.training.grids import Packer
from alol_jax.types import Policy, StageContext

FIXED, AUTO = FITS = ("fixed", "auto")
"""``config.model.fit``: end where a step has no room, or take smaller grids."""


def fit_in_memory(
    lm: LanguageModel,
    packer: Packer,
    fit: Callable[[Packer], Policy],
    context: StageContext,
    *,
    label: str,
) -> Policy:
    """Return ``fit(packer)``; with ``config.model.fit`` = auto, with fewer rows if it must be.

    If a step is out of memory, the fit goes on from its last checkpoint with half the rows in a
    grid, hence twice as many grids for a step. The step is the same beyond rounding, but for the
    masks of dropout.

    Args:
        packer: lays out the steps.
        fit: resumes from its own checkpoints.
        label: of the fit.

    Raises:
        OutOfMemory: there is no room for a step, or another program of the fit has none.
    """
    while True:
        shape = packer.shape
        fewer = half_of(shape.rows, lm.shards)
        # Several processes would have to agree on it, and one of them may be lost by then.
        auto = fewer < shape.rows and processes.count() == 1
        more = ("config.model.fit=auto does that by itself",) if auto else ()
        program = program_of(lm, STEP, f"a step of {label}", shape.rows, shape.width, *more)
        try:
            with watching_memory(program):
                return fit(packer)
        except OutOfMemory as error:
            if error.program is not program or not auto or lm.options["fit"] != AUTO:
                raise
        gc.collect()  # the arrays of the step that failed
        packer = dataclasses.replace(packer, shape=shape._replace(rows=fewer))
        context.say(
            f"out of memory on grids of {shape.rows} × {shape.width} tokens: on with {fewer} rows "
            "in a grid, and twice as many grids for the same step"
        )
