"""GGUF files of every family: read back as they were, by the names and keys of llama.cpp."""

import dataclasses
import re

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.config import ATTENTION_PROJECTIONS, AttentionConfig, Local, differences
from alol_jax.models.families.registry import FAMILIES
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.gguf_file import described, write_gguf
from alol_jax.models.files.merge import StoredTensors, weights_from_params
from alol_jax.models.presets import PRESETS
from alol_jax.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rotary,
    YarnScaling,
)
from alol_jax.objectives.logprobs import logits_of
from tests.models.small_models import hidden_of, random_params, small
from tests.models.tiny_llama import here

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 40))  # longer than the windows
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ("a", "b", "ab", "<end>", *(f"[PAD{n}]" for n in range(4, 264))),
    "tokenizer.ggml.token_type": (1, 1, 1, 3) + (5,) * 260,
    "tokenizer.ggml.merges": ("a b",),
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.ggml.padding_token_id": 3,
}
TINY = {
    name: PRESETS[f"{name}-tiny"]
    for name in ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "gpt2")
} | {
    name: dataclasses.replace(PRESETS[f"{name}-tiny"], attention=AttentionConfig())
    for name in ("mistral", "phi3")
}
TINY["gpt_neox"] = dataclasses.replace(PRESETS["gpt-neox-tiny"], activation="gelu_tanh")


def changed(name, **fields):
    return dataclasses.replace(TINY[name], **fields)


def rotated(name, scaling, width=None):
    rotary = TINY[name].rotary
    return changed(name, rotary=Rotary(rotary.theta, width or rotary.width, scaling))


FACTORS = tuple(np.linspace(1, 3, 6).tolist()), tuple(np.linspace(2, 9, 6).tolist())
MORE = {
    "llama: biases, untied": changed(
        "llama", biases=TINY["llama"].projections, tied_embeddings=False
    ),
    "llama: llama 3's scaling": rotated("llama", Llama3Scaling(8.0, 1.0, 4.0, 64)),
    "llama: linear scaling": rotated("llama", LinearScaling(4.0)),
    "qwen2: untied": changed("qwen2", tied_embeddings=False),
    "gemma3: the whole layers scaled, untied": dataclasses.replace(
        rotated("gemma3", LinearScaling(8.0)), tied_embeddings=False
    ),
    "phi3: longrope, a part of a head, a window that no text exceeds": dataclasses.replace(
        rotated("phi3", LongRope(*FACTORS, 20, 1.25), width=12),
        attention=AttentionConfig(local=Local(1024)),
    ),
    "gpt2: untied": changed("gpt2", tied_embeddings=False),
    "gpt_neox: sequential": changed("gpt_neox", residual="pre"),
}


def written(file, config, params, dtype="float32", fields=TOKENIZER):
    model = described(config)
    tensors = StoredTensors(config, model.rows, weights_from_params(params))
    write_gguf(file, model.keys | fields, tensors, model.vectors, dtype)
    return file


def random_weights_of(config):
    """Random parameters whose norms are about one; Gemma's are stored less one."""
    params = random_params(small(config))
    if config.norm != "rms_plus_one":
        return params
    return {path: leaf - path.endswith("scale") for path, leaf in params.items()}


def logits(config, params):
    model = small(config)
    hidden = hidden_of(model)(params, TOKENS, np.ones_like(TOKENS))
    return np.asarray(logits_of(hidden, model.unembedding(params)))


@pytest.mark.parametrize("name", [*TINY, *MORE])
def test_our_reader_finds_the_same_model_in_what_was_written(name, tmp_path):
    config = (TINY | MORE)[name]
    params = random_params(small(config))
    checkpoint = open_checkpoint(str(written(tmp_path / "m.gguf", config, params)))
    assert list(differences(config, checkpoint.config)) == []
    assert checkpoint.architecture in FAMILIES[checkpoint.config.family].architectures
    found = checkpoint.load(jnp.float32, here)
    assert found.keys() == params.keys()
    long = config.for_texts(TOKENS.shape[1])
    ours, theirs = logits(long, params), logits(checkpoint.config.for_texts(40), found)
    assert np.abs(ours).max() > 0.5
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_a_llama_3_that_was_read_is_written_and_read_again(tmp_path):
    given = MORE["llama: llama 3's scaling"]
    params = random_params(small(given))
    first = open_checkpoint(str(written(tmp_path / "a.gguf", given, params)))
    assert isinstance(first.config.rotary.scaling, LongRope)
    again = open_checkpoint(str(written(tmp_path / "b.gguf", first.config, params)))
    assert again.config == first.config
    assert list(differences(given, again.config)) == []
    divisors = described(given).vectors["rope_freqs.weight"]
    stored = described(again.config).vectors["rope_freqs.weight"]
    np.testing.assert_array_equal(stored, np.float32(divisors))


@pytest.mark.parametrize("name", [*TINY, *MORE])
def test_tensors_and_keys_have_the_names_of_the_gguf_package(name):
    config = (TINY | MORE)[name]
    model, form = described(config), FAMILIES[config.family].gguf
    arch = {text: arch for arch, text in gguf.MODEL_ARCH_NAMES.items()}[form.arch]
    name_of = gguf.get_tensor_name_map(arch, config.layers)
    hf = {row.paths: row for row in FAMILIES[config.family].rows(config)}
    for row in model.rows:
        if row.paths == ("head/kernel",):
            assert row.name == gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.OUTPUT] + ".weight"
            continue
        stem, end = hf[row.paths].name.format(i=1).rsplit(".", 1)
        assert row.name.format(i=1) == f"{name_of.get_name(stem)}.{end}"
    known = [gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]]
    assert {vector.removesuffix(".weight") for vector in model.vectors} <= set(known)
    assert set(model.keys) <= set(keys_of_the_package(form.arch))


def keys_of_the_package(arch, room=gguf.Keys):
    for value in vars(room).values():
        if isinstance(value, str):
            yield value.replace("{arch}", arch)
        elif isinstance(value, type):
            yield from keys_of_the_package(arch, value)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_gemmas_norms_are_stored_with_one_added(name, tmp_path):
    params = random_params(small(TINY[name]))
    reader = gguf.GGUFReader(written(tmp_path / "m.gguf", TINY[name], params, "bfloat16"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for stored, ours in (
        ("blk.1.post_ffw_norm.weight", params["layers/mlp_out_norm/scale"][1]),
        ("output_norm.weight", params["final_norm/scale"]),
    ):
        np.testing.assert_array_equal(tensors[stored].data, np.asarray(ours) + 1)
    assert tensors["token_embd.weight"].tensor_type.name == "BF16"


def test_phi_3s_divisors_are_two_vectors_and_gpt_2s_positions_are_not_rounded(tmp_path):
    config = MORE["phi3: longrope, a part of a head, a window that no text exceeds"]
    model = described(config)
    assert {name: tuple(v.tolist()) for name, v in model.vectors.items()} == {
        "rope_factors_short.weight": tuple(np.float32(FACTORS[0]).tolist()),
        "rope_factors_long.weight": tuple(np.float32(FACTORS[1]).tolist()),
    }
    assert model.keys["phi3.rope.scaling.attn_factor"] == 1.25
    assert model.keys["phi3.attention.sliding_window"] == 0
    params = random_params(small(TINY["gpt2"]))
    reader = gguf.GGUFReader(written(tmp_path / "m.gguf", TINY["gpt2"], params, "bfloat16"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["position_embd.weight"] == "F32" and kinds["blk.0.attn_qkv.weight"] == "BF16"


def attention(name, **fields):
    return changed(name, attention=dataclasses.replace(TINY[name].attention, **fields))


REFUSED = [
    ("attention.local = Local(window=24", PRESETS["mistral-tiny"]),
    ("of this phi3 has no form in llama.cpp, whose phi3 computes with None", PRESETS["phi3-tiny"]),
    ("attention.local = Local(window=9", attention("qwen2", local=Local(9, (False, True)))),
    (
        "biases = ('q_proj', 'k_proj', 'v_proj', 'o_proj') of this qwen3 has",
        changed("qwen3", biases=ATTENTION_PROJECTIONS),
    ),
    ("attention.cap = None of this gemma2 has", attention("gemma2", cap=None)),
    ("attention.scale = 0.1 of this gemma2 has", attention("gemma2", scale=0.1)),
    ("tied_embeddings = False of this gemma2 has", changed("gemma2", tied_embeddings=False)),
    ("logit_cap = 30.0 of this gemma3_text has", changed("gemma3", logit_cap=30.0)),
    (
        "attention.local = Local(window=24, pattern=(True, False)",
        attention("gemma3", local=Local(24, (True, False), TINY["gemma3"].rotary_of(True))),
    ),
    ("tied_embeddings = True of this olmo2 has", changed("olmo2", tied_embeddings=True)),
    ("activation = 'gelu' of this gpt2 has", changed("gpt2", activation="gelu")),
    ("rotary.scaling = 'YarnScaling'", rotated("qwen2", YarnScaling(4.0, 64))),
    ("rotary.scaling = 'DynamicScaling'", rotated("llama", DynamicScaling(2.0, 64))),
    ("rotary.scaling = 'Llama3Scaling'", rotated("qwen3", Llama3Scaling(8.0, 1.0, 4.0, 64))),
    (
        "rotary.scaling = 'LongRope' of this llama has no form in llama.cpp, whose llama computes "
        "with None",
        rotated("llama", LongRope((1.5,) * 8, (2.0,) * 8, 64)),
    ),
    (
        "of this llama has no form in llama.cpp, whose llama computes with None",
        rotated("llama", LongRope((1.5,) * 8, (1.5,) * 8, 64, 1.25)),
    ),
    (
        "olmo2.attention.key_length = 32 is not implemented (only 16 is)",
        changed("olmo2", head_width=32, rotary=Rotary(5e5, 32)),
    ),
    ("qwen3.rope.dimension_count = 16 is not", rotated("qwen3", None, width=16)),
    (
        "activation = 'gelu' of this gpt_neox has no form in llama.cpp, whose gptneox computes "
        "with 'gelu_tanh'",
        PRESETS["gpt-neox-tiny"],
    ),
    ("bert is not written as GGUF (only llama, mistral, ", PRESETS["minilm-l6"]),
]


@pytest.mark.parametrize(("said", "config"), REFUSED, ids=[said for said, _ in REFUSED])
def test_what_llama_cpp_cannot_compute_is_named_and_not_written(said, config):
    with pytest.raises(UserError, match=f"^--what=gguf: .*{re.escape(said)}.*: use --what=merged$"):
        described(config)


def opened(file, change, name="gemma2"):
    """What our reader says of a tiny model whose keys are changed."""
    config = TINY[name]
    model = described(config)
    params = random_params(small(config))
    tensors = StoredTensors(config, model.rows, weights_from_params(params))
    write_gguf(file, model.keys | TOKENIZER | change, tensors, {}, "float32")
    return open_checkpoint(str(file))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gemma2.attention.sliding_window_pattern": 3}, "pattern = 3 is not implemented (only 2"),
        ({"gemma2.rope.scaling.type": "yarn"}, "'yarn' is not implemented (only 'none', 'linear'"),
        ({"gemma2.rope.scaling.type": "linear"}, "gemma2.rope.scaling.factor is missing"),
        ({"gemma2.attn_logit_softcapping": "high"}, "must be a number, found 'high'"),
        ({"gemma2.block_count": "two"}, "gemma2.block_count must be one whole number"),
        ({"gemma2.attention.scale": 2.0}, "unknown key gemma2.attention.scale = 2.0"),
        ({"llama.vocab_size": 9}, "unknown key llama.vocab_size = 9"),
    ],
)
def test_a_key_that_is_not_followed_is_named(change, said, tmp_path):
    with pytest.raises(UserError) as error:
        opened(tmp_path / "m.gguf", change)
    assert said in str(error.value)


def test_a_window_of_phi_3_is_read(tmp_path):
    config = opened(tmp_path / "m.gguf", {"phi3.attention.sliding_window": 24}, "phi3").config
    assert list(differences(config, PRESETS["phi3-tiny"])) == []


def test_a_factor_of_phi_3_without_the_vectors_that_it_belongs_to_is_named(tmp_path):
    key = "phi3.rope.scaling.attn_factor"
    assert opened(tmp_path / "m.gguf", {key: 1.0}, "phi3").config.rotary.scaling is None
    with pytest.raises(UserError, match=f"{key} = 1.5 is not implemented .only 1.0 is.: choose"):
        opened(tmp_path / "m.gguf", {key: 1.5}, "phi3")


def test_missing_caps_are_those_of_the_format(tmp_path):
    config = opened(tmp_path / "m.gguf", {"gemma2.attention.sliding_window_pattern": 2}).config
    assert (config.attention.cap, config.logit_cap) == (50.0, 30.0)


# parity with transformers


def wide(name, near=None):
    """Heads of 256 features, at whose width Gemma has its usual scale of scores."""
    was = TINY[name]
    local = dataclasses.replace(was.attention.local, rotary=near)
    attended = dataclasses.replace(was.attention, local=local, scale=256**-0.5)
    rotary = dataclasses.replace(was.rotary, width=256)
    return {"head_width": 256, "rotary": rotary, "attention": attended}


# transformers' own reader of GGUF files knows no biases of Llama, no rope scaling, no OLMo 2; the
# head width of Qwen3 and the caps of Gemma are those of its defaults.
THEIRS = {
    "llama": TINY["llama"],
    "mistral": changed("mistral", tied_embeddings=False),
    "qwen2": TINY["qwen2"],
    "qwen2: untied": MORE["qwen2: untied"],
    "qwen3": changed("qwen3", head_width=128, rotary=Rotary(1e6, 128)),
    "gemma2": changed("gemma2", **wide("gemma2")),
    "gemma3": changed("gemma3", **wide("gemma3", near=Rotary(1e4, 256))),
    "phi3": TINY["phi3"],
    "gpt2": TINY["gpt2"],
    "gpt2: untied": MORE["gpt2: untied"],
}


@pytest.mark.parity
@pytest.mark.parametrize("name", THEIRS)
def test_transformers_computes_the_same_from_what_was_written(name, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    config = THEIRS[name]
    params = random_weights_of(config)
    written(tmp_path / "m.gguf", config, params)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(TOKENS)).logits.numpy()
    ours = logits(config, params)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
