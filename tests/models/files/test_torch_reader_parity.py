"""What torch.save writes is what torch.load reads, bit for bit; models load as their twins."""

import collections
import json

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.attention import Attention
from alol_jax.models.files.classifiers import open_classifier
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.peft_adapter import read_adapter
from alol_jax.models.files.torch_reader import TorchFile
from tests.models.tiny_llama import here
from tests.models.torch_models import CAUSAL, ENCODERS, random_torch

pytestmark = pytest.mark.parity

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


def saved(value, file, zipped):
    import torch

    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()


def torch_bits(tensor):
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return bits(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def assert_as_torch(file):
    import torch

    expected, found = torch.load(file, weights_only=True), TorchFile(file)
    assert list(found.entries) == list(expected)
    for name, tensor in expected.items():
        read = found.read(name)
        assert read.shape == found.entries[name][1] == tuple(tensor.shape), name
        dtype = "bool" if tensor.dtype == torch.bool else str(tensor.dtype).removeprefix("torch.")
        assert read.dtype.name == dtype, name
        assert bits(read) == torch_bits(tensor), name


@FORMS
def test_every_dtype_is_as_torch_reads_it(zipped, tmp_path):
    import torch

    torch.manual_seed(0)
    wide = torch.randn(17, 9, dtype=torch.float64) * 60
    wide[0, :5] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-310])
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    whole = wide.nan_to_num(0, 0, 0)
    floats = {name: wide.to(getattr(torch, name)) for name in names[:4]}
    ints = {name: whole.to(getattr(torch, name)) for name in names[4:]}
    assert_as_torch(saved(floats | ints, tmp_path / "x.bin", zipped))


@FORMS
def test_views_shared_storages_and_parameters_are_as_torch_reads_them(zipped, tmp_path):
    import torch

    x = torch.randn(6, 8, 10)
    half = torch.randn(40).to(torch.bfloat16)
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    stateful = torch.nn.Parameter(torch.randn(4))
    stateful.note = "kept by torch"
    value = {
        "whole": x,
        "turned": x.permute(2, 0, 1),
        "part": x[1:5, ::3, 2:],
        "column": x[:, 3, 4],
        "scalar": x[5, 7, 9],
        "none": x[3:3],
        "one": x[2:3, :, :1],
        "flat": x.view(-1)[7:20],
        "tied": x,
        "half": half[3:],
        "half turned": half.view(8, 5).t(),
        "windows": half.unfold(0, 4, 1)[:10],
        "own scalar": torch.tensor(2.5),
        "own empty": torch.empty(0, 3),
        "parameter": parameter,
        "stateful": stateful,
        "turned parameter": torch.nn.Parameter(x[0].t()),
        "no gradient": torch.nn.Parameter(x[1], requires_grad=False),
        "position_ids": torch.arange(9).expand((1, -1)),
    }
    assert_as_torch(saved(value, tmp_path / "x.pt", zipped))
    assert_as_torch(saved(collections.OrderedDict(value), tmp_path / "x.pt", zipped))


@FORMS
def test_a_modules_state_dict_is_read_whatever_wrote_it(zipped, tmp_path):
    """With the attribute _metadata, in every protocol that torch.load reads by itself, on a path
    that names the archive."""
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3)).half()
    state = module.state_dict()
    assert state._metadata
    assert_as_torch(saved(state, tmp_path / "modèle 1.bin", zipped))
    for protocol in (2, 3, 4, 5):
        file = tmp_path / "x.bin"
        torch.save(state, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        expected = torch.load(file, weights_only=False)
        found = TorchFile(file)
        assert all(bits(found.read(name)) == torch_bits(x) for name, x in expected.items())


def test_an_archive_without_checksums_is_read(tmp_path):
    import torch

    torch.serialization.set_crc32_options(False)
    try:
        assert_as_torch(saved({"x": torch.ones(5)}, tmp_path / "x.bin", True))
    finally:
        torch.serialization.set_crc32_options(True)


@FORMS
def test_what_torch_writes_that_is_no_dict_of_tensors_is_one_line(zipped, tmp_path):
    import torch

    x = torch.ones(3)
    cases = {
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
        "state_dict, a dict": {"state_dict": {"x": x}},
        "step, a int": {"x": x, "step": 3},
        "a Tensor instead of a dict": x,
        "torch._utils._rebuild_sparse_tensor": {"x": x.to_sparse()},
        "torch.storage.UntypedStorage": {"x": x.untyped_storage()},
        "with arguments that are not those of a plain tensor": {"x": (x * 1j).conj().imag},
        "a tensor of 4 elements in a storage of 1, as expand makes it": {
            "x": torch.ones(1).expand(4)
        },
        "numpy.": {"x": np.ones(3)},
    }
    for said, value in cases.items():
        file = saved(value, tmp_path / "x.bin", zipped)
        with pytest.raises(UserError) as error:
            TorchFile(file)
        assert said in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_a_torchscript_program_is_named(tmp_path):
    import torch

    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="a TorchScript program"):
        TorchFile(tmp_path / "x.pt")


# whole models


def same(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def twin(folder, model, zipped, shards=1):
    """The same directory with torch files: the state dict and its tied tensors."""
    state = model.state_dict()
    (folder / "model.safetensors").unlink()
    if shards == 1:
        return saved(state, folder / "pytorch_model.bin", zipped)
    names = list(state)
    files = {f"pytorch_model-{i:05d}-of-{shards:05d}.bin": names[i::shards] for i in range(shards)}
    for file, held in files.items():
        saved({name: state[name] for name in held}, folder / file, zipped)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return None


@FORMS
@pytest.mark.parametrize("name", ["gpt2: tied", "llama: full heads, tied, long rotary wavelengths"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_torch_files_is_its_safetensors_twin(name, dtype, zipped, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = random_torch(CAUSAL[name](), AutoModelForCausalLM.from_config)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    expected = open_checkpoint(str(tmp_path)).load(dtype, here)
    if name.startswith("gpt2"):  # as old versions of transformers stored them
        for block in model.transformer.h:
            block.attn.register_buffer("bias", torch.ones(1, 1, 64, 64).tril().bool())
            block.attn.register_buffer("masked_bias", torch.tensor(-1e4))
    assert "lm_head.weight" in model.state_dict()
    twin(tmp_path, model, zipped, shards=3 if dtype == "bfloat16" else 1)
    same(open_checkpoint(str(tmp_path)).load(dtype, here), expected)


@FORMS
def test_a_critic_of_torch_files_is_its_safetensors_twin(zipped, tmp_path):
    import torch
    from safetensors.torch import save_file
    from transformers import RobertaModel

    model = random_torch(ENCODERS["roberta: one segment"](), RobertaModel)
    model.save_pretrained(tmp_path)
    head = {
        "dense.weight": torch.randn(512, model.config.hidden_size),
        "dense.bias": torch.randn(512),
        "out_proj.weight": torch.randn(1, 512),
        "out_proj.bias": torch.randn(1),
    }
    file = tmp_path / "custom_roberta_classification_head.safetensors"
    save_file(head, file)

    def params():
        return open_classifier(
            str(tmp_path), dtype="float32", sharding=here, attention=Attention("xla", None)
        ).params

    expected = params()
    file.unlink()
    saved(head, file.with_suffix(".pt"), zipped)
    model.embeddings.register_buffer("position_ids", torch.arange(66).expand((1, -1)))
    twin(tmp_path, model, zipped)
    same(params(), expected)


@FORMS
def test_an_adapter_of_a_torch_file_is_its_safetensors_twin(zipped, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = random_torch(CAUSAL["gpt2: tied"](), AutoModelForCausalLM.from_config)
    model.save_pretrained(tmp_path / "base")
    config = open_checkpoint(str(tmp_path / "base")).config
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=True, bias="none")
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_()
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    expected = read_adapter(folder, config)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    saved(tensors, folder / "adapter_model.bin", zipped)
    found = read_adapter(folder, config)
    same(found.leaves, expected.leaves)
    assert found.fingerprint() == expected.fingerprint()


def test_an_adapter_that_peft_itself_writes_as_a_torch_file_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = random_torch(CAUSAL["gpt2: tied"](), AutoModelForCausalLM.from_config)
    model.save_pretrained(tmp_path / "base")
    config = open_checkpoint(str(tmp_path / "base")).config
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.save_pretrained(tmp_path / "new")
    adapted.save_pretrained(tmp_path / "old", safe_serialization=False)
    assert (tmp_path / "old" / "adapter_model.bin").is_file()
    same(
        read_adapter(tmp_path / "old", config).leaves, read_adapter(tmp_path / "new", config).leaves
    )
