"""Directories of kernels in 4 bits, in the form in which bitsandbytes stores them."""

import json

import numpy as np

from alol_jax.models.nf4 import LEVELS, NF4, dynamic_map, quantise
from tests.models.tiny_llama import CONFIG, write_directory

FIELD = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
}


def parts_of(weight, *, double):
    """The tensors of a kernel [out, in], by what follows its name."""
    leaves = {k: np.asarray(x) for k, x in quantise(weight.T, nf4=NF4(double)).items()}
    halves = leaves["nf4_codes"].reshape(-1, 32, weight.shape[0])
    codes = np.stack([halves & 15, halves >> 4], axis=1).reshape(weight.T.shape).T.reshape(-1, 2)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": weight.shape}
    found = {
        "": (codes[:, :1] << 4 | codes[:, 1:]),
        ".quant_map": np.array(LEVELS, np.float32),
        ".absmax": leaves["nf4_scale_codes" if double else "nf4_scale"].T.reshape(-1),
    }
    if double:
        found[".nested_absmax"] = leaves["nf4_scale_scale"]
        found[".nested_quant_map"] = dynamic_map()
        offset = float(leaves["nf4_scale_mean"])
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    text = json.dumps(state).encode()
    found[".quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
    return {part: np.ascontiguousarray(x) for part, x in found.items()}


def write_nf4(folder, weights, *, double, keep=lambda name: True, config=CONFIG, **field):
    """Write a directory whose layers' kernels are in NF4, if ``keep`` says so."""
    stored = {}
    for name, weight in weights.items():
        if name.endswith("_proj.weight") and keep(name):
            for part, tensor in parts_of(weight, double=double).items():
                stored[name + part] = tensor
        else:
            stored[name] = weight
    described = FIELD | {"bnb_4bit_use_double_quant": double} | field
    return write_directory(folder, stored, config | {"quantization_config": described})
