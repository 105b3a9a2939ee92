"""The device mesh, the partition table of parameters, and placing arrays on devices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.devices import processes
from alol_jax.devices.opening import open_devices
from alol_jax.errors import UserError
from alol_jax.types import Params

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that shard a batch

_IN = r"(q|k|v|gate|up)_proj"  # kernels from the model width
_OUT = r"(o|down)_proj"  # kernels back to the model width
_KERNEL = r"(kernel|nf4_codes|nf4_scale|nf4_scale_codes)"  # [in, out]; NF4: blocks of inputs
PARTITION: tuple[tuple[str, P], ...] = (
    (r"embed/embedding", P("tensor", "fsdp")),
    (r"head/kernel", P("fsdp", "tensor")),
    (rf"layers/{_IN}/{_KERNEL}", P(None, "fsdp", "tensor")),
    (rf"layers/{_OUT}/{_KERNEL}", P(None, "tensor", "fsdp")),
    (rf"layers/{_IN}/lora_a", P(None, "fsdp", None)),
    (rf"layers/{_IN}/lora_b", P(None, None, "tensor")),
    (rf"layers/{_OUT}/lora_a", P(None, "tensor", None)),
    (rf"layers/{_OUT}/lora_b", P(None, None, "fsdp")),
    (r"layers/\w+/(nf4_scale_scale|nf4_scale_mean)", P()),
    (r"(layers/)?\w+_norm/(scale|bias)", P()),
    (r"(positions|token_types)/embedding|layers/\w+_proj/bias", P()),
    (r"(q|k|v|o)_proj/kernel", P("fsdp", "tensor")),  # the value head
    (r"query|(summary|value)/(kernel|bias)|\w_proj/bias", P()),  # value: PPO's value of each token
    (r"(score|pooler)(/\w+)*/(kernel|bias)", P()),  # heads of classifiers
)
"""(regex of the whole parameter path, sharding of its dimensions). The first match wins."""


def make_mesh(
    *, data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return the mesh over ``devices`` (default: all); an axis of −1 takes the remaining devices.

    Over several TPU slices, ``data`` goes across them and the other axes stay inside: the network
    between slices is much slower.

    Raises:
        UserError: the product of the sizes is not the number of devices, or ``data`` is not a
            multiple of the number of TPU slices; or see `open_devices`.
    """
    devices = open_devices() if devices is None else devices
    sizes, count = [data, fsdp, tensor], len(devices)
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and known > 0:
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        raise UserError(
            f"config.mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {count} "
            f"devices: the product must be {count} (one of them may be -1)"
        )
    return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(sizes: list[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the shape of the mesh; on TPUs by where the chips are.

    An axis may be a part of a pod's side, like 8 of 16 chips, which `jax.make_mesh` refuses.
    """
    data, fsdp, tensor = sizes
    slices = len({getattr(device, "slice_index", None) for device in devices})
    # Elsewhere a slice is a host. Devices are ordered by host, so that the last axes stay inside.
    if slices == 1 or devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if data % slices:
        raise UserError(
            f"config.mesh data={data} must be a multiple of the {slices} TPU slices: fsdp and "
            "tensor stay inside a slice"
        )
    inside = (data // slices, fsdp, tensor)
    return mesh_utils.create_hybrid_device_mesh(
        inside, (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def shards(mesh: Mesh) -> int:
    """Return the number of devices that share out the rows of a batch: data · fsdp."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def param_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return the sharding of a parameter.

    A dimension that is not divisible by its mesh axis is not sharded.

    Raises:
        ValueError: no row of `PARTITION` matches the path.
    """
    for pattern, spec in PARTITION:
        if re.fullmatch(pattern, path):
            axes = [*spec, *[None] * (len(shape) - len(spec))]
            fits = [
                a if a and n % mesh.shape[a] == 0 else None
                for a, n in zip(axes, shape, strict=True)
            ]
            return NamedSharding(mesh, P(*fits))
    raise ValueError(f"no row of the partition table matches the parameter {path!r}")


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, P())


def place_params(params: Params, mesh: Mesh) -> Params:
    """Put parameters on the mesh, sharded by the partition table."""
    return {
        path: put(leaf, param_sharding(path, leaf.shape, mesh)) for path, leaf in params.items()
    }


def bytes_per_device(tree: Any) -> float:
    """Return the bytes of arrays, or of described ones, that are on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Put an array on the mesh. Every process has all of it, and gives its own devices their part.

    An array that is on the mesh already is moved there.
    """
    if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def fetch(tree: Any) -> Any:
    """Return a pytree of arrays as numpy arrays, in every process, wherever their parts lie."""

    def whole(leaf):
        split = isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        return multihost_utils.process_allgather(leaf, tiled=True) if split else leaf

    return jax.device_get(jax.tree.map(whole, tree))


def place_rows(batch: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """Put a pytree of host arrays on the mesh, with ``axis`` (rows) sharded over data·fsdp.

    Every process gives only the rows of its own devices; see `own_rows`.

    Raises:
        UserError: the number of rows is not divisible by data·fsdp.
    """
    cut = shards(mesh)
    sharding = NamedSharding(mesh, P(*[None] * axis, ROWS))

    def put(leaf):
        if leaf.shape[axis] % cut:
            raise UserError(
                f"a batch of {leaf.shape[axis]} rows cannot be split over data·fsdp = {cut} "
                f"devices: make the batch size a multiple of {cut}"
            )
        rows = own_rows(leaf.shape[axis], mesh)
        mine = np.asarray(leaf).take(rows, axis) if len(rows) < leaf.shape[axis] else leaf
        return jax.make_array_from_process_local_data(sharding, np.asarray(mine), leaf.shape)

    return jax.tree.map(put, batch)


def own_rows(count: int, mesh: Mesh) -> np.ndarray:
    """Return which rows of a batch of ``count`` are on this process's devices, in order."""
    if processes.count() == 1:
        return np.arange(count)
    sharding = NamedSharding(mesh, P(ROWS))
    places = sharding.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in places]))


def own_part(rows: Sequence[Any], count: int, mesh: Mesh) -> Sequence[Any]:
    """Empty the rows of a batch of ``count`` that other processes give, so that none makes them."""
    if processes.count() == 1:
        return rows
    mine = set(own_rows(count, mesh).tolist())
    return [row if place in mine else () for place, row in enumerate(rows)]


def place_whole(batch: Any, mesh: Mesh) -> Any:
    """Put a pytree of host arrays on every device of the mesh."""
    return jax.tree.map(lambda leaf: put(leaf, replicated(mesh)), batch)


def shardings_like_params(tree: Any, mesh: Mesh) -> Any:
    """Return the sharding of each leaf of a pytree that mirrors parameters (an optimizer state).

    A leaf is sharded like the parameter named by the last dictionary key on its path. Other leaves
    and scalars (step counts) are replicated.
    """

    def sharding(path, leaf):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        whole = not names or leaf.ndim == 0
        return replicated(mesh) if whole else param_sharding(names[-1], leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place_like_params(tree: Any, mesh: Mesh) -> Any:
    """Put a pytree that mirrors parameters on the mesh, each leaf sharded like its parameter."""
    return jax.tree.map(put, tree, shardings_like_params(tree, mesh))
