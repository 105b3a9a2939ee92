"""LoRA adapters: making them from a config, finding their leaves, and the start-up summary."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alol_jax.errors import UserError
from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.types import Params

ALL_LINEAR = "all-linear"


def make_lora(
    config: ModelConfig, *, rank: int, alpha: float, dropout: float, modules: tuple[str, ...]
) -> LoRA | None:
    """Make a LoRA description from config values; None if ``rank`` is 0 (full fine-tuning).

    Raises:
        UserError: the model has no such projection, or a value is out of range.
    """
    if rank == 0:
        return None
    if rank < 0 or not alpha > 0 or not 0.0 <= dropout < 1.0:
        raise UserError(
            f"config.model.lora: rank {rank} must be ≥ 0, alpha {alpha} above 0 (0 would train "
            f"adapters that change nothing), dropout {dropout} in [0, 1)"
        )
    names = config.projections if tuple(modules) == (ALL_LINEAR,) else tuple(modules)
    unknown = [name for name in names if name not in config.projections]
    if unknown or not names:
        raise UserError(
            f"config.model.lora.modules names {unknown or 'nothing'}; "
            f"this model has {', '.join(config.projections)} (or '{ALL_LINEAR}')"
        )
    return LoRA(rank, alpha, dropout, names)


def is_adapter(path: str) -> bool:
    """Return True for the low-rank factors, False for base weights."""
    return path.rsplit("/", 1)[-1] in ("lora_a", "lora_b")


def adapters_of(params: Params) -> Params:
    """Return the adapter leaves of ``params``."""
    return {path: leaf for path, leaf in params.items() if is_adapter(path)}


def folded(base: Params, adapters: Params, lora: LoRA) -> Params:
    """Return the kernels that have an adapter, with it: W + alpha/r · A B, in W's dtype.

    Sums in float32, layer by layer. Call it inside a jit.
    """

    def fold(factors):
        kernel, a, b = (x.astype(jnp.float32) for x in factors)
        return (kernel + lora.scale * (a @ b)).astype(factors[0].dtype)

    found = {}
    for path in folded_paths(adapters):
        factors = (adapters[path.replace("/kernel", f"/lora_{name}")] for name in "ab")
        found[path] = jax.lax.map(fold, (base[path], *factors))
    return found


def folded_paths(adapters: Params) -> list[str]:
    """Return the paths of the kernels that these adapters belong to."""
    end = "/lora_a"
    return [path.removesuffix(end) + "/kernel" for path in adapters if path.endswith(end)]


def trainable_summary(trained: Params, frozen: Params) -> tuple[str, ...]:
    """Return lines for the log: the share of trainable parameters, then each module's shapes."""
    count = sum(leaf.size for leaf in trained.values())
    total = count + sum(_weights(path, leaf) for path, leaf in frozen.items())
    modules: dict[str, list[str]] = {}
    for path in trained:
        module, leaf = path.rsplit("/", 1)
        modules.setdefault(module, []).append(leaf)
    lines = [f"training {count:,} of {total:,} parameters ({count / total:.2%})"]
    for module, leaves in sorted(modules.items()):
        shapes = ", ".join(f"{leaf} {_shape(trained[f'{module}/{leaf}'])}" for leaf in leaves)
        size = sum(trained[f"{module}/{leaf}"].size for leaf in leaves)
        lines.append(f"  {module:24} {size:>13,}  {shapes}")
    return tuple(lines)


def _weights(path: str, leaf) -> int:
    """Count the weights of a leaf: two per byte of NF4 codes, none for NF4 scales."""
    name = path.rsplit("/", 1)[-1]
    return 2 * leaf.size if name == "nf4_codes" else 0 if name.startswith("nf4_") else leaf.size


def _shape(leaf) -> str:
    return "×".join(map(str, leaf.shape))
