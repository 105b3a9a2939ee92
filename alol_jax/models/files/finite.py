"""A check of stored weights: NaN and infinity are errors that name the tensor and its file."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from alol_jax.errors import UserError

PIECE = 2**18  # numbers that are looked at together, so that they stay in the processor's cache

# dtype -> whole numbers of its size, and the bits of the exponent, which are all set in NaN and
# infinity only
_EXPONENTS = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(jnp.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F80_0000),
    np.dtype(np.float64): (np.uint64, 0x7FF0_0000_0000_0000),
}


def count_not_finite(values: np.ndarray) -> int:
    """Return how many numbers of an array are NaN or infinite, in one pass without a copy."""
    if values.dtype.kind == "u":  # codes of 4-bit kernels
        return 0
    whole, exponent = _EXPONENTS[values.dtype]
    bits, mask = np.ascontiguousarray(values).reshape(-1).view(whole), whole(exponent)
    pieces = (bits[start : start + PIECE] for start in range(0, bits.size, PIECE))
    return sum(int(np.count_nonzero((piece & mask) == mask)) for piece in pieces)


def check_finite(file: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return the stored tensor ``values``.

    Raises:
        UserError: a number is NaN or infinite.
    """
    bad = count_not_finite(values)
    if bad:
        raise UserError(
            f"{file}: {name} has {bad} of {values.size} numbers that are NaN or infinite: download "
            "the file again; if they stay, its training diverged: choose another checkpoint"
        )
    return values
