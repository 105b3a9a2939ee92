"""Models of published shapes with random weights made on the device, and full grids for them.

Leaves have the dtypes and places of `LanguageModel.abstract`: what trains is float32, the frozen
base is in the compute dtype or NF4. No array of a base passes through the host, and none is made in
float32 first: a 7B base in NF4 never needs more than itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import make_mesh, param_sharding, place_rows, place_whole
from alol_jax.models.adapters import is_adapter, make_lora
from alol_jax.models.attention import Attention, choose_kernel
from alol_jax.models.config import ModelConfig
from alol_jax.models.nf4 import NF4
from alol_jax.models.presets import PRESETS
from alol_jax.models.transformer import Transformer
from alol_jax.text.packing import GridShape, Layout, to_grid
from alol_jax.training import flops
from alol_jax.types import Batch, Params, Targets, Work

CHUNK = 4096  # config.model.logprob_chunk
OPTIMIZER = types.SimpleNamespace(  # configs.common.optimizer
    learning_rate=1e-4,
    schedule="cosine",
    warmup=0,
    b1=0.9,
    b2=0.999,
    epsilon=1e-8,
    weight_decay=0.0,
    max_grad_norm=1.0,
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        preset: a key of `PRESETS`.
        rank: of LoRA on all linear maps, as in configs/hha.py; 0 trains every weight.
        nf4: of the base, or None.
        dropout: of the adapters.
        remat: what of a block the backward pass computes again.
        attention: what ``config.model.attention`` would say.
        dtype: of activations and of the frozen base.
    """

    preset: str
    rank: int = 64
    nf4: NF4 | None = None
    dropout: float = 0.05
    remat: str = "full"
    attention: str = "auto"
    dtype: str = "bfloat16"

    def open(self, tiny: bool, widths: tuple[int, ...]) -> tuple[Transformer, str]:
        """The model's functions for sequences of ``widths``, and which kernel was chosen, why."""
        config = PRESETS[self.preset]
        config = shrunk(config) if tiny else config
        kernel, said = kernel_here(
            self.attention, self.dtype, config.head_width, widths, config.attention.cap
        )
        lora = make_lora(
            config, rank=self.rank, alpha=16.0, dropout=self.dropout, modules=("all-linear",)
        )
        attention, dtype = Attention(kernel, one_device()), jnp.dtype(self.dtype)
        return Transformer(config, lora, dtype, self.remat, attention, self.nf4), said


def kernel_here(
    wanted: str,
    dtype: jax.typing.DTypeLike,
    head_width: int,
    widths: tuple[int, ...],
    cap: float | None = None,
) -> tuple[str, str]:
    """`choose_kernel` on the first device."""
    device = jax.devices()[0]
    return choose_kernel(
        wanted,
        platform=device.platform,
        capability=str(getattr(device, "compute_capability", "")),
        dtype=dtype,
        head_width=head_width,
        widths=widths,
        cap=cap,
    )


def shrunk(config: ModelConfig) -> ModelConfig:
    """The same choices, small enough for a test on a CPU."""
    grouped = config.kv_heads != config.heads
    rotary = config.rotary and dataclasses.replace(config.rotary, width=32)
    return dataclasses.replace(
        config,
        vocab_size=512,
        width=128,
        layers=2,
        heads=4,
        kv_heads=2 if grouped else 4,
        head_width=32,
        mlp_width=256,
        rotary=rotary,
    )


@functools.cache
def one_device() -> Mesh:
    """The mesh of a run on one device."""
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def weights(model: Transformer) -> tuple[Params, Params]:
    """(what trains, what is frozen): random, on the device."""
    described = jax.eval_shape(model.init, jax.random.key(0))
    trains = {path for path in described if model.lora is None or is_adapter(path)}
    places = {
        path: param_sharding(path, leaf.shape, one_device()) for path, leaf in described.items()
    }

    def make(key):
        made = {}
        for number, (path, leaf) in enumerate(sorted(described.items())):
            dtype = leaf.dtype if path in trains or "/nf4_" in path else model.dtype
            made[path] = _leaf(jax.random.fold_in(key, number), path, leaf.shape, dtype)
        return made

    made = jax.jit(make, out_shardings=places)(jax.random.key(0))
    return (
        {path: leaf for path, leaf in made.items() if path in trains},
        {path: leaf for path, leaf in made.items() if path not in trains},
    )


def _leaf(key: jax.Array, path: str, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """One leaf, a layer or a few thousand rows at a time: what that needs besides stays small."""
    if len(shape) < 2:
        return _random(key, path, shape, dtype)
    pieces = shape[0] if path.startswith("layers/") else math.gcd(shape[0], 32)
    rest = (shape[0] // pieces, *shape[1:])
    keys = jax.random.split(key, pieces)
    return jax.lax.map(lambda key: _random(key, path, rest, dtype), keys).reshape(shape)


def _random(key: jax.Array, path: str, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """One leaf: N(0, 0.02²), or what its name says."""
    name = path.rsplit("/", 1)[-1]
    if dtype == jnp.uint8:
        return jax.random.bits(key, shape, jnp.uint8)
    if name == "nf4_scale" or name == "scale":
        return jnp.full(shape, 0.05 if name == "nf4_scale" else 1.0, dtype)
    if name.startswith("nf4_scale_"):
        return jnp.full(shape, 0.01 if name == "nf4_scale_scale" else 0.05, dtype)
    if name in ("bias", "lora_b"):
        return jnp.zeros(shape, dtype)
    return (0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)


class Load(NamedTuple):
    """Grids full of examples: every token of them real."""

    rows: int
    width: int  # T
    prompt: int  # tokens of each prompt
    response: int  # of each response

    def each(self, responses: int, share: bool) -> int:
        """Tokens of an example."""
        copies = 1 if share else responses
        return copies * self.prompt + responses * self.response

    def shrunk(self) -> Load:
        """For a test on a CPU."""
        return Load(2, max(self.width // 16, 64), self.prompt // 16, self.response // 16)

    def __str__(self) -> str:
        return f"{self.rows} × {self.width} ({self.prompt} + {self.response})"


def grid_shape(load: Load, responses: int, share: bool) -> GridShape:
    """The size of a grid of whole examples."""
    examples = load.width // load.each(responses, share)
    slots = examples * (1 if share else responses)
    return GridShape(load.rows, load.width, examples * responses * load.response, slots)


def full_batch(model: Transformer, load: Load, responses: int, grids: int = 1) -> Batch:
    """Random token ids in full grids; the annotations make no ratio extreme."""
    share, rng = model.attention.branches, np.random.default_rng(0)
    shape = grid_shape(load, responses, share)
    in_row = load.width // load.each(responses, share)
    count = grids * load.rows * in_row
    ids = functools.partial(rng.integers, model.config.vocab_size, dtype=np.int32)
    prompts = ids(size=(count, load.prompt))
    answers = ids(size=(count, responses, load.response))
    layout = Layout(length=load.response, share=share, pad_id=0)
    rows = [list(range(n, n + in_row)) for n in range(0, count, in_row)]
    made = tuple(
        to_grid(rows[n : n + load.rows], lambda item: (prompts[item], answers[item]), shape, layout)
        for n in range(0, len(rows), load.rows)
    )
    lead = (count,) if responses == 1 else (count, responses)
    ones, reward = np.ones((*lead, load.response), np.float32), rng.random(lead, np.float32)
    targets = Targets(ones, -5 * ones, reward, reward)
    tokens = count * load.each(responses, share)
    return Batch(
        place_rows(made, one_device()),
        place_whole(targets, one_device()),
        Work(tokens, grids * shape.tokens),
    )


def work_of(model: Transformer, params: Params, load: Load, responses: int) -> tuple[float, float]:
    """FLOPs of a step on one grid: without what is computed again, and with it."""
    share = model.attention.branches
    shape = grid_shape(load, responses, share)
    examples = load.rows * (load.width // load.each(responses, share))
    each = np.full(responses, load.response)
    pairs = flops.pairs_of(model.config, load.prompt, each, share=share)
    head = shape.rows * shape.targets
    one = flops.forward(
        params, model.config, tokens=shape.tokens, pairs=examples * float(pairs), head_tokens=head
    )
    step = functools.partial(flops.step, one, all_train=model.lora is None)
    return step(remat="none", head_again=False), step(remat=model.remat, head_again=head > CHUNK)
