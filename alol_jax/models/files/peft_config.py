"""PEFT's adapter_config.json: the target modules, ranks and scales of a LoRA adapter.

Unsupported means error: a field that changes what an adapter computes and is not implemented, or
that is unknown here and not empty, raises UserError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from alol_jax.errors import UserError
from alol_jax.models.adapters import ALL_LINEAR
from alol_jax.models.blocks import LoRA
from alol_jax.models.families.fields import Fields
from alol_jax.models.files.hf_reader import first_file, json_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TORCH_WEIGHTS = "adapter_model.bin"  # of older versions of PEFT

_READ = frozenset(
    "r lora_alpha lora_dropout target_modules rank_pattern alpha_pattern use_rslora use_dora "
    "layers_to_transform layers_pattern modules_to_save base_model_name_or_path".split()
)
# Fields that change the computation -> the implemented values.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", "lora_only"),
    # Others (pissa, olora, corda, loftq) change the weights of the base.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
# Fields that change nothing here. ``fan_in_fan_out`` says how the base stores its kernels.
_IGNORED = frozenset(
    "task_type inference_mode revision auto_mapping peft_version megatron_core qalora_group_size "
    "runtime_config eva_config ensure_weight_tying fan_in_fan_out".split()
)


def read_fields(folder: Path) -> Fields:
    """Read adapter_config.json.

    Raises:
        UserError: the file is missing or damaged, or a field is not implemented.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory: give the one that holds {CONFIG}")
    where, values = str(folder / CONFIG), json_object(folder / CONFIG)
    fields = Fields(values, where)
    for key, value in values.items():
        if key in _IMPLEMENTED and value not in _IMPLEMENTED[key]:
            raise fields.unimplemented(key, value, repr(_IMPLEMENTED[key][0]))
        known = key in _READ | _IGNORED | _IMPLEMENTED.keys()
        if not known and value not in (None, False, "", {}, []):
            raise UserError(
                f"{where}: {key} = {value!r} is not implemented: choose an adapter of plain LoRA "
                "factors, or merge it into its base with peft's merge_and_unload"
            )
    return fields


def weights_file(folder: Path) -> Path:
    """Return the file of an adapter's weights.

    Raises:
        UserError: there is none.
    """
    file = first_file(folder, (WEIGHTS, TORCH_WEIGHTS))
    if file is None:
        raise UserError(f"{folder / WEIGHTS} is missing, as is {TORCH_WEIGHTS}: save it again")
    return file


def adapted_layers(fields: Fields, modules: Sequence[str]) -> tuple[int, ...]:
    """Return the layers of ``layers_to_transform``, all if it is null.

    Args:
        modules: the names of one module, by layer.
    """
    chosen = fields.values.get("layers_to_transform")
    if chosen is None or chosen == []:
        return tuple(range(len(modules)))
    chosen = chosen if isinstance(chosen, list) else [chosen]
    wrong = [one for one in chosen if type(one) is not int or not 0 <= one < len(modules)]
    if wrong:
        raise UserError(
            f"{fields.where}: layers_to_transform = {wrong[0]!r} is no layer of this model, which "
            f"has {len(modules)}: the adapter is for another base"
        )
    containers = fields.values.get("layers_pattern") or []
    containers = [containers] if isinstance(containers, str) else containers
    if containers and not any(
        _matches(fields, "layers_pattern", rf"(.*\.)?{one}\.\d+\..*", modules[0])
        for one in containers
    ):
        raise UserError(
            f"{fields.where}: layers_pattern = {containers!r} is not where {modules[0]} is: the "
            "adapter is for another base"
        )
    return tuple(sorted(set(chosen)))


def is_target(fields: Fields, module: str, default: bool) -> bool:
    """Return whether ``target_modules`` names ``module``; ``default`` if it is null.

    As in PEFT, a string is a regex of the whole name, and a list holds names or suffixes.
    """
    named = fields.values.get("target_modules")
    if named is None:
        return default
    if isinstance(named, str):
        return named.lower() == ALL_LINEAR or _matches(fields, "target_modules", named, module)
    if not isinstance(named, list):
        raise UserError(f"{fields.where}: target_modules = {named!r} must be a list or a string")
    return any(module == name or module.endswith(f".{name}") for name in named)


def _matches(fields: Fields, key: str, pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error as error:
        raise UserError(f"{fields.where}: {key}: {pattern!r} is not a regex ({error})") from error


def rank_and_scale(fields: Fields, module: str) -> tuple[int, Fraction]:
    """Return the rank of a module and its scale, the factor of B A."""

    def own(key: str, default: float) -> float:
        patterns = fields.values.get(key) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{fields.where}: {key} = {patterns!r} must be an object")
        for pattern, value in patterns.items():
            if _matches(fields, key, rf"(.*\.)?({pattern})", module):
                return Fields({key: value}, fields.where).number(key)
        return default

    rank = own("rank_pattern", fields.size("r"))
    if rank < 1 or rank != int(rank):
        raise UserError(f"{fields.where}: rank {rank:g} of {module} must be a whole number above 0")
    alpha = own("alpha_pattern", fields.number("lora_alpha"))
    stable = fields.flag("use_rslora", False)
    return int(rank), Fraction(alpha / rank**0.5) if stable else Fraction(alpha) / int(rank)


def common_scale(fields: Fields, scales: Mapping[str, tuple[int, Fraction]]) -> Fraction:
    """Return the scale that all modules share; ``scales`` is module -> (rank, scale).

    Raises:
        UserError: the scales differ.
    """
    found = {scale: module for module, (_, scale) in scales.items()}
    if len(found) > 1:
        shown = ", ".join(f"{float(scale):g} of {module}" for scale, module in found.items())
        raise UserError(
            f"{fields.where}: modules of different scales are not implemented ({shown}): merge the "
            "adapter into its base with peft's merge_and_unload"
        )
    return next(iter(found))


def config_json(
    lora: LoRA, base: str, counts: Mapping[str, int], inputs_first: bool
) -> dict[str, Any]:
    """Return adapter_config.json for adapters of one rank.

    Args:
        lora: rank, alpha and dropout.
        base: path or hub name of the base model.
        counts: target module -> number of adapters packed in it.
        inputs_first: whether the base stores these kernels as [in, out].
    """
    packed = {target: count for target, count in counts.items() if count > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": sorted(counts),
        "rank_pattern": {target: n * lora.rank for target, n in packed.items()},
        "alpha_pattern": {target: _whole(n * lora.alpha) for target, n in packed.items()},
        "fan_in_fan_out": inputs_first,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def _whole(number: float) -> float:
    """Return an int if ``number`` is whole, as PEFT prefers."""
    return int(number) if number == int(number) else number
