import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alol_jax.errors import UserError
from alol_jax.models.blocks import LoRA
from alol_jax.models.families.registry import FAMILIES
from alol_jax.models.files import peft_adapter
from alol_jax.models.files.peft_adapter import read_adapter, write_adapter
from alol_jax.models.presets import PRESETS
from tests.models.files.torch_files import write_old, write_torch
from tests.models.small_models import small

CONFIGS = {name: PRESETS[f"{name}-tiny"] for name in ("llama", "phi3", "gpt-neox", "gpt2")}
LLAMA = CONFIGS["llama"]


def lora_of(config, *modules, rank=3, alpha=6.0, dropout=0.1):
    return LoRA(rank, alpha, dropout, modules or config.projections)


def random_leaves(config, lora, seed=0):
    """Adapters none of whose numbers is zero."""
    draw = np.random.default_rng(seed)
    shapes = {path: leaf.shape for path, leaf in abstract(config, lora).items()}
    return {path: draw.normal(size=s).astype(np.float32) for path, s in sorted(shapes.items())}


def abstract(config, lora):
    leaves = jax.eval_shape(small(config, lora).init, jax.random.key(0))
    return {path: leaf for path, leaf in leaves.items() if "/lora_" in path}


def written(folder, config, lora, leaves, **changes):
    """The files, with other fields in adapter_config.json."""
    folder.mkdir(exist_ok=True)
    write_adapter(folder, config, lora, leaves, "base/of-it")
    change(folder, **changes)
    return folder


def change(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def fields_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def same(found, leaves):
    assert found.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


# what was written is read

MODULES = {
    "all": (),
    "queries and values": ("q_proj", "v_proj"),
    "keys and the way back": ("k_proj", "o_proj"),
    "mlp": ("up_proj", "down_proj"),
}


@pytest.mark.parametrize("modules", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("family", CONFIGS)
def test_what_was_written_is_read_back(family, modules, tmp_path):
    config = CONFIGS[family]
    lora = lora_of(config, *modules)
    leaves = random_leaves(config, lora)
    found = read_adapter(written(tmp_path, config, lora, leaves), config)
    assert found.lora == lora and found.base == "base/of-it"
    same(found.leaves, leaves)


@pytest.mark.parametrize("family", ["gpt-neox", "gpt2"])
def test_a_packed_map_gets_what_its_three_parts_get(family, tmp_path):
    """alpha/r · B A of the stored factors is the packed kernel of the three products."""
    config, lora = CONFIGS[family], lora_of(CONFIGS[family], "q_proj", "v_proj")
    leaves = random_leaves(config, lora)
    stored = load_file(written(tmp_path, config, lora, leaves) / "adapter_model.safetensors")
    row = next(row for row in FAMILIES[config.family].body if "layers/q_proj/kernel" in row.paths)
    for layer in range(config.layers):
        stem = f"base_model.model.{row.name.format(i=layer).removesuffix('.weight')}"
        a, b = (stored[f"{stem}.lora_{x}.weight"] for x in "AB")
        added = 12.0 / 6 * b @ a  # n · alpha / (n · r)
        deltas = [np.zeros((config.width, config.width), np.float32)] * 3
        for i, name in enumerate("qkv"):
            if f"layers/{name}_proj/lora_a" in leaves:
                down, up = (leaves[f"layers/{name}_proj/lora_{x}"][layer] for x in "ab")
                deltas[i] = lora.scale * down @ up
        kernel = np.asarray(row.layout.join(config, deltas))
        expected = kernel.T if family == "gpt2" else kernel
        np.testing.assert_allclose(added, expected, rtol=1e-4, atol=1e-4)
    fields = fields_of(tmp_path)
    assert fields["r"] == 3 and list(fields["rank_pattern"].values()) == [6]
    assert list(fields["alpha_pattern"].values()) == [12]
    assert fields["fan_in_fan_out"] == (family == "gpt2")


def test_factors_that_all_three_parts_share_are_copied_to_them(tmp_path):
    config = CONFIGS["gpt-neox"]
    lora = lora_of(config, "q_proj")
    folder = written(tmp_path, config, lora, random_leaves(config, lora))
    file, draw = folder / "adapter_model.safetensors", np.random.default_rng(1)
    stored = {n: draw.normal(size=t.shape).astype(np.float32) for n, t in load_file(file).items()}
    save_file(stored, file)
    found = read_adapter(folder, config)
    assert found.lora.modules == ("q_proj", "k_proj", "v_proj") and found.lora.rank == 3
    for name in "qkv":
        a = found.leaves[f"layers/{name}_proj/lora_a"]
        first = stored["base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_A.weight"]
        np.testing.assert_array_equal(a[0], first.T)


def test_names_in_target_modules_are_short_and_mean_nothing_else(tmp_path):
    cases = {
        ("llama", ("q_proj", "up_proj")): ["q_proj", "up_proj"],
        ("gpt2", ("o_proj",)): ["attn.c_proj"],
        ("gpt2", ("o_proj", "down_proj")): ["c_proj"],
        ("gpt-neox", ("o_proj", "q_proj")): ["dense", "query_key_value"],
    }
    for number, ((family, modules), targets) in enumerate(cases.items()):
        lora = lora_of(CONFIGS[family], *modules)
        leaves = random_leaves(CONFIGS[family], lora)
        folder = written(tmp_path / str(number), CONFIGS[family], lora, leaves)
        assert fields_of(folder)["target_modules"] == targets


# forms of the config


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj", "not_here"],
        ["self_attn.q_proj", "v_proj"],
        r".*self_attn\.(q|v)_proj",
        None,
    ],
)
def test_targets_may_be_names_or_a_regex(targets, tmp_path):
    lora = lora_of(LLAMA, "q_proj", "v_proj")
    leaves = random_leaves(LLAMA, lora)
    found = read_adapter(written(tmp_path, LLAMA, lora, leaves, target_modules=targets), LLAMA)
    same(found.leaves, leaves)


def test_all_linear_means_all(tmp_path):
    lora = lora_of(LLAMA)
    leaves = random_leaves(LLAMA, lora)
    folder = written(tmp_path, LLAMA, lora, leaves, target_modules="all-linear")
    assert read_adapter(folder, LLAMA).lora.modules == LLAMA.projections
    few = lora_of(LLAMA, "q_proj")
    folder = written(tmp_path, LLAMA, few, random_leaves(LLAMA, few), target_modules="all-linear")
    with pytest.raises(UserError, match="but without weights: model.layers.0.self_attn.k_proj"):
        read_adapter(folder, LLAMA)


def test_rank_stabilised_factors_have_the_scale_of_the_root(tmp_path):
    lora = lora_of(LLAMA, rank=4)
    leaves = random_leaves(LLAMA, lora)
    found = read_adapter(written(tmp_path, LLAMA, lora, leaves, use_rslora=True), LLAMA)
    assert found.lora.scale == 6.0 / 2


def test_lower_ranks_are_filled_up_with_zeros(tmp_path):
    lora = lora_of(LLAMA, "q_proj", "v_proj")
    leaves = random_leaves(LLAMA, lora)
    folder = written(
        tmp_path, LLAMA, lora, leaves, rank_pattern={"v_proj": 1}, alpha_pattern={"v_proj": 2}
    )
    stored = load_file(folder / "adapter_model.safetensors")
    for name, tensor in stored.items():
        if "v_proj" in name:
            stored[name] = (tensor[:1] if "lora_A" in name else tensor[:, :1]).copy()
    save_file(stored, folder / "adapter_model.safetensors")
    found = read_adapter(folder, LLAMA)
    assert found.lora == lora
    expected = dict(leaves)
    for x, cut in (("a", np.s_[:, :, 1:]), ("b", np.s_[:, 1:])):
        expected[f"layers/v_proj/lora_{x}"] = leaves[f"layers/v_proj/lora_{x}"].copy()
        expected[f"layers/v_proj/lora_{x}"][cut] = 0
    same(found.leaves, expected)


def test_half_precision_factors_become_float32(tmp_path):
    lora = lora_of(LLAMA, "q_proj")
    folder = written(tmp_path, LLAMA, lora, random_leaves(LLAMA, lora))
    file = folder / "adapter_model.safetensors"
    save_file({name: x.astype(np.float16) for name, x in load_file(file).items()}, file)
    assert {x.dtype for x in read_adapter(folder, LLAMA).leaves.values()} == {np.dtype("float32")}


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    lora = lora_of(LLAMA, "q_proj")
    leaves = random_leaves(LLAMA, lora)
    one = read_adapter(written(tmp_path / "one", LLAMA, lora, leaves), LLAMA)
    two = read_adapter(written(tmp_path / "two", LLAMA, lora, leaves), LLAMA)
    louder = read_adapter(written(tmp_path / "three", LLAMA, lora, leaves, lora_alpha=7), LLAMA)
    other = random_leaves(LLAMA, lora, seed=1)
    moved = read_adapter(written(tmp_path / "four", LLAMA, lora, other), LLAMA)
    assert one.fingerprint() == two.fingerprint()
    assert len({a.fingerprint() for a in (one, louder, moved)}) == 3


# refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "missing base_model.model.model.layers.0.self_attn.q_proj.lora_magn"),
        ({"modules_to_save": ["score"]}, r"modules_to_save = \['score'\]"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"layers_to_transform": [0]}, r"unexpected base_model.model.model.layers.1.self_attn.q"),
        ({"tomorrow": 1}, "tomorrow = 1"),
        ({"alpha_pattern": {"v_proj": 1}}, "modules of different scales"),
        ({"rank_pattern": {"v_proj": 2}}, "another rank than adapter_config.json says"),
        ({"r": 0}, "rank 0 of"),
        ({"r": "8"}, "r must be a whole number, found '8'"),
        ({"lora_dropout": 1.0}, "lora_dropout = 1.0"),
        ({"target_modules": "(q_proj"}, "is not a regex"),
        ({"target_modules": ["q_proj"]}, "not named: model.layers.0.self_attn.v_proj"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes, said, tmp_path):
    lora = lora_of(LLAMA, "q_proj", "v_proj")
    folder = written(tmp_path, LLAMA, lora, random_leaves(LLAMA, lora), **changes)
    with pytest.raises(UserError, match=said):
        read_adapter(folder, LLAMA)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("gpt2", "gpt2 of 2 layers: missing none; unexpected base_model.model.model.layers"),
        ("one layer", "llama of 1 layers: missing none; unexpected base_model.model.model.layers"),
        ("three layers", "missing base_model.model.model.layers.2.*unexpected none"),
        ("another width", r"q_proj.lora_A.weight \(3, 64\), expected \(3, 32\)"),
    ],
)
def test_an_adapter_for_another_base_is_refused_with_both_lists(other, said, tmp_path):
    config = {
        "gpt2": CONFIGS["gpt2"],
        "one layer": dataclasses.replace(LLAMA, layers=1),
        "three layers": dataclasses.replace(LLAMA, layers=3),
        "another width": dataclasses.replace(LLAMA, width=32),
    }[other]
    lora = lora_of(LLAMA)
    folder = written(tmp_path, LLAMA, lora, random_leaves(LLAMA, lora))
    with pytest.raises(UserError, match=said):
        read_adapter(folder, config)


def test_missing_and_damaged_files_are_refused(tmp_path):
    lora = lora_of(LLAMA, "q_proj")
    folder = written(tmp_path / "adapter", LLAMA, lora, random_leaves(LLAMA, lora))
    weights = folder / "adapter_model.safetensors"
    with pytest.raises(UserError, match="is not a directory"):
        read_adapter(tmp_path / "nowhere", LLAMA)
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        read_adapter(folder, LLAMA)
    weights.unlink()
    with pytest.raises(UserError, match="safetensors is missing, as is adapter_model.bin"):
        read_adapter(folder, LLAMA)
    (folder / "adapter_model.bin").write_bytes(b"no pickle")
    with pytest.raises(UserError, match="adapter_model.bin is damaged or not a file of torch.save"):
        read_adapter(folder, LLAMA)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_adapter(folder, LLAMA)


def test_an_adapter_of_torch_is_that_of_its_safetensors_twin(tmp_path):
    lora = lora_of(LLAMA, "q_proj", "up_proj")
    leaves = random_leaves(LLAMA, lora)
    folder = written(tmp_path, LLAMA, lora, leaves)
    first, stored = read_adapter(folder, LLAMA), folder / "adapter_model.safetensors"
    tensors = load_file(stored)
    for write in (write_torch, write_old):
        write(folder / "adapter_model.bin", {name: array + 1 for name, array in tensors.items()})
        same(read_adapter(folder, LLAMA).leaves, leaves)  # safetensors come first
        write(folder / "adapter_model.bin", tensors)
        stored.unlink()
        found = read_adapter(folder, LLAMA)
        same(found.leaves, leaves)
        assert found.fingerprint() == first.fingerprint()
        save_file(tensors, stored)


def test_a_hub_name_is_fetched(tmp_path, monkeypatch):
    lora = lora_of(LLAMA, "q_proj")
    leaves = random_leaves(LLAMA, lora)
    folder = written(tmp_path, LLAMA, lora, leaves)
    asked = []
    monkeypatch.setattr(peft_adapter, "download", lambda *given: asked.append(given) or folder)
    found = read_adapter("someone/adapter@v2", LLAMA)
    same(found.leaves, leaves)
    assert found.commit == folder.name
    assert asked == [(("someone/adapter", "v2"), peft_adapter.ADAPTER_FILES)]
    assert peft_adapter.ADAPTER_FILES == (
        ("adapter_config.json",),
        ("adapter_model.safetensors",),
        ("adapter_model.bin",),
    )
