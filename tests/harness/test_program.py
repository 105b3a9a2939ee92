"""The program without lm_eval: flags, the way to install it, and the numbers that it asks for."""

import subprocess
import sys

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.harness.__main__ import compare, parse
from alol_jax.tables.columns import Ragged
from alol_jax.training.annotate import continuations
from alol_jax.types import Watch
from tests.finished_run import policy_logits, random_policy
from tests.running import ROOT, environment

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_without_lm_eval_it_is_one_line_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "alol_jax.harness.model", raising=False)
    said = r'^lm_eval cannot be imported \(.*lm_eval.*\): pip install "lm_eval>=0\.4\.13,<0\.5"$'
    with pytest.raises(UserError, match=said):
        compare(parse([str(tmp_path), "--tasks=x.yaml"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x"], "required: --tasks"),
        (["--tasks=a"], "required: WORKDIR"),
        (["x", "--tasks=a", "--wat"], "unrecognized arguments: --wat"),
        (["x", "--tasks=a", "--limit=0"], "--limit=0 must be 1 or more"),
        (["x", "--tasks=a", "--num_fewshot=-1"], "--num_fewshot=-1 must be 0 or more"),
        (["x", "--tasks=a", "--limit=many"], "invalid int value: 'many'"),
    ],
)
def test_bad_flags_are_one_line(words, said):
    with pytest.raises(UserError, match=said):
        parse(words)


def test_the_numbers_of_a_continuation_are_those_of_the_models_logits(finished):
    lm, trained = finished[1], random_policy(finished[1], 2).trained
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 256, n) for n in (9, 30, 5)]
    prompts, responses = ([row[:3] for row in rows], [row[3:] for row in rows])
    logits = [policy_logits(lm, trained, row[None])[0] for row in rows]
    responses[0] = np.argmax(logits[0], axis=-1)[2:3]  # what greedy decoding writes first
    found = continuations(
        lm,
        trained,
        *(
            Ragged.of(np.concatenate(p).astype(np.int32), [*map(len, p)])
            for p in (prompts, responses)
        ),
        watch=Watch("x"),
    )
    for logp, lead, response, theirs in zip(*found, responses, logits, strict=True):
        theirs = theirs[2 : 2 + len(response)]
        right = theirs - np.log(np.exp(theirs).sum(-1, keepdims=True))
        chosen = np.take_along_axis(right, response[:, None], 1)[:, 0]
        np.testing.assert_allclose(logp, chosen, atol=1e-4)
        np.testing.assert_allclose(lead, chosen - right.max(-1), atol=1e-4)
    assert found[1][0].tolist() == [0.0]


def test_the_program_ends_in_one_line(finished, tmp_path):
    command = [sys.executable, "-m", "alol_jax.harness", str(tmp_path), "--tasks=x", "--limit=0"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and done.stderr == "error: --limit=0 must be 1 or more\n"
