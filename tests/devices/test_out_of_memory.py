"""What allocators and compilers say becomes one line that says what to lower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.devices import out_of_memory
from alol_jax.devices.out_of_memory import (
    SAVINGS,
    OutOfMemory,
    Program,
    bytes_asked,
    is_out_of_memory,
    watching_memory,
)
from alol_jax.errors import UserError

GIB = 2**30
TOO_MUCH = 2**47  # bytes, more than a process can address
SAID = {
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.": 16 * GIB,
    "RESOURCE_EXHAUSTED: Out of memory allocating 1048576 bytes.": 2**20,
    "RESOURCE_EXHAUSTED: Error loading program: Attempting to allocate 16.00G. That was not "
    "possible. There are 10.20G free.; (0x0x0_HBM0)": 16 * GIB,
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. "
    "Exceeded hbm capacity by 2.75G.": 18.5 * GIB,
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (185.28G) exceeds available HBM (15.75G). HLO module: f.": (
        185.28 * GIB
    ),
    "Unable to allocate 8.00 TiB for an array with shape (8192, 2, 3)": 8 * 2**40,
    "std::bad_alloc": None,
    "": None,
}


@pytest.mark.parametrize("message", SAID)
def test_the_bytes_that_were_asked_are_read(message):
    assert bytes_asked(message) == (None if SAID[message] is None else pytest.approx(SAID[message]))


@pytest.mark.parametrize(
    "message", ["INTERNAL: something else", "INVALID_ARGUMENT: 3 buffers", "DEADLINE_EXCEEDED"]
)
def test_other_errors_pass_as_they_are(message):
    assert not is_out_of_memory(jax.errors.JaxRuntimeError(message))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message[:8]):
        with watching_memory(Program("x")):
            raise jax.errors.JaxRuntimeError(message)


def test_the_line_names_program_grid_sizes_and_what_to_lower():
    message = next(said for said in SAID if "There are" in said)
    with pytest.raises(OutOfMemory) as error:
        with watching_memory(Program("a step", 8, 1024, ("this", "that"))):
            raise jax.errors.JaxRuntimeError(message)
    assert isinstance(error.value, UserError)
    assert str(error.value) == (
        "out of memory in a step, on a grid of 8 × 1024 tokens (16 GiB asked, 10.2 GiB free): "
        "lower, in this order, this; that; then run the same command again: what is done stays"
    )


def test_what_the_devices_have_left_is_said_where_they_tell(monkeypatch):
    class Device:
        def __init__(self, limit, used):
            self.stats = {"bytes_limit": limit, "bytes_in_use": used}

        def memory_stats(self):
            return self.stats

    devices = [Device(16 * GIB, 2 * GIB), Device(16 * GIB, 13 * GIB)]
    monkeypatch.setattr(out_of_memory.jax, "local_devices", lambda: devices)
    line = str(OutOfMemory(Program("x"), "RESOURCE_EXHAUSTED: allocating 512 bytes."))
    assert "out of memory in x (512 B asked, 3 GiB free): " in line
    devices.append(type("Cpu", (), {"memory_stats": lambda self: None})())
    assert "free" not in str(OutOfMemory(Program("x"), ""))


def test_without_figures_the_whole_order_is_named():
    line = str(OutOfMemory(Program("the stage score"), "std::bad_alloc"))
    assert line.startswith("out of memory in the stage score: lower, in this order, ")
    assert "; ".join(SAVINGS.values()) in line


def test_the_innermost_program_is_named():
    with pytest.raises(OutOfMemory, match="in the inner one") as error:
        with watching_memory(Program("the outer one")), watching_memory(Program("the inner one")):
            raise MemoryError
    assert error.value.program.name == "the inner one"


def test_a_real_allocation_on_the_device_is_caught():
    fill = jax.jit(lambda: jnp.zeros(TOO_MUCH, jnp.int8))
    with pytest.raises(OutOfMemory, match=r"\(128 TiB asked\): lower"):
        with watching_memory(Program("a program of the device")):
            jax.block_until_ready(fill())


def test_a_real_allocation_on_the_host_is_caught():
    with pytest.raises(OutOfMemory, match=r"\(128 TiB asked\): lower"):
        with watching_memory(Program("an array of the host")):
            np.ones(TOO_MUCH, np.int8)
