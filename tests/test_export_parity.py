"""Exports of every family, as transformers and peft load them: the policy's logits."""

import numpy as np
import pytest

from alol_jax.export import export, parse
from alol_jax.text.tokenizer_files import byte_level, save
from tests.finished_run import config_of, finished_run, policy_logits, random_policy
from tests.models.tiny_llama import random_weights, write_directory, write_gguf
from tests.models.torch_models import CAUSAL, random_torch

pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 9))
DIRECTORIES = {
    "llama": "llama: rope scaled as llama 3.1's",
    "mistral": "mistral: a window",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3: two local layers to one",
    "phi3": "phi3: fused, a window",
    "olmo2": "olmo2",
    "gpt-neox": "gpt_neox: sequential, whole heads turn, tanh gelu",
    "gpt2": "gpt2: untied, another mlp width, exact gelu",
}


def directory_born(name, folder):
    """A directory that transformers wrote, with a tokenizer; it is its own original."""
    from transformers import AutoModelForCausalLM

    config = CAUSAL[DIRECTORIES[name]]()
    config.vocab_size = 264
    random_torch(config, AutoModelForCausalLM.from_config).save_pretrained(folder)
    save(byte_level(), folder)
    return str(folder), str(folder)


def gguf_born(folder):
    """A GGUF file, and the directory that it could have been converted from."""
    folder.mkdir()
    weights = {
        name: np.float32(1 + 0.1 * w if "norm" in name else 0.15 * w)
        for name, w in random_weights().items()
    }
    gguf = write_gguf(str(folder / "model.gguf"), weights)
    return gguf, write_directory(folder / "original", weights)


@pytest.fixture(scope="module", params=[*DIRECTORIES, "llama from gguf"])
def trained(request, tmp_path_factory):
    """A finished run: its workdir, the original of its base, the policy's logits."""
    folder = tmp_path_factory.mktemp("run")
    if request.param in DIRECTORIES:
        path, original = directory_born(request.param, folder / "base")
    else:
        path, original = gguf_born(folder / "base")
    lm = finished_run(folder / "workdir", config_of(path))
    return (
        folder / "workdir",
        original,
        lm,
        policy_logits(lm, random_policy(lm, 2).trained, TOKENS),
    )


def exported(trained, folder, what):
    export(parse([f"--workdir={trained[0]}", f"--what={what}", f"--out={folder}"]))
    return str(folder)


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def loaded(folder):
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(said[kind] for kind in said), said
    return model


def test_transformers_computes_the_policy_from_the_merged_directory(trained, tmp_path):
    model = loaded(exported(trained, tmp_path / "out", "merged"))
    np.testing.assert_allclose(logits(model), trained[3], atol=1e-4, rtol=0)
    assert np.abs(logits(loaded(trained[1])) - trained[3]).max() > 1e-2


def test_peft_computes_the_policy_from_the_adapter_on_the_original(trained, tmp_path, recwarn):
    from peft import PeftModel

    out = exported(trained, tmp_path / "out", "adapter")
    model = PeftModel.from_pretrained(loaded(trained[1]), out)
    assert not [w for w in recwarn if "keys" in str(w.message)]
    np.testing.assert_allclose(logits(model), trained[3], atol=1e-4, rtol=0)


def test_transformers_reads_the_tokenizer_beside_it(trained, tmp_path):
    from transformers import AutoTokenizer

    ours = trained[2].tokenizer
    for what in ("merged", "adapter"):
        theirs = AutoTokenizer.from_pretrained(exported(trained, tmp_path / what, what))
        assert theirs("abba", add_special_tokens=False).input_ids == ours.encode("abba")
        assert theirs.eos_token_id == ours.eos_id


def test_transformers_computes_the_policy_from_the_gguf_file(trained, tmp_path):
    from transformers import AutoModelForCausalLM

    config = trained[2].transformer.config
    if config.family not in ("llama", "qwen2") or config.rotary.scaling is not None:
        pytest.skip("transformers reads no rope factors, nor the head widths and windows here")
    out = exported(trained, tmp_path / "out", "gguf")
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf")
    np.testing.assert_allclose(logits(model), trained[3], atol=1e-4, rtol=0)
