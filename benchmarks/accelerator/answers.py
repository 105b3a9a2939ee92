"""What decoding costs: the decoder of `decoding.decode`, 32 prompts of 128 tokens, 128 new ones.

    tokens per second = prompts · new tokens / median seconds, reading the prompts included

No token ends a response, so every row writes all its tokens, greedily. Writing one token for every
row reads each weight once: the least time for it is the weights' bytes over the memory's bandwidth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from alol_jax.decoding.decode import make_decoder, respond
from alol_jax.decoding.prompts import one_per_row
from alol_jax.decoding.sampling import Sampling
from alol_jax.devices.sharding import place_rows
from alol_jax.models.grid_sizes import platform_of
from alol_jax.models.kernels import KERNELS
from alol_jax.models.transformer import Transformer
from alol_jax.text.tokens import Batching
from alol_jax.types import Params, Watch
from benchmarks.accelerator.measuring import (
    Row,
    Tell,
    analysed_bytes,
    attempt,
    compiled,
    median_of,
    sheet,
)
from benchmarks.accelerator.steps import ONE_B, SEVEN_B
from benchmarks.accelerator.subjects import Subject, one_device, weights

ROWS, PROMPT, NEW = 32, 128, 128


def sizes(tiny: bool) -> tuple[int, int, int]:
    """Prompts, their length, new tokens of each."""
    return (2, 16, 8) if tiny else (ROWS, PROMPT, NEW)


def one_b(tell: Tell, tiny: bool) -> None:
    """Llama-3.2-1B with its adapters, bfloat16."""
    _told(tell, ONE_B, tiny, read_alone=True)


def seven_b(tell: Tell, tiny: bool) -> None:
    """Llama-7B in NF4 with its adapters."""
    _told(tell, SEVEN_B, tiny, read_alone=False)


def refilled(tell: Tell, tiny: bool) -> None:
    """Llama-3.2-1B: 96 prompts of 32 to 128 tokens, sampled answers of 48 tokens on average.

    Every 48th token ends an answer, and random weights choose nearly evenly. In 32 slots that are
    refilled, then in whole batches, each of which waits for its longest answer.
    """
    slots, longest, new = sizes(tiny)
    model, said = ONE_B.open(tiny, (longest,))
    trained, frozen = weights(model)
    params, vocabulary = {**frozen, **trained}, model.config.vocab_size
    sampling = Sampling(new, temperature=1.0, end=tuple(range(0, vocabulary, 48)))
    rng = np.random.default_rng(0)
    lengths = rng.integers(longest // 4, longest + 1, 3 * slots)
    prompts = [rng.integers(vocabulary, size=n, dtype=np.int32) for n in lengths]
    multiple = max(KERNELS[model.attention.kernel].multiple, 8)
    mesh = one_device()
    doubling = platform_of(mesh).doubling
    batching = Batching((longest,), slots, 0, mesh, multiple, doubling=doubling)
    lines: list[str] = []

    def in_slots() -> int:
        watch, key = Watch("answers", lines.append), jax.random.key(0)
        found = respond(model, params, prompts, sampling, batching=batching, key=key, watch=watch)
        return sum(map(len, found))

    def in_batches() -> int:
        decoder, tokens = make_decoder(model, sampling), 0
        for first in range(0, len(prompts), slots):
            read = one_per_row(prompts[first : first + slots], longest, 0)
            keys = jax.random.split(jax.random.key(first), slots)
            tokens += int(decoder(params, place_rows(read, one_device()), keys)[1].sum())
        return tokens

    for name, run in (("refilled slots", in_slots), ("whole batches", in_batches)):
        what = f"decoding, {ONE_B.preset}, {len(prompts)} answers that end, {name}"
        note = (lambda: lines[-1].split(", ")[-1]) if run is in_slots else (lambda: said)
        attempt(tell, what, functools.partial(_timed, run, note))


def _timed(run: Callable[[], int], note: Callable[[], str]) -> Row:
    tokens = run()  # compiles
    seconds = median_of(run, most=3, seconds=6.0)
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "note": note()}


def _told(tell: Tell, subject: Subject, tiny: bool, *, read_alone: bool) -> None:
    rows, prompt, new = sizes(tiny)
    quantised = ", NF4" if subject.nf4 else ""
    try:
        model, said = subject.open(tiny, (prompt,))
        trained, frozen = weights(model)
    except Exception as error:
        tell({"what": f"decoding, {subject.preset}", "failed": f"{error}"[:300]})
        return
    params = {**frozen, **trained}
    for count in (1, new) if read_alone else (new,):
        kind = "reading the prompts and one token" if count == 1 else f"{count} tokens"
        what = f"decoding, {subject.preset}{quantised}, {rows} × {prompt}, {kind}"
        attempt(tell, what, functools.partial(_row, model, params, (rows, prompt, count), said))


def _row(model: Transformer, params: Params, size: tuple[int, int, int], said: str) -> Row:
    rows, prompt, new = size
    rng = np.random.default_rng(0)
    ids = rng.integers(model.config.vocab_size, size=(rows, prompt), dtype=np.int32)
    read = place_rows(one_per_row(ids, prompt, 0), one_device())
    decoder = make_decoder(model, Sampling(max_new_tokens=new))
    arguments = (params, read, jax.random.split(jax.random.key(0), rows))
    call, compiling = compiled(decoder, *arguments)
    written, lengths = call(*arguments)
    if int(lengths.min()) != new:
        raise ValueError(f"a row ended after {int(lengths.min())} of {new} tokens")
    seconds = median_of(lambda: call(*arguments), most=5, seconds=4.0)
    row = {
        "seconds": seconds,
        "compile_seconds": compiling,
        "tokens_per_second": rows * new / seconds,
        "analysed_bytes": analysed_bytes(call),
        "note": said,
    }
    if sheet() is not None and new > 1:
        least = _read_bytes(model, params) * new / sheet().bandwidth
        row["bandwidth_share"] = least / seconds
        row["note"] = f"weights read at {least / seconds:.0%} of the bandwidth; {said}"
    return row


def _read_bytes(model: Transformer, params: Params) -> int:
    """Bytes of the weights that every token reads; of an untied embedding it reads a row."""
    tied = model.config.tied_embeddings
    return sum(x.nbytes for path, x in params.items() if tied or path != "embed/embedding")
