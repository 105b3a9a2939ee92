"""The experiments' programs: they run, stop, go on, are collected and drawn; what they refuse."""

import json
import sys
from unittest import mock

import pytest

from alol_jax.errors import UserError
from alol_jax.main import entry
from benchmarks.evidence import (
    candidates,
    draw,
    labels,
    noise,
    order,
    relabel,
    samples,
    value,
)
from tests.benchmarks.audits import audit
from tests.running import called, refused

TWO = ("--seeds=0", "--objectives=nll,a_lol")
SMALL = ("--config.policy.epochs=0.2", "--config.reference.epochs=0.2")


def ended(module, *arguments, stopping=lambda: False):
    """How a script of the evidence ends; without a process of its own."""
    takes_flags = module in (candidates, labels, noise, order, value)
    program = (lambda: entry(module.main)) if takes_flags else module.main
    stop = "benchmarks.evidence.running.stop_on_signals"
    with mock.patch(stop, return_value=stopping), mock.patch("alol_jax.main.leave", sys.exit):
        return called(program, [module.__name__, *map(str, arguments)])


def started(module, *arguments):
    """What a script prints that runs to its end."""
    done = ended(module, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (noise, (), "--workdir is needed"),
        (labels, ("--workdir=runs",), "--audit is needed"),
        (value, ("--workdir=runs",), "--audit is needed"),
        (value, ("--audit=a", "--workdir=runs", "--seeds=1"), "--seeds: config and seed are"),
        (value, ("--audit=a", "--workdir=runs", "--config=configs/labels.py"), "--config: "),
        (candidates, ("--workdir=runs", "--objectives=nll"), "--objectives: each sum trains one"),
        (order, ("--workdir=runs", "--parts=orders"), "--parts: no part 'orders'"),
    ],
)
def test_flags_that_are_missing_or_not_read_are_refused(module, arguments, said):
    assert said in refused(ended(module, *arguments))


def test_what_needs_finished_runs_says_so(tmp_path):
    given = (f"--audit={audit(tmp_path, 4)}", f"--workdir={tmp_path}")
    assert "has no reference: run labels first" in refused(ended(value, *given))
    with pytest.raises(UserError, match="no policy of --seed=3 is evaluated"):
        ended(relabel, f"--workdir={tmp_path}", "--seed=3")


@pytest.mark.slow
def test_every_experiment_runs_goes_on_is_collected_and_drawn(tmp_path, monkeypatch):
    runs, config = tmp_path / "runs", "configs/quickstart.py:debug"
    labelled, toy = f"--audit={audit(tmp_path, 170)}", f"--config={config}"
    best_of_n = (order, toy, "--parts=best_of_n", *SMALL, f"--workdir={runs / 'order'}")
    experiments = (
        (labels, labelled, "--config=configs/labels.py:debug", *TWO),
        (noise, toy, "--shares=0.5", *TWO),
        (order, toy, "--parts=order,value", *TWO),
        (order, toy, "--parts=ablations,best_of_n", "--seeds=0", "--objectives=nll"),
        (candidates, toy),
    )
    monkeypatch.setattr(candidates, "SUMS", candidates.SUMS[-2:])
    for module, *arguments in experiments:
        folder = runs / module.__name__.rpartition(".")[2]
        words = (*arguments, *SMALL, f"--workdir={folder}")
        if module is noise:
            begun = (folder / "0.5-0" / "nll-0" / "07_fit_policy").exists
            halted = ended(module, *words, stopping=begun)
            assert "run the same command again" in halted.stderr and halted.returncode == 143
        assert "[fit_policy] running" in started(module, *words)
        assert "running" not in started(module, *words)
    study = (labelled, f"--workdir={runs / 'labels'}")
    assert "MiniLM" in started(value, *study) and "---" not in started(value, *study)
    for file, again in (
        (runs / "labels" / value.STUDY, (value, *study)),
        (runs / "order" / order.BEST_OF_N, best_of_n),
    ):
        known = file.read_text(encoding="utf-8")
        file.write_text(known.replace('"reference": "', '"reference": "x'), encoding="utf-8")
        assert "was made from another reference" in refused(ended(*again))
        file.write_text(known, encoding="utf-8")
    reading = runs / "reading" / "0"
    started(samples, f"--workdir={runs / 'order' / 'a_lol-0'}", "--count=4", f"--blind={reading}")
    (reading / "verdicts.json").write_text(json.dumps(["A", "=", "B", "A"]), encoding="utf-8")
    started(relabel, f"--workdir={runs / 'labels'}")
    some = ("--reading=filter", "--systems=a_lol")
    assert "2 sheets in" in started(relabel, f"--workdir={runs / 'labels'}", *some)
    sheets = runs / "labels" / "relabel" / "all" / "0"
    key = json.loads((sheets / "key.json").read_text(encoding="utf-8"))
    for number, start in enumerate(range(0, len(key), relabel.PROMPTS)):
        said = [[["generic", 1]] * len(one) for one in key[start : start + relabel.PROMPTS]]
        (sheets / f"sheet-{number}.json").write_text(json.dumps(said), encoding="utf-8")
    started(draw, f"--runs={runs}", f"--out={tmp_path / 'out'}")
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "Not run." not in text and "best of 16" in text and "likeness gap" in text
    assert (
        "| reference | 1 | 0% | 0% | 100% |" in text and "| hidden states | short | all |" in text
    )
    read = (runs / "labels" / "side_by_side.md").read_text(encoding="utf-8")
    assert read.count("- *best-labelled:* ") == read.count("- *a_lol:* ") == 10
    first = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
    started(draw, f"--runs={runs}", f"--out={tmp_path / 'out'}")
    assert first == json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
