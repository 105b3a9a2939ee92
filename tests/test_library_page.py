"""The blocks of docs/library.md run as they stand, and need no more than the page says."""

import re
import subprocess
import sys

import pytest

from alol_jax.runs.artifacts import save_result
from alol_jax.types import TrainingTable
from tests.models.tiny_classifiers import CLASSIFIERS, random_classifier, write_classifier
from tests.rewards.test_classifier import NEOX, tokenizer_beside
from tests.running import ROOT, environment
from tests.tiny_run import annotated, annotated_rows

PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SECONDS = 1.0  # beyond JAX's own


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the blocks define and print, run in a folder with a reward model and a run."""
    folder = tmp_path_factory.mktemp("library")
    model = folder / "reward-model"
    write_classifier(model, NEOX, random_classifier(CLASSIFIERS[NEOX]), pooling="last")
    tokenizer_beside(model)
    stage = folder / "runs" / "mine" / "06_select"
    stage.mkdir(parents=True)
    rows = annotated_rows(annotated(n, advantage=float(n), kept=n > 1) for n in range(4))
    save_result(stage, TrainingTable(rows))
    (stage / "record.json").write_text("{}")
    printed = []
    scope = {"print": lambda *words: printed.append(" ".join(map(str, words)))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in BLOCKS:
            exec(compile(block, "docs/library.md", "exec"), scope)
    return scope, printed


def test_every_block_runs_and_prints(page):
    _, printed = page
    assert len(BLOCKS) == 5 and len(printed) == 6


def test_the_loss_of_the_loop_falls_and_the_first_block_is_short(page):
    scope, printed = page
    assert scope["losses"][-1] < 0.8 * scope["losses"][0]
    assert printed[0].startswith("loss ") and "clipped" in printed[0]
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 36


def test_under_the_mesh_every_device_takes_part(page):
    _, printed = page
    assert printed[1].startswith("8 devices, loss ")


def test_the_filter_keeps_what_is_better_than_expected(page):
    assert page[1][2] == "['Boil it.']"


def test_scores_and_table_are_those_of_the_run(page):
    scope, printed = page
    assert scope["score"](["An egg?"], ["Boil it."]).shape == (1,)
    assert scope["table"]["kept"].tolist() == [False, False, True, True]
    assert "advantage" in printed[4] and printed[5] == "(-0.25, -0.75)"


IMPORT = f"""
import sys, time
import jax, jax.numpy
before = set(sys.modules)
started = time.process_time()
import alol_jax.objectives
seconds = time.process_time() - started
ours = {{name.split(".")[1] for name in sys.modules if name.startswith("alol_jax.")}}
assert ours == {{"errors", "objectives", "types"}}, ours
others = {{name.split(".")[0] for name in set(sys.modules) - before}}
needless = {{"configs", "ml_collections", "flax", "orbax", "etils", "pyarrow", "datasets",
             "transformers", "huggingface_hub", "requests", "pandas"}}
assert not needless & others, needless & others
assert seconds < {SECONDS}, seconds
"""


def test_the_objectives_import_nothing_but_jax_and_quickly():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
