"""Rotary position embeddings, and the ways to stretch them to longer texts.

A head's features i and W/2 + i turn by the angle position · f_i, f_i = θ^(−2i/W) (Su et al. 2021).
A scaling changes the frequencies f; some also multiply cosine and sine by a magnitude.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.errors import UserError


class Scaling(Protocol):
    """A change of the frequencies; ``magnitude`` multiplies cosine and sine."""

    @property
    def magnitude(self) -> float: ...

    def __call__(self, frequency: np.ndarray, rotary: Rotary) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by ``factor`` (position interpolation, arXiv 2306.15595)."""

    factor: float
    magnitude = 1.0

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise UserError(f"model: rotary scaling by factor {self.factor} must be above 0")

    def __call__(self, frequency: np.ndarray, rotary: Rotary) -> np.ndarray:
        return frequency / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The rotary scaling of Llama 3.1.

    Wavelengths longer than ``original / low`` positions are stretched by ``factor``, those shorter
    than ``original / high`` are kept, and those between are interpolated.
    """

    factor: float
    low: float
    high: float
    original: int  # number of positions in pre-training
    magnitude = 1.0

    def __post_init__(self) -> None:
        if not (self.factor > 0 and 0 < self.low < self.high and self.original > 0):
            raise UserError(f"model: {self} needs positive numbers and low < high")

    def __call__(self, frequency: np.ndarray, rotary: Rotary) -> np.ndarray:
        turns = self.original * frequency / (2 * np.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return share * frequency + (1 - share) * frequency / self.factor


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """Base that grows with the text beyond ``original`` positions ("dynamic NTK").

    θ' = θ · (factor · length / original − factor + 1)^(W/(W−2)), with the length of the run's
    longest text, so that all texts of a run are read alike. Up to ``original`` it changes nothing.
    """

    factor: float
    original: int
    magnitude = 1.0

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and self.original > 0):
            raise UserError(f"model: {self} needs a factor of 1 or more and positions")

    def __call__(self, frequency: np.ndarray, rotary: Rotary) -> np.ndarray:
        length = max(rotary.length, self.original)
        growth = self.factor * length / self.original - self.factor + 1
        steps = np.arange(len(frequency)) / max(len(frequency) - 1, 1)
        return frequency * growth**-steps


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071).

    Features that turn more than ``fast`` times in ``original`` positions are kept, those that turn
    less than ``slow`` times are stretched by ``factor``, and those between are interpolated along
    their index. ``whole`` rounds the two indices outwards.
    """

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    whole: bool = True
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        if not (self.factor > 0 and self.original > 0 and self.fast > self.slow > 0):
            raise UserError(f"model: {self} needs positive numbers and slow < fast")

    def __call__(self, frequency: np.ndarray, rotary: Rotary) -> np.ndarray:
        low, high = (self._index(turns, rotary) for turns in (self.fast, self.slow))
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary.width - 1)
        ramp = (np.arange(len(frequency)) - low) / (high - low or 0.001)
        share = np.clip(ramp, 0.0, 1.0)
        return (1 - share) * frequency + share * frequency / self.factor

    def _index(self, turns: float, rotary: Rotary) -> float:
        """Return the (fractional) feature that turns so often in ``original`` positions."""
        ratio = self.original / (turns * 2 * math.pi)
        return rotary.width * math.log(ratio) / (2 * math.log(rotary.theta))


@dataclasses.dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): a divisor for every frequency.

    ``long`` ones where the run's longest text has more than ``original`` tokens, else ``short``
    ones, so that all texts of a run are read alike.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    magnitude: float = 1.0

    def __call__(self, frequency: np.ndarray, rotary: Rotary) -> np.ndarray:
        divisors = self.long if rotary.length > self.original else self.short
        if len(divisors) != len(frequency) or not min(divisors) > 0:
            raise UserError(
                f"model: longrope needs {len(frequency)} positive factors for {rotary.width} "
                f"rotary features, found {len(divisors)}"
            )
        return frequency / np.array(divisors)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary embeddings (halves layout) of the first ``width`` features of a head.

    Raises:
      UserError: ``width`` is odd or not positive, ``theta`` is not positive, or the scaling does
        not fit the width.
    """

    theta: float  # base of the wavelengths
    width: int  # rotated features of a head; the others are left unchanged
    scaling: Scaling | None = None
    length: int = 0  # tokens of the longest text, for scalings that depend on it

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise UserError(f"model: rotary embeddings need an even head_width, not {self.width}")
        if not self.theta > 0:
            raise UserError(f"model: rotary theta = {self.theta} must be positive")
        self.frequencies()

    def frequencies(self) -> np.ndarray:
        """f32[width / 2], radians per position."""
        exponent = np.arange(0, self.width, 2, dtype=np.float64) / self.width
        plain = self.theta**-exponent
        return np.float32(plain if self.scaling is None else self.scaling(plain, self))

    @property
    def magnitude(self) -> float:
        """What multiplies cosine and sine."""
        return 1.0 if self.scaling is None else self.scaling.magnitude


def apply_rotary(
    x: jax.Array, positions: jax.Array, frequency: jax.Array, magnitude: jax.Array | float
) -> jax.Array:
    """Rotate the first W features of each head.

    Args:
        x: [B, T, N, H].
        positions: i32[B, T].
        frequency: f32[W/2], see `Rotary.frequencies`.
        magnitude: f32[], see `Rotary.magnitude`.
    """
    width = 2 * frequency.shape[0]
    rotary_part = x[..., :width].astype(jnp.float32)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None, :]
    cos, sin = magnitude * jnp.cos(angle), magnitude * jnp.sin(angle)
    first, second = jnp.split(rotary_part, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., width:]], axis=-1)
