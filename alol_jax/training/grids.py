"""The examples of an optimizer step, laid out in grids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import own_part
from alol_jax.models.grid_sizes import pass_cost, widths_for
from alol_jax.models.language_model import LanguageModel
from alol_jax.text.packing import (
    Grids,
    GridShape,
    Layout,
    Lengths,
    candidates,
    cheapest,
    grids_of,
    to_grid,
)
from alol_jax.training import flops
from alol_jax.training.items import Examples, Items
from alol_jax.training.memory import fits_in_training
from alol_jax.types import Grid, Work

SAMPLE_STEPS, SAMPLE_ITEMS = 24, 512  # on about which the size of grids is chosen
ROWS = (1, 2, 4, 8)  # of a grid per device


@dataclasses.dataclass(frozen=True, eq=False)
class Packer:
    """Lays out the examples of optimizer steps in grids of one size, and of half its width.

    Attributes:
        shape: the size.
        layout: of the arrays.
        mesh: that shares out the rows.
        pairs: `flops.pairs_of` of the model and layout.
        work: (real tokens, pairs of attention, grids) -> `Work`.
        copies: of a prompt in an item.
    """

    shape: GridShape
    layout: Layout
    mesh: Mesh
    pairs: Callable[[np.ndarray, np.ndarray], np.ndarray]
    work: Callable[[int, float, Grids], Work]
    copies: int = 1

    @property
    def summary(self) -> str:
        """Describe it in one line for the user."""
        shared = "; every response has its own copy of the prompt" if self.copies > 1 else ""
        rows, width = self.shape.rows, self.shape.width
        return f"grids of {rows} × {width} tokens, and of half the width for the rest{shared}"

    def __call__(self, examples: Examples) -> tuple[tuple[Grid, ...], Work]:
        """Return the grids, of numpy arrays, and the work of an optimizer step on them.

        Of several processes each fills the rows of its own devices.
        """
        lengths = examples.lengths(share=self.layout.share)
        packed = grids_of(lengths, self.shape)

        def example(n: int) -> tuple[np.ndarray, Sequence[np.ndarray]]:
            return examples.prompts[n], examples.responses[n]

        grids = tuple(
            to_grid(own_part(rows, size.rows, self.mesh), example, size, self.layout)
            for size, rows in packed
        )
        pairs = float(np.sum(self.pairs(*examples.sizes)))
        return grids, self.work(int(lengths.tokens.sum()), pairs, packed)


def packer_of(lm: LanguageModel, items: Items, at: Callable[[int], np.ndarray]) -> Packer:
    """Make the packer of a fit whose step n trains on the items ``at(n)``."""
    lengths = items.lengths(share=lm.transformer.attention.branches)
    draws = [at(step) for step in range(SAMPLE_STEPS)]
    return make_packer(lm, lengths, draws, longest=lengths.longest, length=items.longest)


def make_packer(
    lm: LanguageModel,
    lengths: Lengths,
    draws: Sequence[np.ndarray],
    *,
    longest: tuple[int, int],
    length: int,
    room: float | None = None,
) -> Packer:
    """Make a packer for items of these lengths.

    Args:
        lengths: of all items.
        draws: the items of some steps; the size is chosen on the first of them.
        longest: the most tokens of an item, and of its responses, that may come.
        length: R, the longest response.
        room: bytes of memory on each device; None asks the devices.

    Raises:
        UserError: ``config.model.width`` cannot hold the longest item.
    """
    draws = draws[: max(SAMPLE_ITEMS // len(draws[0]), 2)]
    sample = lengths.take(np.concatenate(draws))
    shapes = []
    for rows, width in sizes(lm, longest[0], room):
        shapes += candidates(sample, [width], rows=rows, longest=longest)
    batches = [lengths.take(draw) for draw in draws]
    shape = cheapest(batches, shapes, pass_cost(lm.transformer.config, lm.mesh))
    share, config = lm.transformer.attention.branches, lm.transformer.config
    pairs = functools.partial(flops.pairs_of, config, share=share)
    layout = Layout(length, share, lm.tokenizer.pad_id)
    return Packer(shape, layout, lm.mesh, pairs, step_work(lm), lengths.copies)


def step_work(lm: LanguageModel) -> Callable[[int, float, Grids], Work]:
    """Make the function from (real tokens, pairs of attention, grids) to the work of a step."""
    trained, frozen = lm.abstract()
    leaves = {**frozen, **trained}

    def work(tokens: int, pairs: float, grids: Grids) -> Work:
        computed = sum(size.tokens for size, _ in grids)
        heads = [size.rows * size.targets for size, _ in grids]
        one = flops.forward(
            leaves, lm.transformer.config, tokens=computed, pairs=pairs, head_tokens=sum(heads)
        )
        return Work(tokens, computed, one.total, step_flops(lm, one, head_again=max(heads)))

    return work


def step_flops(lm: LanguageModel, one: flops.Forward, *, head_again: int) -> float:
    """Return the FLOPs of a forward and backward pass.

    Args:
        head_again: response tokens of a grid; beyond ``lm.logprob_chunk`` their logits are computed
            twice.
    """
    return flops.step(
        one,
        all_train=lm.transformer.lora is None,
        remat=lm.transformer.remat,
        head_again=head_again > lm.logprob_chunk,
    )


def sizes(lm: LanguageModel, longest: int, room: float | None = None) -> list[tuple[int, int]]:
    """Return the rows and widths to choose from: all that fit in memory, and the smallest.

    Args:
        room: bytes of memory on each device; None asks the devices.
    """
    found = []
    for rows in [lm.grid.rows] if lm.grid.rows else [lm.shards * rows for rows in ROWS]:
        for width in widths_for(lm.grid, lm.mesh, longest):
            if not found or fits_in_training(lm, rows // lm.shards * width, room):
                found.append((rows, width))
    return found
