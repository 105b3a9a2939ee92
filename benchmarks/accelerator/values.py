"""Whether a whole small model computes on this device what it computes plainly, in float32.

Four layers of Llama's choices: log-probabilities, the gradient of a_lol in the
adapters, and greedy decoding, whose tokens must be those that a teacher-forced pass finds likeliest
(in float32: bfloat16 may change which of two close candidates wins).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.decoding.decode import make_decoder
from alol_jax.decoding.prompts import in_columns, one_per_row
from alol_jax.decoding.sampling import Sampling
from alol_jax.models.adapters import make_lora
from alol_jax.models.attention import Attention
from alol_jax.models.nf4 import NF4
from alol_jax.models.presets import PRESETS
from alol_jax.models.transformer import Transformer
from alol_jax.objectives.logprobs import logits_of
from alol_jax.objectives.losses import a_lol
from alol_jax.text.packing import GridShape, Layout, lengths_of, pack, to_grid
from alol_jax.training.fit import policy_forward
from alol_jax.types import Batch, Params, Targets, Work
from benchmarks.accelerator.kernels import WRONG
from benchmarks.accelerator.measuring import Row, Tell, attempt
from benchmarks.accelerator.subjects import CHUNK, kernel_here, one_device


def run(tell: Tell, tiny: bool) -> None:
    """bfloat16 and the platform's kernel against float32 and plain XLA, with and without NF4."""
    for nf4 in (None, NF4(double=True)):
        name = f"whole model{', NF4' if nf4 else ''}"
        attempt(tell, name, functools.partial(_trained, _plain(tiny, nf4)))
    attempt(tell, "greedy decoding", functools.partial(_decoded, _plain(tiny, None)))


def _plain(tiny: bool, nf4: NF4 | None) -> Transformer:
    """The model in float32 with plain attention."""
    config = dataclasses.replace(
        PRESETS["llama-3.2-1b"],
        layers=2 if tiny else 4,
        width=256,
        heads=4,
        kv_heads=2,
        mlp_width=512,
        vocab_size=1024,
    )
    lora = make_lora(config, rank=8, alpha=16.0, dropout=0.0, modules=("all-linear",))
    return Transformer(config, lora, jnp.dtype("float32"), "full", nf4=nf4)


def _fast(model: Transformer, width: int) -> tuple[Transformer, str]:
    """The same as a run on this device would open it."""
    kernel, said = kernel_here("auto", jnp.bfloat16, model.config.head_width, (width,))
    attention = Attention(kernel, one_device())
    return dataclasses.replace(model, dtype=jnp.dtype("bfloat16"), attention=attention), said


def _parameters(model: Transformer) -> tuple[Params, Params]:
    """(adapters with both factors random, frozen)."""
    params = jax.jit(model.init)(jax.random.key(0))
    ours = {p: x for p, x in params.items() if "/lora_" in p}
    for number, path in enumerate(sorted(ours)):
        key = jax.random.fold_in(jax.random.key(1), number)
        ours[path] = 0.1 * jax.random.normal(key, ours[path].shape)
    return ours, {p: x for p, x in params.items() if p not in ours}


def _batch(model: Transformer, lengths: list[tuple[int, int]], width: int) -> Batch:
    """Examples of these lengths (prompt, response) in rows of ``width`` tokens."""
    rng, share = np.random.default_rng(0), model.attention.branches
    ids = functools.partial(rng.integers, model.config.vocab_size, dtype=np.int32)
    examples = [(ids(size=prompt), (ids(size=response),)) for prompt, response in lengths]
    prompts, responses = (np.array(column) for column in zip(*lengths, strict=True))
    counted = lengths_of(prompts, responses[:, None], share=share)
    rows = pack(counted, GridShape(0, width, width, len(lengths)))
    shape = GridShape(len(rows), width, width, len(lengths))
    longest = int(responses.max())
    grid = to_grid(rows, examples.__getitem__, shape, Layout(longest, share, 0))
    mask = (np.arange(longest) < responses[:, None]).astype(np.float32)
    column = np.ones(len(lengths), np.float32)
    # So unlikely under the reference that every ratio is clipped: the loss has no kink nearby.
    targets = Targets(mask, -20.0 * mask, column, column)
    return jax.tree.map(jnp.asarray, Batch((grid,), targets, Work()))


def _trained(model: Transformer) -> Row:
    """Errors of log-probabilities (nats) and of the gradient (its distance over its length)."""
    width = 256
    batch = _batch(model, [(100, 60), (40, 30), (128, 100), (64, 64), (90, 128)], width)
    trained, frozen = _parameters(model)

    def both(model):
        forward = policy_forward(model, chunk=CHUNK, branches=False)

        def loss(trained):
            logp = forward(trained, frozen, batch.grids[0], batch.targets, jax.random.key(0))
            return a_lol(logp, batch.targets, clip=0.9)

        (_, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
        return float(metrics["logp_per_token"]), jax.device_get(grads)

    fast, said = _fast(model, width)
    with jax.default_matmul_precision("highest"):
        right = both(model)
    found = both(fast)
    far = _distance(found[1], right[1])
    wrong = abs(found[0] - right[0]) > WRONG or far > 0.2
    row = {"error": abs(found[0] - right[0]), "gradient_error": far, "note": said}
    return row | ({"note": f"WRONG VALUES, {said}"} if wrong else {})


def _distance(found: Params, right: Params) -> float:
    """‖found − right‖ / ‖right‖ over all leaves."""
    apart = sum(np.sum((np.float64(found[path]) - leaf) ** 2) for path, leaf in right.items())
    return float(np.sqrt(apart / sum(np.sum(np.float64(leaf) ** 2) for leaf in right.values())))


def _decoded(model: Transformer) -> Row:
    """The share of tokens that are not the likeliest of a teacher-forced pass."""
    lengths, width, new = [64, 48, 32, 16], 64, 32
    rng = np.random.default_rng(0)
    written = [rng.integers(model.config.vocab_size, size=n, dtype=np.int32) for n in lengths]
    prompts = one_per_row(written, width, 0)
    read, mask = in_columns(prompts)
    ours, frozen = _parameters(model)
    params = {**frozen, **ours}
    decoder = make_decoder(model, Sampling(max_new_tokens=new))
    with jax.default_matmul_precision("highest"):
        ids, _ = decoder(params, prompts, jax.random.split(jax.random.key(0), len(lengths)))
        read = jnp.concatenate([read, ids], axis=1)
        mask = jnp.concatenate([mask, jnp.ones(ids.shape, bool)], axis=1)
        hidden = jax.jit(model.hidden)(params, read, mask)[:, width - 1 : -1]
        likeliest = jnp.argmax(logits_of(hidden, model.unembedding(params)), axis=-1)
    off = float(jnp.mean(likeliest != ids))
    return {"error": off, "note": "WRONG TOKENS" if off > 0 else "tokens of a teacher-forced pass"}
