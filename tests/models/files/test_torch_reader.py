"""Files of torch.save, read without torch: what is in them, and what is damaged."""

import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.files.hf_reader import TensorFiles
from alol_jax.models.files.torch_reader import TorchFile
from tests.models.files import torch_files as w

DRAW = np.random.default_rng(0)
WRITERS = {"zip": w.write_torch, "old": w.write_old}


def weights_of_every_dtype():
    numbers = DRAW.normal(size=(3, 4)) * 50
    kinds = {name: jnp.bfloat16 if name == "bfloat16" else name for name in w.KINDS}
    return {name: numbers.astype(kind) for name, kind in kinds.items()}


def message(file):
    with pytest.raises(UserError) as refused:
        TorchFile(file)
    said = str(refused.value)
    assert "\n" not in said and said.startswith(str(file)) and len(said) < 600
    return said


def written(file, form, items, storages):
    """A file of either form with these tensors (instructions) and storages (arrays)."""
    pickled = b"\x80\x02" + w.mapping(items) + w.STOP
    if form == "old":
        return w.old_file(file, pickled, storages)
    return w.zip_file(file, pickled, {key: array.tobytes() for key, array in storages.items()})


@pytest.mark.parametrize("form", WRITERS)
def test_every_dtype_is_read_bit_for_bit(form, tmp_path):
    weights = weights_of_every_dtype()
    found = TorchFile(WRITERS[form](tmp_path / "x.bin", weights))
    assert list(found.entries) == list(weights)
    for name, array in weights.items():
        read = found.read(name)
        assert read.dtype == array.dtype and read.shape == found.entries[name][1] == (3, 4)
        assert read.tobytes() == array.tobytes()
    assert [dtype for dtype, _ in found.entries.values()] == (
        "F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL".split()
    )


@pytest.mark.parametrize("form", WRITERS)
def test_views_of_one_storage_scalars_and_empty_tensors_are_read(form, tmp_path):
    x = DRAW.normal(size=(4, 6)).astype(np.float32)
    empty = np.zeros(0, np.float32)
    stored = w.storage("7", "FloatStorage", 24)
    cases = {
        "whole": (w.rebuilt(stored, (4, 6), (6, 1)), x),
        "turned": (w.rebuilt(stored, (6, 4), (1, 6)), x.T),
        "part": (w.rebuilt(stored, (2, 3), (6, 2), 13), x[2:, 1::2]),
        "row": (w.rebuilt(stored, (1, 6), (2**62, 1), 6), x[1:2]),
        "scalar": (w.rebuilt(stored, (), (), 23), x[3, 5]),
        "windows": (w.rebuilt(stored, (5, 2), (1, 1)), np.stack([x[0, :5], x[0, 1:]], 1)),
        "none of it": (w.rebuilt(stored, (0, 6), (6, 1), 24), x[4:]),
        "empty": (w.rebuilt(w.storage("8", "FloatStorage", 0), (0,), (1,)), empty),
    }
    items = {name: made for name, (made, _) in cases.items()}
    found = TorchFile(written(tmp_path / "x.bin", form, items, {"7": x, "8": empty}))
    for name, (_, expected) in cases.items():
        read = found.read(name)
        assert read.shape == expected.shape == found.entries[name][1], name
        np.testing.assert_array_equal(read, expected, err_msg=name)


def test_a_view_of_a_storage_in_the_old_form_is_read(tmp_path):
    x = np.arange(12, dtype=np.float32)
    stored = w.storage("5", "FloatStorage", 12, w.row(w.text("6"), w.number(4), w.number(6)))
    whole = w.storage("5", "FloatStorage", 12, w.NONE)
    items = {"view": w.rebuilt(stored, (2, 2), (3, 1), 1), "whole": w.rebuilt(whole, (12,), (1,))}
    found = TorchFile(written(tmp_path / "x.pt", "old", items, {"5": x}))
    np.testing.assert_array_equal(found.read("view"), [[5, 6], [8, 9]])
    np.testing.assert_array_equal(found.read("whole"), x)
    stored = w.storage("5", "FloatStorage", 12, w.row(w.text("6"), w.number(8), w.number(6)))
    items = {"view": w.rebuilt(stored, (1,), (1,))}
    said = message(written(tmp_path / "x.pt", "old", items, {"5": x}))
    assert "a view reaches beyond its storage" in said


@pytest.mark.parametrize("form", WRITERS)
def test_parameters_plain_dicts_metadata_and_the_first_rebuilder_are_read(form, tmp_path):
    x = np.arange(3, dtype=np.float32)
    plain = w.tensor("0", x)
    names = ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_tensor")
    parameter, stateful, first = (w.named("torch._utils", name) for name in names)
    place = w.storage("0", "FloatStorage", 3), w.number(0), w.numbers([3]), w.numbers([1])
    items = {
        "parameter": w.called(parameter, plain, b"\x88", w.ORDERED),
        "stateful": w.called(stateful, plain, b"\x88", w.ORDERED, w.mapping({"a": w.NONE}, b"}")),
        "first": w.called(first, *place),
        "with bits": w.rebuilt(w.storage("0", "FloatStorage", 3), [3], [1], 0, b"}"),
    }
    version = w.mapping({"version": w.number(1)}, b"}")
    attributes = w.mapping({"_metadata": w.mapping({"": version, "wte": version})}, b"}")
    for empty, tail in ((w.ORDERED, attributes + b"b"), (b"}", b"")):
        pickled = b"\x80\x02" + w.mapping(items, empty) + tail + w.STOP
        if form == "old":
            file = w.old_file(tmp_path / "x.bin", pickled, {"0": x})
        else:
            file = w.zip_file(
                tmp_path / "x.bin", pickled, {"0": x.tobytes()}, folder="x y", order=None
            )
        found = TorchFile(file)
        assert list(found.entries) == list(items)
        for name in items:
            np.testing.assert_array_equal(found.read(name), x)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "said"),
    [
        ((13,), (1,), 0, "beyond its storage of 12 elements"),
        ((3, 4), (4, 1), 1, "beyond its storage"),
        ((2,), (12,), 0, "beyond its storage"),
        ((1,), (1,), 12, "beyond its storage"),
        ((1,), (1,), 2**62, "beyond its storage"),
        ((2**62,), (0,), 0, "impossible shape"),
        ((2**40,), (0,), 0, "elements in a storage of 12, as expand makes it"),
        ((13,), (0,), 0, "a tensor of 13 elements in a storage of 12, as expand makes it"),
        ((2**32, 2**32), (1, 1), 0, "impossible shape"),
        ((2**60, 2**60, 0), (1, 1, 1), 0, "impossible shape"),
        ((2**63,), (1,), 0, "impossible shape"),
        ((3,), (-1,), 3, "impossible shape"),
        ((-3,), (1,), 0, "impossible shape"),
        ((3,), (1,), -1, "impossible shape"),
        ((3,), (1, 1), 0, "without a shape or with other strides"),
        ((1,) * 65, (1,) * 65, 0, "impossible shape"),
    ],
)
def test_a_tensor_that_is_not_in_its_storage_is_refused(
    form, shape, strides, offset, said, tmp_path
):
    x = np.arange(12, dtype=np.float32)
    items = {"x": w.rebuilt(w.storage("0", "FloatStorage", 12), shape, strides, offset)}
    assert said in message(written(tmp_path / "x.bin", form, items, {"0": x}))


def test_a_storage_of_another_size_or_missing_or_of_two_types_is_refused(tmp_path):
    x = np.arange(12, dtype=np.float32)
    file = tmp_path / "x.bin"
    one, two = (w.rebuilt(w.storage("0", "FloatStorage", n), (1,), (1,)) for n in (12, 11))
    ints = w.rebuilt(w.storage("0", "IntStorage", 12), (1,), (1,))
    for form in WRITERS:
        assert "of another size" in message(written(file, form, {"x": two}, {"0": x}))
        said = message(written(file, form, {"x": one, "y": ints}, {"0": x}))
        assert "storage '0' has two types or sizes" in said
    assert "storage '0' is missing" in message(written(file, "zip", {"x": one}, {"1": x}))
    said = message(written(file, "old", {"x": one}, {"0": x, "1": x}))
    assert "its list of storages is not that of its tensors" in said


def test_the_names_of_records_are_checked(tmp_path):
    x = {"x": np.arange(3, dtype=np.float32)}
    pickled, data = w.state_dict(x), {"0": x["x"].tobytes()}
    for name in ("archive/../../x", "/archive/x", "other/x", "archive//x", "archive/.", "x"):
        said = message(w.zip_file(tmp_path / "x.bin", pickled, data, extra=[(name, b"")]))
        assert "its zip archive has a record " in said, name
    with pytest.warns(UserWarning, match="Duplicate name"):
        w.zip_file(tmp_path / "x.bin", pickled, data, extra=[("archive/data/0", b"")])
    assert "records of one name" in message(tmp_path / "x.bin")
    w.zip_file(tmp_path / "x.bin", pickled, data, extra=[("other/data.pkl", b"")])
    assert "no data.pkl, or records of one name" in message(tmp_path / "x.bin")
    traversing = w.rebuilt(w.storage("../../etc/passwd", "FloatStorage", 3), (3,), (1,))
    pickled = w.mapping({"x": traversing}) + w.STOP
    assert "is missing" in message(w.zip_file(tmp_path / "x.bin", pickled, data))


def test_compressed_records_and_bombs_are_refused(tmp_path):
    x = {"x": np.zeros(2**20, np.float32)}
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), w.state_dict(x))
        archive.writestr("a/data/0", x["x"].tobytes())
    assert "its record a/data/0 is compressed" in message(tmp_path / "x.bin").replace("'", "")
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", w.state_dict(x))
    assert "data.pkl' is compressed" in message(tmp_path / "x.bin")
    w.zip_file(tmp_path / "x.bin", bytes(2**23 + 1), {})
    assert "data.pkl' has 8388609 bytes, more than 8388608" in message(tmp_path / "x.bin")


def test_numbers_in_another_byte_order_and_other_archives_are_refused(tmp_path):
    x = {"x": np.arange(3, dtype=np.float32)}
    file, pickled, data = tmp_path / "x.bin", w.state_dict(x), {"0": x["x"].tobytes()}
    assert "in another byte order, b'big'" in message(w.zip_file(file, pickled, data, order=b"big"))
    assert "byte order" in message(
        w.old_file(file, pickled, {"0": x["x"]}, machine={"little_endian": False})
    )
    script = [("archive/constants.pkl", b""), ("archive/code/x.py", b"")]
    assert "a TorchScript program" in message(w.zip_file(file, pickled, data, extra=script))
    assert "torch.save did not write" in message(w.old_file(file, pickled, {}, magic=7))
    assert "another version" in message(w.old_file(file, pickled, {}, version=1000))
    file.write_bytes(bytes(257) + b"ustar\x00" + bytes(600))
    assert "a tar archive, the form that torch wrote before 0.4" in message(file)
    file.write_bytes(b"")
    assert "is damaged or not a file of torch.save" in message(file)
    file.unlink()
    assert "No such file" in message(file)


@pytest.mark.parametrize("form", WRITERS)
def test_a_truncated_file_is_called_damaged_wherever_it_ends(form, tmp_path):
    file = WRITERS[form](tmp_path / "x.bin", {"x": np.ones(7, np.float32), "y": np.ones(2)})
    whole = file.read_bytes()
    for size in {*range(0, len(whole), 7), *range(len(whole) - 30, len(whole))}:
        file.write_bytes(whole[:size])
        assert "is damaged or not a file of torch.save" in message(file)


@pytest.mark.parametrize("form", WRITERS)
def test_a_flipped_byte_is_read_or_refused_but_never_a_traceback(form, tmp_path):
    weights = {"x": np.ones((2, 3), np.float32), "y": np.ones(2, np.float16)}
    file = WRITERS[form](tmp_path / "x.bin", weights)
    whole, refused = file.read_bytes(), 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= int(DRAW.integers(1, 256))
        file.write_bytes(changed)
        try:
            found = TorchFile(file)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            for name, (_, shape) in found.entries.items():
                assert found.read(name).shape == shape
    assert refused > len(whole) / 4


def test_random_bytes_are_refused(tmp_path):
    file = tmp_path / "x.bin"
    for size in (1, 10, 600, 3000):
        for head in (b"", b"PK\3\4", b"\x80\x02"):
            for _ in range(20):
                file.write_bytes(head + DRAW.bytes(size))
                message(file)


def test_the_end_that_is_cut_off_after_opening_is_found_when_read(tmp_path):
    file = w.write_old(tmp_path / "x.bin", {"x": np.ones(7, np.float32)})
    found = TorchFile(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged .*it ends within x"):
        found.read("x")


def test_a_tensor_is_read_alone(tmp_path, monkeypatch):
    """The bytes of its own range, from a file that is closed again."""
    x = {f"x{i}": np.full(1000, i, np.float32) for i in range(10)}
    found = TorchFile(w.write_torch(tmp_path / "x.bin", x))
    read, plain = [], np.fromfile

    def counted(stream, dtype, count):
        read.append((count, stream))
        return plain(stream, dtype, count)

    monkeypatch.setattr(np, "fromfile", counted)
    np.testing.assert_array_equal(found.read("x7"), x["x7"])
    ((count, stream),) = read
    assert count == 4000 and stream.closed


def test_only_buffers_may_be_whole_numbers_and_a_name_may_be_stored_once(tmp_path):
    mask = {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 4, 4), np.bool_))}
    w.write_torch(tmp_path / "a.bin", mask | {"x": np.ones(2, np.float32)})
    w.write_old(tmp_path / "b.bin", {"y": np.ones(2, np.int64)})
    w.write_old(tmp_path / "c.pt", {"x": np.ones(2, np.float16)})
    found = TensorFiles([tmp_path / "a.bin"])
    assert found.shapes == {"transformer.h.0.attn.bias": (1, 1, 4, 4), "x": (2,)}
    np.testing.assert_array_equal(found.read("x"), np.ones(2, np.float32))
    with pytest.raises(UserError, match="b.bin: y is stored as I64, which is not supported"):
        TensorFiles([tmp_path / "b.bin"])
    with pytest.raises(UserError, match="c.pt: x is stored in two files"):
        TensorFiles([tmp_path / "a.bin", tmp_path / "c.pt"])


def test_a_record_that_starts_elsewhere_is_refused(tmp_path):
    file = w.write_torch(tmp_path / "x.bin", {"x": np.ones(7, np.float32)})
    whole = bytearray(file.read_bytes())
    place = whole.rindex(b"PK\1\2")  # the last entry of the directory; its offset is at byte 42
    whole[place + 42 : place + 46] = struct.pack("<I", 5)
    file.write_bytes(whole)
    assert "data/0' is not there" in message(file)
