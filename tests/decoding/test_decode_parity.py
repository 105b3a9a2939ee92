"""The same responses as transformers' ``generate``: greedy, beams, penalties, where they end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decoding.decode import make_decoder
from alol_jax.decoding.prompts import in_columns, one_per_row
from alol_jax.decoding.sampling import Sampling, filter_logits, penalise_repetition, seen_tokens
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.transformer import Transformer
from tests.models.tiny_llama import here

pytestmark = pytest.mark.parity

VOCABULARY, ENDS, NEW, WIDTH = 24, (7, 11), 10, 6
FAMILIES = {  # model_type -> fields of its config.json
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": WIDTH + NEW,
        "tie_word_embeddings": False,
    },
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": WIDTH + NEW,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": WIDTH + NEW},
}
MODES = {
    "greedy": Sampling(NEW),
    "greedy, two ends, penalty": Sampling(NEW, end=ENDS, repetition_penalty=1.7),
    "2 beams, one end, penalty": Sampling(NEW, end=ENDS[:1], repetition_penalty=2.5, beams=2),
    "3 beams, two ends": Sampling(NEW, end=ENDS, beams=3),
    "4 beams": Sampling(NEW, beams=4),
}
MODELS = 50
NEAR = 1e-4  # candidates whose scores differ by less may change places


@dataclasses.dataclass(frozen=True)
class Pair:
    """A random model of PyTorch, what our reader makes of its saved files, and a prompt."""

    theirs: object
    model: Transformer
    params: dict[str, jax.Array]
    prompt: tuple[int, ...]


def pair(name: str, seed: int, folder) -> Pair:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    nothing = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shared = {"vocab_size": VOCABULARY, "initializer_range": 0.5, **nothing}
    config = AutoConfig.for_model(name, **shared, **FAMILIES[name])
    theirs = AutoModelForCausalLM.from_config(config).float().eval()
    theirs.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    params = checkpoint.load(jnp.float32, here)
    model = Transformer(checkpoint.config, None, jnp.dtype("float32"), "none")
    draw = np.random.default_rng(seed)
    prompt = draw.integers(0, VOCABULARY, 1 + seed % WIDTH)
    return Pair(theirs, model, params, tuple(prompt.tolist()))


@pytest.fixture(scope="module", params=FAMILIES)
def pairs(request, tmp_path_factory):
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other with models this small
    folder = tmp_path_factory.mktemp(request.param)
    yield [pair(request.param, seed, folder / str(seed)) for seed in range(MODELS)]
    torch.set_num_threads(threads)


def generated(theirs, prompt, sampling, **options):
    """What transformers writes for one prompt without padding."""
    import torch

    options = {"do_sample": False, "num_beams": sampling.beams} | options
    return theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=list(sampling.end) or None,
        pad_token_id=0,
        **options,
    )


def decoded(given: Pair, sampling):
    """What we write for the prompt, left-padded with an end token where it is short."""
    prompts = one_per_row([given.prompt], WIDTH, ENDS[0])
    keys = jax.random.split(jax.random.key(0), 1)
    decoder = make_decoder(given.model, sampling)
    ids, lengths = jax.device_get(decoder(given.params, prompts, keys))
    return ids[0, : lengths[0]].tolist()


def narrowest(theirs, prompt, sampling) -> float:
    """The least difference between candidates that transformers had to put in order."""
    gaps = []

    def look(scores, count):
        ordered = scores.flatten().sort(descending=True).values[: count + 1]
        gaps.append(float(-ordered.diff().max()))

    def among_beams(accumulated_log_probs, beams_to_keep, **others):
        look(accumulated_log_probs, beams_to_keep)
        return continuations(
            accumulated_log_probs=accumulated_log_probs, beams_to_keep=beams_to_keep, **others
        )

    def among_tokens(ids, scores):
        look(scores, 1)
        return scores

    if sampling.beams == 1:
        generated(theirs, prompt, sampling, logits_processor=[among_tokens])
    else:
        continuations = theirs._get_top_k_continuations
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(theirs, "_get_top_k_continuations", among_beams, raising=False)
            generated(theirs, prompt, sampling)
    return min(gaps)


@pytest.mark.parametrize("sampling", MODES.values(), ids=MODES)
def test_a_row_decoded_alone_is_what_transformers_generates_token_for_token(pairs, sampling):
    lengths, others = [], []
    for given in pairs:
        expected = generated(given.theirs, given.prompt, sampling)[0, len(given.prompt) :].tolist()
        ours = decoded(given, sampling)
        lengths.append(len(ours))
        if ours != expected:
            gap = narrowest(given.theirs, given.prompt, sampling)
            assert gap < NEAR, f"{ours} is not {expected} and the candidates lay {gap} apart"
            others.append(gap)
    assert len(others) <= 2, f"too many near ties: {others}"
    assert len(set(lengths)) >= 4 if sampling.end else set(lengths) == {NEW}


def test_greedy_and_beams_are_two_things_here(pairs):
    same = [decoded(g, MODES["greedy"]) == decoded(g, MODES["4 beams"]) for g in pairs]
    assert np.mean(same) < 0.8


@pytest.mark.parametrize("sampling", MODES.values(), ids=MODES)
def test_a_tie_is_seen_where_there_is_one(pairs, sampling):
    import torch

    theirs, prompt = pairs[0].theirs, pairs[0].prompt
    assert narrowest(theirs, prompt, sampling) > NEAR
    weight = theirs.get_output_embeddings().weight
    with torch.no_grad():
        kept = weight.clone()
        weight.zero_()
        assert narrowest(theirs, prompt, sampling) == 0.0
        weight.copy_(kept)


def test_draws_come_from_the_scores_that_transformers_draws_from(pairs):
    drawing = Sampling(1, temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=1.7)
    for given in pairs[:20]:
        out = generated(
            given.theirs,
            given.prompt,
            drawing,
            do_sample=True,
            temperature=drawing.temperature,
            top_k=drawing.top_k,
            top_p=drawing.top_p,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        read = in_columns(one_per_row([given.prompt], WIDTH, ENDS[0]))
        seen = seen_tokens(*read, VOCABULARY, drawing)
        ours = filter_logits(
            penalise_repetition(jnp.asarray(out.logits[0].numpy()), seen, drawing), drawing
        )
        np.testing.assert_allclose(ours, out.scores[0].numpy(), rtol=1e-5)
