"""The rows of a family's weight table by the names of PEFT: modules, kernels, biases, and the ends.

The ends of a language model are its embedding and its head.
"""

from __future__ import annotations

from alol_jax.models.config import ModelConfig
from alol_jax.models.families.layouts import Row
from alol_jax.models.families.registry import ARCHITECTURES, FAMILIES
from alol_jax.models.transformer import is_block_kernel, param_shapes

PREFIX = "base_model.model."  # of the names in PEFT's files
EMBEDDING, HEAD = "embed/embedding", "head/kernel"


def kernel_rows(config: ModelConfig) -> list[Row]:
    """Return the rows of a block's kernels."""
    return [row for row in FAMILIES[config.family].body if is_block_kernel(row.paths[0])]


def bias_row(row: Row, config: ModelConfig) -> Row | None:
    """Return the row of the biases of a kernel's linear map; None if it has none."""
    name = row.name.removesuffix("weight") + "bias"
    rows = FAMILIES[config.family].rows(config)
    return next((one for one in rows if one.name == name), None)


def end_rows(config: ModelConfig) -> dict[str, Row]:
    """Return path -> row of the embedding and of the language model's head."""
    family = FAMILIES[config.family]
    heads = [kind.head for kind in ARCHITECTURES.values() if kind.family == config.family]
    rows = (*family.body, *(row for head in heads for row in head))
    return {row.paths[0]: row for row in rows if row.paths[0] in (EMBEDDING, HEAD)}


def names_of(row: Row) -> list[str]:
    """Return our names of the linear maps in a row: q_proj, …"""
    return [path.split("/")[1] for path in row.paths]


def module_of(row: Row, layer: int) -> str:
    """Return the name of a row's module in transformers."""
    return row.name.format(i=layer).removesuffix(".weight")


def modules_of(row: Row, config: ModelConfig) -> list[str]:
    """Return the module names of a row in transformers, by layer."""
    return [module_of(row, layer) for layer in range(config.layers)]


def tail_of(row: Row) -> str:
    """Return a module's name within its layer."""
    return row.name.split("{i}.")[1].removesuffix(".weight")


def kernel_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return path -> (inputs, outputs) of the kernels of a block."""
    shapes = param_shapes(config)
    return {path: leaf.shape[1:] for path, leaf in shapes.items() if is_block_kernel(path)}
