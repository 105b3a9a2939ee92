"""Hostile pickles in the place of a state dict: all are refused, and none is run."""

import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.files.torch_pickle import read_pickle
from alol_jax.models.files.torch_reader import TorchFile
from tests.models.files import torch_files as w

X = np.arange(3, dtype=np.float32)
PLAIN = w.tensor("0", X)


class Call:
    """Something that a pickle calls when it is loaded."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def touch(trace):
    return f"touch {trace}"


def make(trace):
    return f"__import__('os').mkdir({str(trace)!r})"


# What runs code if Python's own loader reads it: name -> (trace -> instructions).
LIVE = {
    "os.system": lambda trace: w.called(w.named("os", "system"), w.text(touch(trace))),
    "posix.system": lambda trace: w.called(w.named("posix", "system"), w.text(touch(trace))),
    "builtins.eval": lambda trace: w.called(w.named("builtins", "eval"), w.text(make(trace))),
    "__builtin__.eval": lambda trace: w.called(w.named("__builtin__", "eval"), w.text(make(trace))),
    "builtins.getattr": lambda trace: w.called(
        w.called(
            w.named("builtins", "getattr"),
            w.called(w.named("builtins", "__import__"), w.text("os")),
            w.text("system"),
        ),
        w.text(touch(trace)),
    ),
    "os.path.os.system": lambda trace: (
        (b"\x80\x04" + w.text("os") + w.text("path.os.system") + b"\x93")
        + w.row(w.text(touch(trace)))
        + b"R"
    ),
    "INST": lambda trace: b"(" + w.text(touch(trace)) + b"ios\nsystem\n",
    "OBJ": lambda trace: b"(" + w.named("os", "system") + w.text(touch(trace)) + b"o",
}
# The same where torch is installed.
LIVE_IN_TORCH = {
    "nested": lambda trace: w.mapping(
        {
            "x": PLAIN,
            "y": w.called(
                w.named("torch._utils", "_rebuild_parameter"),
                w.called(w.named("os", "system"), w.text(touch(trace))),
                w.FALSE,
                w.ORDERED,
            ),
        }
    ),
    "torch.hub.load": lambda trace: w.called(
        w.named("torch.hub", "load"), w.text(str(trace)), w.text("x")
    ),
    "torch.load": lambda trace: w.called(w.named("torch", "load"), w.text(str(trace))),
    "torch.storage._load_from_bytes": lambda trace: w.called(
        w.named("torch.storage", "_load_from_bytes"), w.text(touch(trace))
    ),
}
DEAD = {
    "numpy": w.called(
        w.named("numpy.core.multiarray", "_reconstruct"), w.named("numpy", "ndarray")
    ),
    "copyreg": w.called(
        w.named("copyreg", "_reconstructor"), w.named("builtins", "object"), w.NONE
    ),
    "UntypedStorage": w.named("torch.storage", "UntypedStorage"),
    "a storage that is called": w.called(w.named("torch", "FloatStorage"), w.number(2**40)),
    "a class without a module": w.named("", "OrderedDict"),
    "NEWOBJ": w.named("collections", "OrderedDict") + b")\x81",
    "NEWOBJ_EX": w.named("collections", "OrderedDict") + b")}\x92",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"P0\n",
    "NEXT_BUFFER": b"\x97",
    "BUILD on a tensor": PLAIN + w.mapping({"__setstate__": w.NONE}, b"}") + b"b",
    "BUILD on a function": w.named("torch._utils", "_rebuild_tensor")
    + w.row(w.NONE, w.mapping({"__code__": w.NONE}, b"}"))
    + b"b",
    "BUILD with slots": w.ORDERED + w.row(w.NONE, w.mapping({"__class__": w.NONE}, b"}")) + b"b",
    "an argument more": w.rebuilt(w.storage("0", "FloatStorage", 3), (3,), (1,), 0, b"}", b"}"),
    "numbers stored negated": w.rebuilt(
        w.storage("0", "FloatStorage", 3), (3,), (1,), 0, w.mapping({"neg": b"\x88"}, b"}")
    ),
    "no storage": w.rebuilt(w.text("0"), (3,), (1,)),
    "hooks": w.called(w.named("torch._utils", "_rebuild_parameter"), PLAIN, w.FALSE, w.FALSE),
    "OrderedDict of a list": w.called(w.named("collections", "OrderedDict"), b"]"),
    "a persistent id of a module": w.row(w.text("module"), w.NONE, w.NONE, w.NONE) + b"Q",
    "a storage of another class": w.row(
        *(w.text("storage"), w.named("collections", "OrderedDict"), w.text("0"), w.text("cpu")),
        w.number(3),
    )
    + b"Q",
    "a storage of negative size": w.storage("0", "FloatStorage", -1),
    "a storage of endless size": w.storage("0", "FloatStorage", 2**63),
    "a state in a state": w.mapping({"state_dict": w.mapping({"x": PLAIN}), "step": w.number(3)}),
    "a number": w.mapping({"x": w.number(3)}),
    "a storage alone": w.mapping({"x": w.storage("0", "FloatStorage", 3)}),
    "a name of two lines": w.mapping({"x\ny": PLAIN}),
    "a number as a name": b"}(" + w.number(3) + PLAIN + b"u",
    "a value without a name": b"}(" + w.text("x") + PLAIN + w.text("y") + b"u",
    "a list of tensors": b"](" + PLAIN + b"e",
    "a tensor": PLAIN,
    "nothing": b"",
    "two values": b"}}",
    "a mark": b"}(",
    "no mark": w.text("x") + b"u",
    "below a mark": b"}(" + b"\x85",
    "an empty memo": b"h\x05",
    "a call of a dict": b"})R",
    "items of a list": b"](" + w.text("x") + w.NONE + b"u",
    "a list of a dict": b"}(" + w.NONE + b"e",
    "a dict within itself": b"}q\x00" + w.text("x") + b"h\x00s",
    "an unknown instruction": b"\xff",
    "text that is no UTF-8": b"X\x01\x00\x00\x00\xff",
}
DEEP = 100_000
LARGE = {
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**60),
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**60),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**60),
    "beyond all sizes": b"\x8e" + struct.pack("<Q", 2**64 - 1),
    "BINUNICODE": b"X" + struct.pack("<I", 2**32 - 1),
    "LONG4": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "FRAME": b"\x95" + struct.pack("<Q", 2**60),
    "LONG_BINPUT": b"}r" + struct.pack("<I", 2**32 - 1) + b"0",
    "digits": b"I" + b"9" * 100_000 + b"\n",
    "nested tuples": b")" + b"\x85" * DEEP,
    "nested lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "nested dicts": b"}" + (w.text("x") + b"}") * DEEP + b"s" * DEEP,
    "marks": b"(" * DEEP,
    "a key of doubled tuples": b"}" + b")" + b"q\x00h\x00\x86" * 100 + w.NONE + b"s",
    "a value of doubled tuples": b"}" + w.text("x") + b")" + b"q\x00h\x00\x86" * 100 + b"s",
}


def zipped(file, body):
    return w.zip_file(file, b"\x80\x02" + body + w.STOP, {"0": X.tobytes()})


def old(file, body):
    return w.old_file(file, b"\x80\x02" + body + w.STOP, {"0": X})


def first(file, body):
    """A file that is one pickle."""
    file.write_bytes(b"\x80\x02" + body + w.STOP)
    return file


PLACES = {"zip": zipped, "old": old, "alone": first}


def message(file):
    with pytest.raises(UserError) as refused:
        TorchFile(file)
    said = str(refused.value)
    assert "\n" not in said and said.startswith(str(file)) and len(said) < 600
    return said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*LIVE, *LIVE_IN_TORCH])
def test_what_would_run_code_is_named_and_not_run(name, place, tmp_path):
    trace = tmp_path / "trace"
    body = (LIVE | LIVE_IN_TORCH)[name](trace)
    said = message(PLACES[place](tmp_path / "x.bin", body))
    assert "holds more than tensors" in said and "was not run" in said
    named = {"INST": "os.system", "OBJ": "os.system", "nested": "os.system"}
    assert f": {named.get(name, name)}, which" in said
    assert not trace.exists()


@pytest.mark.parametrize("name", LIVE)
def test_pythons_own_loader_runs_it(name, tmp_path):
    """So that nothing above is refused for being broken."""
    trace = tmp_path / "trace"
    pickle.loads(b"\x80\x02" + LIVE[name](trace) + w.STOP)
    assert trace.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_what_python_pickles_is_refused_in_every_protocol(protocol, tmp_path):
    trace = tmp_path / "trace"
    for value in (Call(os.system, touch(trace)), {"x": Call(eval, make(trace))}):
        file = tmp_path / "x.bin"
        file.write_bytes(pickle.dumps(value, protocol))
        said = message(file)
        # protocol 0 makes its dict before anything is named, by another instruction than torch's
        assert any(word in said for word in ("system", "eval", "DICT"))
        w.zip_file(file, pickle.dumps(value, protocol), {})
        message(file)
    assert not trace.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", DEAD)
def test_what_is_no_dict_of_tensors_is_refused(name, place, tmp_path):
    message(PLACES[place](tmp_path / "x.bin", DEAD[name]))


def test_the_refusal_names_the_tensors_name_and_the_way_out(tmp_path):
    said = message(zipped(tmp_path / "x.bin", DEAD["a state in a state"]))
    assert "holds more than tensors: state_dict, a dict, which is not read and was not run" in said
    assert "torch.save(model.state_dict(), …)" in said


@pytest.mark.parametrize("place", ["zip", "old"])
@pytest.mark.parametrize("name", LARGE)
def test_an_instruction_that_claims_much_takes_no_memory(name, place, tmp_path):
    file = PLACES[place](tmp_path / "x.bin", LARGE[name])
    tracemalloc.start()
    try:
        message(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**26


def test_nothing_that_a_pickle_does_is_kept(tmp_path):
    """The reader of the next file is that of the first."""
    for body in DEAD.values():
        message(zipped(tmp_path / "x.bin", body))
    found = TorchFile(zipped(tmp_path / "x.bin", w.mapping({"x": PLAIN})))
    np.testing.assert_array_equal(found.read("x"), X)


def test_only_the_first_pickle_of_a_stream_is_read():
    stream = io.BytesIO(pickle.dumps([1, "a"], 2) + pickle.dumps({"b": (2.5, None, True)}, 4))
    assert read_pickle(stream) == ([1, "a"], {})
    assert read_pickle(stream) == ({"b": (2.5, None, True)}, {})
