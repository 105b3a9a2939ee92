"""`export --push`: a hub on this machine gets the files and serves them back; refusals."""

import datasets
import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants

from alol_jax.errors import UserError
from alol_jax.export import export, parse
from alol_jax.models.language_model import open_language_model
from alol_jax.runs.workdir import Run
from alol_jax.types import TrainingTable
from configs import own
from tests.finished_run import config_of, finished_run, policy_logits, random_policy
from tests.prepare.hub import serving_hub
from tests.prepare.server import closed_port
from tests.tiny_run import annotated, annotated_rows, mesh_of

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 9))
ROWS = annotated_rows(annotated(n, response=n % 3 + 1, kept=n % 4 != 0) for n in range(30))
WHOLE = {"rank": 0, "alpha": 1.0, "dropout": 0.0, "modules": ("all-linear",)}


@pytest.fixture
def hub(monkeypatch):
    with serving_hub() as it:
        it.token = "hf_right"
        monkeypatch.setattr(constants, "ENDPOINT", it.address)
        template = it.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", it.token)
        yield it


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A finished run of the tiny Llama with adapters: its workdir and its model."""
    workdir = tmp_path_factory.mktemp("llama")
    return workdir, finished_run(workdir, config_of("random:llama-tiny"))


@pytest.fixture
def table(tmp_path):
    """A workdir that holds nothing but a training table, of the columns in ``reads``."""

    def made(*reads):
        def select(reads, *, context) -> TrainingTable:
            return TrainingTable(ROWS)

        options = {"allowed": {"select": 6}, "redo": False, "stopping": lambda: False}
        folder = tmp_path / "-".join(("run", *reads))
        run = Run(folder, {"select": 6}, own.get_config(), say=lambda line: None, **options)
        run.stage("select", select, reads)
        return folder

    return made


def pushed(workdir, what, name, *flags):
    export(parse([f"--workdir={workdir}", f"--what={what}", f"--push={name}", *flags]))


def served(hub, name, folder, kind="model"):
    """What the hub gives to whoever asks for it."""
    return huggingface_hub.snapshot_download(
        name, repo_type=kind, endpoint=hub.address, cache_dir=folder
    )


def test_a_merged_model_is_served_back_with_the_logits_of_the_policy(llama, hub, tmp_path, capsys):
    workdir, lm = llama
    pushed(workdir, "merged", "someone/mine")
    assert f"pushed: {hub.address}/someone/mine" in capsys.readouterr().out
    folder = served(hub, "someone/mine", tmp_path)
    again = open_language_model(config_of(folder, lora=WHOLE).model, mesh_of(1))
    ours = policy_logits(lm, random_policy(lm, 2).trained, TOKENS)
    theirs = policy_logits(again, again.trainable(None), TOKENS)
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)
    card = hub.repositories["models/someone/mine"]["README.md"].decode()
    assert 'from_pretrained("someone/mine")' in card and "THIS_FOLDER" not in card
    assert hub.private == set()


def test_an_adapter_is_served_back_bit_for_bit_and_can_be_private(llama, hub, tmp_path):
    workdir, lm = llama
    out = tmp_path / "out"
    pushed(workdir, "adapter", "someone/adapter", "--private", f"--out={out}")
    assert hub.private == {"models/someone/adapter"}
    folder = served(hub, "someone/adapter", tmp_path)
    again = open_language_model(
        config_of("random:llama-tiny", adapter=folder).model, mesh_of(1)
    ).trainable(None)
    for path, leaf in random_policy(lm, 2).trained.items():
        np.testing.assert_array_equal(again[path], jnp.asarray(leaf), err_msg=path)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert hub.repositories["models/someone/adapter"] == files


def test_the_annotated_rows_are_served_back_as_a_data_set_with_a_card(table, hub, tmp_path):
    pushed(table("ref_logp", "reward", "advantage"), "data", "someone/rows")
    folder = served(hub, "someone/rows", tmp_path, "dataset")
    rows = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(ROWS)
    for row, stored in zip(rows, ROWS, strict=True):
        assert (row["id"], row["prompt"]) == (stored.example_id, stored.prompt_text)
        assert (row["response"], row["source"]) == (stored.response_text, stored.source)
        for name in ("reward", "value", "advantage", "kept"):
            assert row[name] == getattr(stored, name)
        assert row["ref_logp"] == pytest.approx(sum(map(float, stored.ref_logp)), abs=1e-6)
        assert row["response_tokens"] == len(stored.response)
    card = hub.repositories["datasets/someone/rows"]["README.md"].decode()
    assert f"{len(ROWS)} rows, of which {int(ROWS['kept'].sum())} were kept" in card
    assert all(f"| `{name}` |" in card for name in rows.column_names)


def test_columns_that_the_objective_does_not_read_are_not_in_the_data_set(table, hub, tmp_path):
    pushed(table("reward"), "data", "someone/rewards")
    folder = served(hub, "someone/rewards", tmp_path, "dataset")
    rows = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["id", "prompt", "response", "source", "reward", "kept"]


# refusals: one line, before anything is computed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine", "--push=mine: expected ORG/NAME"),
        ("someone/taken", "--push=someone/taken: the hub has a model of this name already: choose"),
    ],
)
def test_a_name_that_cannot_be_made_is_one_line(name, said, llama, hub):
    hub.repositories["models/someone/taken"] = {}
    with pytest.raises(UserError, match=said) as refused:
        pushed(llama[0], "merged", name)
    assert "\n" not in str(refused.value)
    assert hub.repositories == {"models/someone/taken": {}}


def test_a_push_without_a_token_or_with_a_wrong_one_is_one_line(llama, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"refuses this token \(401\): log in with `hf auth login`"):
        pushed(llama[0], "merged", "someone/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="--push: there is no token of the Hugging Face hub: log"):
        pushed(llama[0], "merged", "someone/mine")
    assert hub.repositories == {}


def test_a_hub_that_does_not_answer_is_one_line(llama, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    with pytest.raises(UserError, match="the Hugging Face hub cannot be reached") as refused:
        pushed(llama[0], "merged", "someone/mine")
    assert "\n" not in str(refused.value)


def test_flags_that_do_not_go_with_a_push_are_one_line(llama, table, tmp_path):
    with pytest.raises(UserError, match="--format=jsonl: what is pushed has --format=datasets"):
        pushed(table("reward"), "data", "someone/rows", "--format=jsonl")
    with pytest.raises(UserError, match="--out: give a directory to write to, or --push=ORG/NAME"):
        export(parse([f"--workdir={llama[0]}", "--what=merged"]))
    with pytest.raises(UserError, match="--private: it is for --push"):
        export(
            parse(
                [f"--workdir={llama[0]}", "--what=merged", "--private", f"--out={tmp_path / 'o'}"]
            )
        )
