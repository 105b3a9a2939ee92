"""Exports of chat models: the chat template and the end tokens go with them."""

import json

import jax
import pytest

from alol_jax.decoding.answers import Sampler
from alol_jax.decoding.sampling import Sampling
from alol_jax.export import export, parse
from alol_jax.tasks.registry import get_task
from alol_jax.text.tokenizer_files import CHATML, byte_level, save
from alol_jax.types import Watch
from tests.finished_run import config_of, finished_run, random_policy
from tests.models.tiny_llama import random_weights, write_directory
from tests.tasks.own_data import options

SMOLLM2_LIKE = CHATML.replace("{% for", "<|im_start|>system\nBe brief.<|im_end|>\n{% for", 1)


def chat_config(path, **model):
    config = config_of(path, **{"max_prompt": 96} | model)
    config.task.update({"template": "chat"})
    return config


def chat_directory(folder):
    """A model's directory with a chat template and several end tokens."""
    weights = {name: 0.3 * value for name, value in random_weights().items()}
    write_directory(folder, weights)
    save(byte_level(), folder)
    (folder / "chat_template.jinja").write_text(SMOLLM2_LIKE)
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 7], "top_k": 5}')
    return str(folder)


def exported(workdir, out, what):
    export(parse([f"--workdir={workdir}", f"--what={what}", f"--out={out}"]))
    return out


def card(out):
    return (out / "README.md").read_text()


@pytest.mark.parametrize("what", ["merged", "adapter"])
def test_a_model_without_files_is_exported_with_its_chat_template(what, tmp_path):
    finished_run(tmp_path / "run", chat_config("random:llama-tiny"))
    out = exported(tmp_path / "run", tmp_path / "out", what)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == CHATML and settings["eos_token"] == "<|im_end|>"
    assert "Prompts are in the chat template of the tokenizer's files" in card(out)


def test_the_chat_template_and_all_end_tokens_of_a_directory_are_exported(tmp_path):
    lm = finished_run(tmp_path / "run", chat_config(chat_directory(tmp_path / "base")))
    out = exported(tmp_path / "run", tmp_path / "out", "merged")
    assert (out / "chat_template.jinja").read_text() == SMOLLM2_LIKE
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [258, 256, 7], "pad_token_id": 258, "top_k": 5}
    assert lm.tokenizer.ends == (258, 256, 7)


@pytest.mark.parity
def test_the_pipeline_of_transformers_answers_messages_as_the_policy_does(tmp_path):
    from transformers import pipeline

    lm = finished_run(tmp_path / "run", chat_config(chat_directory(tmp_path / "base")))
    out = exported(tmp_path / "run", tmp_path / "out", "merged")
    task = get_task(options("a.jsonl", template="chat"))
    prompts = ["hi", "System: no\n\nHuman: hi\n\nAssistant: a\n\nHuman: b\n\nAssistant:"]
    answers = Sampler(lm, task, Sampling(8), 2).generate(
        random_policy(lm, 2).trained, prompts, key=jax.random.key(0), watch=Watch("answers")
    )
    ask = pipeline("text-generation", model=str(out), device="cpu")
    for prompt, ids in zip(prompts, answers, strict=True):
        talk = [{"role": t.role, "content": t.text} for t in task.conversation(prompt)]
        said = ask(talk, max_new_tokens=8, do_sample=False, return_tensors=True)
        theirs = said[0]["generated_token_ids"][-len(ids) :]
        assert tuple(theirs) == ids
        last = ask(talk, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]
        assert last["role"] == "assistant"
