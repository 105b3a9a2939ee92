import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from alol_jax.models.files.hf_reader import TensorFiles
from alol_jax.models.files.hf_writer import write_tensors, write_weights

DRAW = np.random.default_rng(0)
TENSORS = {
    "a.weight": DRAW.normal(size=(3, 5)).astype(np.float32),
    "b": DRAW.normal(size=(7,)).astype(np.float32),
    "c": DRAW.normal(size=(2, 3, 4)).astype(np.float32).swapaxes(0, 2),
    "d": np.float32(0.1).reshape(()),
    "e": np.zeros((0, 4), np.float32),
}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_reads_what_was_written(dtype, tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, SHAPES, dtype, TENSORS.__getitem__)
    found = load_file(file)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor.astype(np.dtype(dtype)))
    with safetensors.safe_open(file, framework="numpy") as stored:
        assert stored.metadata() == {"format": "pt"}


def test_values_are_rounded_to_nearest_once(tmp_path):
    values = np.float64([1.00390625, 1.00390626, 3e-45])
    write_tensors(tmp_path / "x", {"x": (3,)}, "bfloat16", lambda name: values)
    found = load_file(tmp_path / "x")["x"]
    np.testing.assert_array_equal(found, values.astype(ml_dtypes.bfloat16))


def test_a_tensor_is_asked_for_once_and_in_order(tmp_path):
    asked = []

    def read(name):
        asked.append(name)
        return TENSORS[name]

    write_weights(tmp_path, SHAPES, "float32", read, shard_bytes=100)
    assert asked == list(SHAPES)


def test_a_tensor_of_another_shape_than_said_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"b is \(7,\), not \(8,\)"):
        write_tensors(tmp_path / "x", {"b": (8,)}, "float32", TENSORS.__getitem__)


@pytest.mark.parametrize("most", [1, 60, 100, 400])
def test_shards_hold_everything_once_and_no_more_than_they_may(most, tmp_path):
    write_weights(tmp_path, SHAPES, "float32", TENSORS.__getitem__, shard_bytes=most)
    files = sorted(tmp_path.glob("*.safetensors"))
    found = TensorFiles(files)  # refuses a name that is stored twice
    assert found.shapes == SHAPES
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found.read(name), tensor)
    sizes = [[TENSORS[name].nbytes for name in load_file(file)] for file in files]
    assert all(sum(shard) <= most or len([n for n in shard if n]) == 1 for shard in sizes)
    index = tmp_path / "model.safetensors.index.json"
    if len(files) == 1:
        assert files[0].name == "model.safetensors" and not index.exists()
        return
    said = json.loads(index.read_text())
    assert said["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    for file in files:
        assert {said["weight_map"][name] for name in load_file(file)} == {file.name}
    assert {file.name.split("-of-")[1] for file in files} == {f"{len(files):05d}.safetensors"}
