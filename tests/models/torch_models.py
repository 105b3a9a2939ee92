"""Random models of transformers, tiny, with every choice of a family switched on somewhere."""

from alol_jax.models.files.convert import open_checkpoint
from tests.models.tiny_llama import here

SIZES = {"vocab_size": 53, "initializer_range": 0.15}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _llama(**changes):
    from transformers import LlamaConfig

    fields = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**SIZES, **fields | changes)


def _gpt_neox(**changes):
    from transformers import GPTNeoXConfig

    fields = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 64,
    }
    return GPTNeoXConfig(**SIZES, **fields | changes)


def _gpt2(**changes):
    from transformers import GPT2Config

    fields = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return GPT2Config(**SIZES, **fields | changes)


def _encoder(kind, **changes):
    import transformers

    fields = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return getattr(transformers, kind)(**SIZES, **fields | changes)


def _bert(**changes):
    return _encoder("BertConfig", max_position_embeddings=64, **changes)


def _roberta(**changes):
    fields = {"max_position_embeddings": 66, "type_vocab_size": 1}
    return _encoder("RobertaConfig", **fields | changes)


CAUSAL = {
    "llama: grouped heads of another width, untied": lambda: _llama(
        num_key_value_heads=2,
        head_dim=10,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "llama: full heads, tied, long rotary wavelengths": lambda: _llama(
        num_key_value_heads=4,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "llama: rope scaled as llama 3.1's": lambda: _llama(rope_parameters=LLAMA3),
    "llama: rope scaled linearly": lambda: _llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
    ),
    "gpt_neox: parallel, a quarter of a head turns": lambda: _gpt_neox(
        rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25}
    ),
    "gpt_neox: sequential, whole heads turn, tanh gelu": lambda: _gpt_neox(
        use_parallel_residual=False,
        hidden_act="gelu_new",
        rope_parameters={"rope_theta": 5e3, "partial_rotary_factor": 1.0},
    ),
    "gpt2: tied": lambda: _gpt2(),
    "gpt2: untied, another mlp width, exact gelu": lambda: _gpt2(
        tie_word_embeddings=False, n_inner=70, activation_function="gelu"
    ),
}
ENCODERS = {
    "bert: two segments": lambda: _bert(),
    "bert: one segment, tanh gelu": lambda: _bert(type_vocab_size=1, hidden_act="gelu_new"),
    "roberta: one segment": lambda: _roberta(),
    "roberta: two segments, tanh gelu, another padding id": lambda: _roberta(
        type_vocab_size=2, hidden_act="gelu_new", pad_token_id=4, max_position_embeddings=69
    ),
}


def random_torch(config, make):
    """The model of a config with norms and biases that are not all ones and zeros."""
    import torch

    torch.manual_seed(0)
    model = make(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower() or "ln_" in name or name.endswith(".bias"):
                weight.uniform_(-0.5, 0.5) if name.endswith("bias") else weight.uniform_(0.5, 1.5)
    return model


def saved_and_opened(model, folder):
    """What our reader makes of the files that the model saves: the checkpoint and parameters."""
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, checkpoint.load("float32", here)
