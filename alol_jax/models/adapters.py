"""Which leaves are adapters, and the start-up table of what an adapter matched."""

from __future__ import annotations

from alol_jax.models.blocks import PROJECTIONS, LoRA
from alol_jax.types import Params, UserError

ALL_LINEAR = "all-linear"


def make_lora(*, rank: int, alpha: float, dropout: float, modules: tuple[str, ...]) -> LoRA | None:
    """A LoRA description from config values; None where ``rank`` is 0 (full fine-tuning).

    Raises:
        UserError: a projection that the model does not have, or a rate out of range.
    """
    if rank == 0:
        return None
    if rank < 0 or not 0.0 <= dropout < 1.0:
        raise UserError(f"config.model.lora: rank {rank} must be ≥ 0, dropout {dropout} in [0, 1)")
    names = PROJECTIONS if tuple(modules) == (ALL_LINEAR,) else tuple(modules)
    unknown = [name for name in names if name not in PROJECTIONS]
    if unknown or not names:
        raise UserError(
            f"config.model.lora.modules names {unknown or 'nothing'}; "
            f"this model has {', '.join(PROJECTIONS)} (or '{ALL_LINEAR}')"
        )
    return LoRA(rank, alpha, dropout, names)


def is_adapter(path: str) -> bool:
    """True for the low-rank factors, False for base weights."""
    return path.rsplit("/", 1)[-1] in ("lora_a", "lora_b")


def adapters_of(params: Params) -> Params:
    """The adapter leaves."""
    return {path: leaf for path, leaf in params.items() if is_adapter(path)}


def summary(trained: Params, frozen: Params) -> str:
    """One line: which modules train, how many parameters, which share of all."""
    count = sum(leaf.size for leaf in trained.values())
    total = count + sum(leaf.size for leaf in frozen.values())
    modules = sorted({path.split("/")[-2] for path in trained})
    return f"training {count:,} of {total:,} parameters ({count / total:.2%}): {', '.join(modules)}"
