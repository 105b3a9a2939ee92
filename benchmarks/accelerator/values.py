"""Whether a whole small model computes on this device what it computes plainly, in float32.

Four layers of Llama's choices with padded prompts: log-probabilities, the gradient of a_lol in the
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
from alol_jax.decoding.sampling import Sampling
from alol_jax.models.adapters import make_lora
from alol_jax.models.attention import Attention
from alol_jax.models.config import PRESETS
from alol_jax.models.nf4 import NF4
from alol_jax.models.transformer import Transformer
from alol_jax.objectives.losses import a_lol
from alol_jax.training.fit import policy_loss
from alol_jax.types import Batch, Params, Tokens
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


def _batch(rows: int, prompt: int, response: int, vocabulary: int) -> Batch:
    rng = np.random.default_rng(0)
    prompt_mask, mask = np.ones((rows, prompt), np.float32), np.ones((rows, response), np.float32)
    for row in range(rows):
        prompt_mask[row, : row * prompt // rows] = 0
        mask[row, response - row * response // (2 * rows) :] = 0
    ids = rng.integers(vocabulary, size=(rows, prompt), dtype=np.int32)
    answer = rng.integers(vocabulary, size=(rows, response), dtype=np.int32)
    tokens = Tokens(ids, prompt_mask, answer, mask)
    # So unlikely under the reference that every ratio is clipped: the loss has no kink nearby.
    column = np.ones(rows, np.float32)
    return jax.tree.map(jnp.asarray, Batch(tokens, -20.0 * mask, column, column))


def _trained(model: Transformer) -> Row:
    """Errors of log-probabilities (nats) and of the gradient (its distance over its length)."""
    prompt, response = 128, 128
    batch = _batch(4, prompt, response, model.config.vocab_size)
    trained, frozen = _parameters(model)

    def both(model):
        loss = policy_loss(model, functools.partial(a_lol, clip=0.9), chunk=CHUNK)
        fn = jax.value_and_grad(loss, has_aux=True)
        (_, (_, metrics)), grads = jax.jit(fn)(trained, frozen, batch, jax.random.key(0))
        return float(metrics["logp_per_token"]), jax.device_get(grads)

    fast, said = _fast(model, prompt + response)
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
    rows, prompt, new = 4, 64, 32
    batch = _batch(rows, prompt, new, model.config.vocab_size)
    ours, frozen = _parameters(model)
    params = {**frozen, **ours}
    decoder = make_decoder(model, Sampling(max_new_tokens=new))
    keys = jax.random.split(jax.random.key(0), rows)
    with jax.default_matmul_precision("highest"):
        ids, _ = decoder(params, batch.tokens.prompt, batch.tokens.prompt_mask, keys)
        ones = jnp.ones(ids.shape, jnp.float32)
        read = jnp.concatenate([batch.tokens.prompt, ids], axis=1)
        mask = jnp.concatenate([batch.tokens.prompt_mask, ones], axis=1)
        hidden = jax.jit(model.hidden)(params, read, mask)[:, prompt - 1 : -1]
        likeliest = jnp.argmax(hidden @ model.unembedding(params), axis=-1)
    off = float(jnp.mean(likeliest != ids))
    return {"error": off, "note": "WRONG TOKENS" if off > 0 else "tokens of a teacher-forced pass"}
