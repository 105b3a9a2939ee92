"""Measure the peak host memory of loading a checkpoint, compared with its parameters.

    python -m benchmarks.load_memory --gigabytes=1

Writes a Llama of about this size in bfloat16 to a temporary folder, then loads it in fresh
processes, unquantised and as NF4, and prints each process's peak resident memory. On a CPU the
parameters are in host memory too, so the peak includes them once; anything beyond is overhead.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.hf_config import to_hf
from alol_jax.models.language_model import QUANTISATIONS
from alol_jax.models.presets import PRESETS

GIGABYTES = flags.DEFINE_float("gigabytes", 1.0, "Size of the checkpoint.")
READ = flags.DEFINE_string("read", "", "Internal: load this folder and print results as JSON.")
QUANTISATION = flags.DEFINE_string("quantisation", "none", "Internal: how to load it.")
MIB = 2**20


def write(folder: Path, gigabytes: float) -> None:
    """Write a Llama of TinyLlama's width, as deep as the size allows; all weights are 0.01."""
    c = PRESETS["tinyllama-1.1b"]
    shapes = {f"self_attn.{n}_proj": (c.width, c.width) for n in "qo"}
    shapes |= {f"self_attn.{n}_proj": (c.kv_heads * c.head_width, c.width) for n in "kv"}
    shapes |= {f"mlp.{n}_proj": (c.mlp_width, c.width) for n in ("gate", "up")}
    shapes |= {"mlp.down_proj": (c.width, c.mlp_width)}
    shapes |= {f"{n}_layernorm": (c.width,) for n in ("input", "post_attention")}
    layer_bytes = 2 * sum(np.prod(shape) for shape in shapes.values())
    rest = 4 * c.vocab_size * c.width
    layers = max(1, round((gigabytes * 1e9 - rest) / layer_bytes))
    fields = to_hf(c) | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(fields))
    named = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(layers)
        for name, shape in shapes.items()
    }
    named |= {n: (c.vocab_size, c.width) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    named["model.norm.weight"] = (c.width,)
    filled = {n: np.full(shape, 0.01, ml_dtypes.bfloat16) for n, shape in named.items()}
    save_file(filled, folder / "model.safetensors")


def resident(field: str) -> float:
    """Resident memory of this process in MiB: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def read(folder: str, quantisation: str) -> dict[str, float]:
    """Load the checkpoint and return MiB and seconds."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpoint = open_checkpoint(folder)
    before, start = resident("VmRSS"), time.perf_counter()
    load = checkpoint.load("bfloat16", lambda path, shape: sharding, QUANTISATIONS[quantisation])
    params = jax.block_until_ready(load)
    return {
        "parameters": sum(leaf.nbytes for leaf in params.values()) / MIB,
        "largest tensor": max(np.prod(s) for s in checkpoint.weights.shapes.values()) * 2 / MIB,
        "peak": resident("VmHWM") - before,
        "seconds": time.perf_counter() - start,
    }


def main(_):
    if READ.value:
        print(json.dumps(read(READ.value, QUANTISATION.value)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), GIGABYTES.value)
        for quantisation in QUANTISATIONS:
            arguments = [f"--read={folder}", f"--quantisation={quantisation}"]
            program = [sys.executable, "-m", "benchmarks.load_memory", *arguments]
            output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
            found = json.loads(output)
            print(
                f"{quantisation:10}",
                *(f"{k} {v:.0f}{'' if k == 'seconds' else ' MiB'}" for k, v in found.items()),
                sep="  ",
            )


if __name__ == "__main__":
    app.run(main)
