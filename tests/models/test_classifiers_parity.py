"""The same logits as PyTorch's classifiers, and as modules that transformers does not have."""

import json

import jax
import numpy as np
import pytest

from alol_jax.models.attention import Attention
from alol_jax.models.files.classifiers import open_classifier
from alol_jax.models.heads import slot_mask
from alol_jax.text.packing import GridShape, Layout, to_grid
from tests.models.tiny_llama import here
from tests.models.torch_models import CAUSAL, ENCODERS, random_torch

pytestmark = pytest.mark.parity

LENGTHS = (11, 7, 2, 4)
PAD, END = 1, 9  # PAD is in no text: transformers finds the last token by it
DRAW = np.random.default_rng(3)
TEXTS = [tuple(DRAW.integers(10, 53, n - 1)) + (END,) for n in LENGTHS]
TEXTS[0] = TEXTS[0][:3] + (END,) + TEXTS[0][4:]
HEAD_FILE = "custom_roberta_classification_head"


def padded(side):
    width = max(LENGTHS)
    tokens, mask = np.full((len(TEXTS), width), PAD), np.zeros((len(TEXTS), width), int)
    for row, text in enumerate(TEXTS):
        place = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        tokens[row, place], mask[row, place] = text, 1
    return tokens, mask


def torch_inputs(tokens, mask, offset=0):
    """With position ids that count real tokens, whatever the padding."""
    import torch

    positions = np.maximum(np.cumsum(mask, 1) - 1, 0) + offset
    return {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask),
        "position_ids": torch.tensor(positions),
    }


def opened(folder):
    return open_classifier(
        str(folder), dtype="float32", sharding=here, attention=Attention("xla", None)
    )


def logits_of(stored, tokens, mask):
    """Our logits of one text per row."""
    slots = mask[:, None] > 0
    return jax.jit(stored.classifier)(stored.params, tokens, mask, None, slots)[:, 0]


def logits_side_by_side(stored):
    """Our logits of `TEXTS`, two in each row."""
    shape, layout = GridShape(2, 24, 1, 2), Layout(length=0, share=True, pad_id=END)
    grid = to_grid(
        [[0, 1], [2, 3]], lambda n: (np.array(TEXTS[n]), (np.zeros(0, int),)), shape, layout
    )
    read = (grid.ids, grid.segment, grid.position, slot_mask(grid))
    return jax.jit(stored.classifier)(stored.params, *read).reshape(len(TEXTS), -1)


def assert_says(stored, expected, batch):
    """Our logits of a padded batch, and of texts side by side, are PyTorch's, and those differ from
    text to text."""
    assert np.abs(expected).max() > 0.1 and np.std(expected, axis=0).min() > 1e-2
    np.testing.assert_allclose(logits_of(stored, *batch), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits_side_by_side(stored), expected, rtol=0, atol=1e-4)


CLASSES = {
    "LlamaForSequenceClassification": "llama: grouped heads of another width, untied",
    "MistralForSequenceClassification": "mistral: a window",
    "Qwen2ForSequenceClassification": "qwen2",
    "Qwen3ForSequenceClassification": "qwen3",
    "Gemma2ForSequenceClassification": "gemma2",
    "Gemma3TextForSequenceClassification": "gemma3: two local layers to one",
    "Phi3ForSequenceClassification": "phi3: fused, a window",
    "GPTNeoXForSequenceClassification": "gpt_neox: parallel, a quarter of a head turns",
    "GPT2ForSequenceClassification": "gpt2: tied",
    "BertForSequenceClassification": "bert: two segments",
    "RobertaForSequenceClassification": "roberta: two segments, tanh gelu, another padding id",
}


@pytest.fixture(scope="module", params=CLASSES)
def pair(request, tmp_path_factory):
    """A random classifier of transformers, and what our reader makes of its files."""
    import transformers

    config = (CAUSAL | ENCODERS)[CLASSES[request.param]]()
    config.num_labels = 3
    if request.param not in ("BertForSequenceClassification", "RobertaForSequenceClassification"):
        config.pad_token_id = PAD
    theirs = random_torch(config, getattr(transformers, request.param))
    folder = tmp_path_factory.mktemp("classifier")
    theirs.save_pretrained(folder)
    return theirs, opened(folder)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_pytorchs_whatever_the_padding(pair, side):
    import torch

    theirs, stored = pair
    tokens, mask = padded(side)
    offset = stored.checkpoint.config.embedding.position_offset
    with torch.no_grad():
        if stored.classifier.pooling == "first" and side == "left":
            # PyTorch's encoders read the first column, padding or not
            rows = [
                theirs(**torch_inputs(np.array([text]), np.ones((1, len(text)), int), offset))
                for text in TEXTS
            ]
            expected = np.concatenate([row.logits.numpy() for row in rows])
        else:
            expected = theirs(**torch_inputs(tokens, mask, offset)).logits.numpy()
    assert stored.classifier.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert_says(stored, expected, (tokens, mask))


# what transformers lacks


def _bodied(name, make, **changes):
    config = (CAUSAL | ENCODERS)[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    return random_torch(config, make)


def save_as(model, folder, architecture, **fields):
    """The files of a module that is no class of transformers."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    config = {**model.config.to_dict(), "architectures": [architecture], **fields}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def reward_model(config):
    """GPT-NeoX with a biased linear map to one number (OpenAssistant)."""
    import torch
    from transformers import GPTNeoXModel

    class GPTNeoXRewardModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = config
            self.gpt_neox = GPTNeoXModel(config)
            self.out_proj = torch.nn.Linear(config.hidden_size, 1)

        def forward(self, pooling, **inputs):
            hidden = self.gpt_neox(**inputs).last_hidden_state
            real = inputs["attention_mask"]
            if pooling == "mean":
                shares = real / real.sum(1, keepdim=True)
                return self.out_proj((hidden * shares[..., None]).sum(1))
            last = real.cumsum(1).argmax(1)
            return self.out_proj(hidden[torch.arange(len(hidden)), last])

    return GPTNeoXRewardModel()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_reward_model_scores_as_its_torch_module(pooling, tmp_path):
    import torch

    theirs = _bodied("gpt_neox: parallel, a quarter of a head turns", reward_model)
    fields = {"model_type": "gpt_neox_reward_model", "pooling": pooling}
    save_as(theirs, tmp_path, "GPTNeoXRewardModel", **fields)
    stored = opened(tmp_path)
    assert stored.classifier.pooling == pooling
    for side in ("left", "right"):
        batch = padded(side)
        with torch.no_grad():
            expected = theirs(pooling, **torch_inputs(*batch)).numpy()
        assert_says(stored, expected, batch)


def offensive_model(config):
    """DialoGPT with a linear map at each end of an utterance (ToxiChat)."""
    import torch
    from transformers import GPT2LMHeadModel

    class GPT2ForOC_S_offensive(GPT2LMHeadModel):
        def __init__(self):
            super().__init__(config)
            self.off_classifier = torch.nn.Linear(config.n_embd, 2)

        def forward(self, places, **inputs):
            return self.off_classifier(self.transformer(**inputs).last_hidden_state[places])

    return GPT2ForOC_S_offensive()


def test_utterances_are_judged_as_by_the_torch_module(tmp_path):
    import torch

    theirs = _bodied("gpt2: tied", offensive_model, eos_token_id=END)
    save_as(theirs, tmp_path, "GPT2ForOC_S_offensive")
    stored = opened(tmp_path)
    tokens, mask = padded("right")
    ends = np.nonzero(tokens == END)
    assert len(ends[0]) == len(TEXTS) + 1
    # The published code pads with the end token, after it has noted the ends, and masks nothing.
    filled = np.where(mask > 0, tokens, END)
    with torch.no_grad():
        expected = theirs(ends, input_ids=torch.tensor(filled)).numpy()
    seen = np.cumsum(tokens == END, axis=1) - (tokens == END)  # ends before each token
    first = logits_of(stored, filled, mask * (seen == 0))
    np.testing.assert_allclose(first, expected[[0, 2, 3, 4]], rtol=0, atol=1e-4)
    assert_says(stored, expected[1:], (filled, mask))  # of two ends in the first text, the last


def critic_head(width):
    import torch

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(width, 512)
            self.out_proj = torch.nn.Linear(512, 1)

        def forward(self, pooled):
            return self.out_proj(torch.nn.functional.gelu(self.dense(pooled)))

    return Head()


def test_a_critic_scores_as_roberta_and_its_torch_head_from_the_published_files(tmp_path):
    import torch
    from transformers import RobertaModel

    theirs = _bodied("roberta: one segment", RobertaModel, initializer_range=0.3)
    head = critic_head(theirs.config.hidden_size)
    with torch.no_grad():  # so large that an approximate GELU would be seen
        for weight in head.parameters():
            weight *= 5
    theirs.save_pretrained(tmp_path)
    torch.save(head.state_dict(), tmp_path / f"{HEAD_FILE}.pt")
    stored = opened(tmp_path)
    batch = padded("right")
    offset = stored.checkpoint.config.embedding.position_offset
    with torch.no_grad():
        logits = head(theirs(**torch_inputs(*batch, offset)).pooler_output)
    assert_says(stored, logits.numpy(), batch)
    scores = stored.classifier.scores(logits_of(stored, *batch))
    np.testing.assert_allclose(scores, torch.sigmoid(logits), rtol=0, atol=1e-4)


def test_a_classifier_of_torch_shards_keeps_its_head(tmp_path):
    import torch
    from transformers import GPT2ForSequenceClassification

    config = CAUSAL["gpt2: tied"]()
    config.num_labels, config.pad_token_id = 1, PAD
    theirs = random_torch(config, GPT2ForSequenceClassification)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    old = theirs.state_dict() | {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64).bool()}
    parts = [dict(list(old.items())[start::2]) for start in (0, 1)]
    for number, part in enumerate(parts):
        torch.save(part, tmp_path / f"pytorch_model-0000{number + 1}-of-00002.bin")
    places = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(old)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    stored, batch = opened(tmp_path), padded("right")
    with torch.no_grad():
        expected = theirs(**torch_inputs(*batch)).logits.numpy()
    assert_says(stored, expected, batch)
