"""Where the weights of a model lie: safetensors or torch files, on disk and on the hub."""

import json

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from alol_jax.errors import UserError
from alol_jax.models.attention import Attention
from alol_jax.models.files import hf_reader
from alol_jax.models.files.classifiers import open_classifier
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.hf_reader import CRITIC_HEADS
from tests.models.files.torch_files import write_old, write_torch
from tests.models.tiny_classifiers import CLASSIFIERS, random_classifier, write_classifier
from tests.models.tiny_llama import CONFIG, here, random_weights, write_directory

WEIGHTS = random_weights()


def config_of(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def write_shards(folder, write=write_torch):
    """As transformers shards a state dict."""
    names = sorted(WEIGHTS)
    files = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, held in files.items():
        write(folder / file, {name: WEIGHTS[name] for name in held})
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def message(path):
    with pytest.raises(UserError) as error:
        open_checkpoint(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("x") / "m"
    return open_checkpoint(write_directory(folder, WEIGHTS)).load(jnp.float32, here)


def same(path, expected):
    found = open_checkpoint(str(path)).load(jnp.float32, here)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("write", [write_torch, write_old])
def test_a_torch_file_loads_as_its_safetensors_twin(write, expected, tmp_path):
    folder = config_of(tmp_path / "m")
    # buffers that old versions of transformers stored
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        "model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(8, np.float16),
    }
    write(folder / "pytorch_model.bin", WEIGHTS | extra)
    same(folder, expected)


@pytest.mark.parametrize("write", [write_torch, write_old])
def test_torch_shards_load_as_their_safetensors_twin(write, expected, tmp_path):
    folder = write_shards(config_of(tmp_path / "m"), write)
    same(folder, expected)
    files = open_checkpoint(str(folder)).files
    assert [file.name for file in files] == [
        "config.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ]


def test_safetensors_are_read_where_both_are_stored(expected, tmp_path):
    folder = config_of(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    (folder / "training_args.bin").write_bytes(b"never read")
    save_file(WEIGHTS, folder / "model.safetensors")
    same(folder, expected)


def test_the_fingerprint_is_that_of_the_files_contents(tmp_path):
    folder = config_of(tmp_path / "m")
    marks = set()
    for number in (0, 1, 0):
        write_torch(folder / "pytorch_model.bin", random_weights(number))
        marks.add(open_checkpoint(str(folder)).fingerprint())
    assert len(marks) == 2


def test_torch_shards_that_are_missing_elsewhere_or_ambiguous_are_named(tmp_path):
    folder = write_shards(config_of(tmp_path / "m"))
    write_torch(folder / "pytorch_model.bin", WEIGHTS)
    said = message(folder)
    assert "holds both pytorch_model.bin and pytorch_model.bin.index.json" in said
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "shard pytorch_model-00002-of-00002.bin is missing" in message(folder)
    index = folder / "pytorch_model.bin.index.json"
    for name in ("../other.bin", "model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        assert f"{name!r} is not the name of a .bin file beside it" in message(folder)


def test_a_torch_file_by_itself_is_no_checkpoint(tmp_path):
    file = write_torch(tmp_path / "pytorch_model.bin", WEIGHTS)
    assert "is not a checkpoint: give a Hugging Face directory" in message(file)


def critic(folder):
    return open_classifier(
        str(folder), dtype="float32", sharding=here, attention=Attention("xla", None)
    )


def test_a_critics_head_of_torch_is_that_of_its_safetensors_twin(tmp_path):
    folder, params = tmp_path / "c", random_classifier(CLASSIFIERS["RobertaModel"])
    write_classifier(folder, "RobertaModel", params)
    head = load_file(folder / CRITIC_HEADS[0])
    first = critic(folder)
    expected, fingerprint = first.params, first.checkpoint.fingerprint()
    write_torch(folder / CRITIC_HEADS[1], {name: array + 1 for name, array in head.items()})
    assert critic(folder).checkpoint.fingerprint() == fingerprint  # safetensors come first
    write_old(folder / CRITIC_HEADS[1], head)
    (folder / CRITIC_HEADS[0]).unlink()
    found = critic(folder)
    assert found.checkpoint.fingerprint() != fingerprint
    assert found.params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found.params[path], value, err_msg=path)


# the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache in a folder, and a repository that "downloads" into it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "cache" / "models--org--name"
    snapshot, repository = cache / "snapshots" / commit, tmp_path / "repository"
    asked = []

    def downloaded(name, *, revision, allow_patterns):
        assert name == "org/name" and revision in (None, commit)
        asked.append(tuple(allow_patterns))
        snapshot.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in repository.glob(pattern):
                (snapshot / file.name).write_bytes(file.read_bytes())
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(commit)
        return str(snapshot)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as online:
        online.setattr(huggingface_hub, "snapshot_download", downloaded)
        yield repository, snapshot, asked, online


def test_torch_files_are_fetched_only_where_the_hub_has_no_safetensors(hub, expected):
    repository, snapshot, asked, _ = hub
    write_shards(config_of(repository))
    save_file(WEIGHTS, repository / "model.safetensors")
    same("org/name", expected)
    assert len(asked) == 1 and not any("pytorch" in pattern for pattern in asked[0])
    assert {file.name for file in snapshot.iterdir()} == {"config.json", "model.safetensors"}


def test_torch_files_of_the_hub_are_fetched_and_later_read_without_a_connection(hub, expected):
    repository, snapshot, asked, online = hub
    write_shards(config_of(repository))
    (repository / "training_args.bin").write_bytes(b"never fetched")
    same("org/name", expected)
    assert len(asked) == 2 and "model.safetensors" not in asked[1]
    assert not (snapshot / "training_args.bin").exists() and len(list(snapshot.iterdir())) == 4
    online.undo()  # the hub's own function, with HF_HUB_OFFLINE set
    assert constants.HF_HUB_OFFLINE
    same("org/name", expected)


def test_an_adapters_torch_file_is_fetched_where_it_has_no_other(hub):
    repository, snapshot, asked, _ = hub
    repository.mkdir()
    (repository / "adapter_model.bin").touch()
    (repository / "config").touch()
    given = hf_reader.HubFiles(("config",), ("adapter_model.safetensors",), ("adapter_model.bin",))
    model = hf_reader.on_hub("org/name")
    assert hf_reader.download(model, given) == snapshot
    assert {file.name for file in snapshot.iterdir()} == {"config", "adapter_model.bin"}
    (repository / "adapter_model.safetensors").touch()
    asked.clear()
    hf_reader.download(model, given)
    assert asked == [("config", "adapter_model.safetensors")]


def test_a_hub_model_without_weights_is_one_line(hub):
    repository, _, asked, _ = hub
    config_of(repository)
    assert "holds neither model.safetensors nor pytorch_model.bin" in message("org/name")
    assert len(asked) == 2
