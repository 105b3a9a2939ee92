"""Presets, validation, rotary wavelengths."""

import dataclasses

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.config import AttentionConfig, Local
from alol_jax.models.presets import PRESETS
from alol_jax.models.rotary import DynamicScaling, LinearScaling, Llama3Scaling, LongRope, Rotary


@pytest.mark.parametrize(
    "change, named",
    [
        ({"kv_heads": 3}, "kv_heads = 3"),
        ({"head_width": 8}, "16 rotary features in a head of 8"),
        ({"layers": 0}, "layers = 0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon = 0.0"),
        ({"biases": ("c_proj",)}, "biases of c_proj"),
        ({"logit_cap": 0.0}, "logit_cap"),
        ({"causal": False, "attention": AttentionConfig(local=Local(4))}, "earlier tokens"),
    ],
)
def test_an_impossible_shape_is_named(change, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(PRESETS["llama-tiny"], **change)


@pytest.mark.parametrize(
    "width, theta, named", [(15, 1e4, "even"), (0, 1e4, "even"), (8, 0.0, "theta")]
)
def test_impossible_rotary_positions_are_named(width, theta, named):
    with pytest.raises(UserError, match=named):
        Rotary(theta, width)


def test_rotary_frequencies_fall_from_one_by_the_base():
    found = Rotary(1e4, 8).frequencies()
    np.testing.assert_allclose(found, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)
    halved = Rotary(1e4, 8, LinearScaling(2.0)).frequencies()
    np.testing.assert_allclose(halved, found / 2, rtol=1e-6)


def test_llama3_scaling_keeps_short_wavelengths_and_stretches_long_ones():
    """Of wavelengths 2π, 20π, 200π, 2000π, with 1 and 4 turns in 256 positions as the limits."""
    plain = Rotary(1e4, 8).frequencies()
    scaled = Rotary(1e4, 8, Llama3Scaling(8.0, 1.0, 4.0, 256)).frequencies()
    np.testing.assert_allclose(scaled[[0, 1]], plain[[0, 1]], rtol=1e-6)
    np.testing.assert_allclose(scaled[[2, 3]], plain[[2, 3]] / 8, rtol=1e-6)
    between = Rotary(1e4, 8, Llama3Scaling(8.0, 1.0, 9.0, 256)).frequencies()[1]
    assert plain[1] / 8 < between < plain[1]


@pytest.mark.parametrize(
    "scaling, length, longest, as_long",
    [
        (None, 100, 1024, False),
        (LinearScaling(4.0), 100, 1024, False),
        (LongRope((1.0,) * 4, (2.0,) * 4, 256), 100, 256, False),
        (LongRope((1.0,) * 4, (2.0,) * 4, 256), 300, 1024, True),
        (DynamicScaling(2.0, 1024), 100, 1024, False),
        (DynamicScaling(2.0, 1024), 1500, 1500, True),
    ],
)
def test_no_text_may_be_longer_than_the_scaling_of_the_run_is_for(
    scaling, length, longest, as_long
):
    rotary = Rotary(1e4, 8, scaling)
    config = dataclasses.replace(PRESETS["llama-tiny"], rotary=rotary).for_texts(length)
    assert config.longest_alike == longest and config.reads_short_texts_as_long == as_long
    if config.rotary.length and not as_long:  # all texts up to there are read as the run's
        other = config.for_texts(longest)
        np.testing.assert_array_equal(other.rotary.frequencies(), config.rotary.frequencies())
