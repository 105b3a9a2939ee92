"""Adapters to and from peft itself: the same logits on both sides."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.models.blocks import LoRA
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.peft_adapter import read_adapter, write_adapter
from alol_jax.objectives.logprobs import logits_of
from tests.models.files.test_peft_adapter import random_leaves
from tests.models.small_models import hidden_of, small
from tests.models.tiny_llama import here
from tests.models.torch_models import CAUSAL, random_torch, saved_and_opened

pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(0).integers(0, 53, (2, 9))
FAMILIES = {
    "llama": "llama: grouped heads of another width, untied",
    "mistral": "mistral: a window",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3: two local layers to one",
    "phi3": "phi3: fused, a window",
    "olmo2": "olmo2",
    "gpt-neox": "gpt_neox: parallel, a quarter of a head turns",
    "gpt2": "gpt2: tied",
}


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path):
    """A model of torch, its folder, and what we make of it: config and parameters."""
    from transformers import AutoModelForCausalLM

    model = random_torch(CAUSAL[FAMILIES[request.param]](), AutoModelForCausalLM.from_config)
    checkpoint, params = saved_and_opened(model, tmp_path / "base")
    return model, tmp_path / "base", checkpoint.config, params


def logits(config, lora, params):
    model = small(config, lora)
    hidden = hidden_of(model)(params, jnp.asarray(TOKENS, jnp.int32), jnp.ones(TOKENS.shape))
    return np.asarray(logits_of(hidden, model.unembedding(params)))


def torch_logits(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear", "lora_alpha": 10},
        {
            "target_modules": r".*\.(q_proj|qkv_proj|up_proj|query_key_value|dense|c_attn|c_fc)",
            "use_rslora": True,
            "lora_alpha": 7,
        },
        {"target_modules": ["o_proj", "dense_4h_to_h", "c_proj"], "init_lora_weights": "gaussian"},
    ],
    ids=["all-linear", "regex, rank-stabilised", "list"],
)
def test_an_adapter_that_peft_wrote_gives_the_same_logits(base, options, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    model, _, config, params = base
    turned = config.family == "gpt2"
    adapted = get_peft_model(
        model, LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=turned, **options)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    found = read_adapter(tmp_path / "adapter", config)
    ours = logits(config, found.lora, params | {p: jnp.asarray(x) for p, x in found.leaves.items()})
    theirs = torch_logits(adapted.eval())
    with adapted.disable_adapter():
        assert np.abs(theirs - torch_logits(adapted)).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


BIASED = ["query_key_value", "dense", "c_attn", "c_proj", "q_proj", "qkv_proj"]
EVERY = {"target_modules": "all-linear"}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": BIASED, "layers_to_transform": [1]},
        {"target_modules": BIASED, "bias": "lora_only"},
        EVERY | {"modules_to_save": ["lm_head", "embed_tokens", "embed_in", "embed_out"]},
        EVERY | {"use_dora": True},
        EVERY | {"use_dora": True, "use_rslora": True, "bias": "lora_only"},
        {"target_modules": BIASED, "use_dora": True, "layers_to_transform": 0},
    ],
    ids=["one layer", "biases", "ends", "dora", "dora and biases", "dora in one layer"],
)
def test_what_an_adapter_changes_in_its_base_is_read_as_peft_applies_it(base, options, tmp_path):
    """The base is loaded with the changes; what PEFT would go on training is not trained here."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, folder, config, _ = base
    if config.tied_embeddings and "modules_to_save" in options:
        pytest.skip("one matrix for both ends")
    named = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    options = {
        key: [one for one in value if one in named] if key in ("modules_to_save",) else value
        for key, value in options.items()
    }
    turned = config.family == "gpt2"
    adapted = get_peft_model(
        model, LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=turned, **options)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "magnitude" in name:
                weight.mul_(torch.rand_like(weight) + 0.5)
            elif weight.requires_grad:
                weight.normal_(0.0, 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    found = read_adapter(tmp_path / "adapter", config)
    checkpoint = dataclasses.replace(open_checkpoint(str(folder)), changes=found.changes)
    params = checkpoint.load(jnp.float32, here)
    ours = logits(config, found.lora, params | {p: jnp.asarray(x) for p, x in found.leaves.items()})
    np.testing.assert_allclose(ours, torch_logits(adapted.eval()), atol=2e-4, rtol=0)
    plain = logits(config, None, open_checkpoint(str(folder)).load(jnp.float32, here))
    assert np.abs(ours - plain).max() > 1e-2


@pytest.mark.parametrize("modules", [(), ("q_proj", "v_proj", "o_proj")], ids=["all", "some"])
def test_an_adapter_that_we_wrote_gives_the_same_logits_in_peft(base, modules, tmp_path, recwarn):
    from peft import PeftModel

    model, folder, config, params = base
    lora = LoRA(3, 5.0, 0.1, modules or config.projections)
    leaves = random_leaves(config, lora)
    leaves = {path: 0.2 * leaf for path, leaf in leaves.items()}
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", config, lora, leaves, str(folder))
    adapted = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    assert not [w for w in recwarn if "keys" in str(w.message) or "fan_in" in str(w.message)]
    ours = logits(config, lora, params | {p: jnp.asarray(x) for p, x in leaves.items()})
    np.testing.assert_allclose(ours, torch_logits(adapted), atol=1e-4, rtol=0)
    plain = torch_logits(adapted.merge_and_unload())
    np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=0)
