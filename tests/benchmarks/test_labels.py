"""People's labels: rows for training, sheets for blind readers, and what V can know of them."""

import json
import math

import numpy as np
import pytest

from alol_jax.errors import UserError
from benchmarks.evidence import collect, labels, relabel, relabelled, summaries, value
from tests.benchmarks.audits import audit
from tests.tiny_run import annotated, annotated_rows

# rows


def test_labels_become_rewards_and_no_prompt_is_in_two_splits(tmp_path):
    parts = labels.split(audit(tmp_path, 200))
    prompts = {name: {a["knowledge"] for a in answers} for name, answers in parts.items()}
    assert {name: len(found) for name, found in prompts.items()} == {
        "test": labels.TEST,
        "validation": labels.VALIDATION,
        "train": 60,
    }
    assert len(set.union(*prompts.values())) == 200
    for answer in parts["train"]:
        assert answer["reward"] == labels.REWARDS[answer["BEGIN"][0]]
    assert [a["writer"] for a in parts["train"][:3]] == ["gpt2", "doha", "ctrl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin": ["generic", "generic", "entailed"]}, "no label 'entailed': did you mean 'entai"),
        ({"writer": ["gpt2"]}, "not as many labels or writers as responses"),
        ({"knowledge": "word " * 80}, "0 prompts of at most 75 words, which leaves none"),
        ({"history": [""]}, "0 prompts of at most 75 words, which leaves none"),
        ({"responses": "yes"}, "field 'responses': expected a list"),
    ],
)
def test_an_audit_that_cannot_be_read_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        labels.split(audit(tmp_path, 3, **changes))
    assert "\n" not in str(caught.value)


def test_kept_rows_are_counted_by_label_and_by_writer(tmp_path):
    answers = [
        {"knowledge": "Tea.", "response": text, "BEGIN": [label], "writer": writer}
        for text, label, writer in (
            ("It is old.", "entailment", "doha"),
            ("It is old.", "generic", "gpt2"),  # the same answer by two writers
            ("No.", "hallucination", "gpt2"),
        )
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(a) + "\n" for a in answers), encoding="utf-8")
    rows = annotated_rows(
        annotated(n, prompt_text="Knowledge: Tea.<|endoftext|>Hi.", response_text=text, kept=kept)
        for n, (text, kept) in enumerate(
            (("It is old.", True), ("No.", False), ("It is old.", False))
        )
    )
    assert collect._kept(rows, file) == {
        "label": {"entailment": [1, 1], "hallucination": [0, 1], "generic": [0, 1]},
        "writer": {"doha": [1, 1], "gpt2": [0, 2]},
    }


def read_prompts(count):
    """Prompts with three answers: one of two systems, one of the reference, one labelled twice."""
    found = [relabel.Read(f"Knowledge: Fact {n}.<|endoftext|>Hi.", {}) for n in range(count)]
    for n, one in enumerate(found):
        for text, kind, name in (
            (f"It is {n}.", "systems", "a_lol"),
            (f"It is  {n}.", "systems", "nll"),
            ("I like it.", "systems", "reference"),
            ("No.", "labels", "generic"),
            ("No.", "labels", "hallucination"),
        ):
            one.add(text, kind, name)
    return found


def test_sheets_show_each_answer_once_in_random_order_and_the_key_says_whose_it_is():
    texts, key = relabel.sheets(read_prompts(12), seed=0)
    assert len(texts) == 2 and len(key) == 12 and "a_lol" not in "".join(texts)
    orders = set()
    for n, entries in enumerate(key):
        part = texts[n // 10].split(f"\n## {n % 10 + 1}\n")[1].split("\n## ")[0]
        assert f"**Knowledge:** Fact {n}." in part and "* Hi." in part
        shown = [line.split(". ", 1)[1] for line in part.splitlines() if line[:1].isdigit()]
        assert dict(zip(shown, entries, strict=True)) == {
            f"It is {n}.": {"systems": ["a_lol", "nll"], "labels": []},
            "I like it.": {"systems": ["reference"], "labels": []},
            "No.": {"systems": [], "labels": ["generic", "hallucination"]},
        }
        orders.add(tuple(text[:2] for text in shown))
    assert len(orders) > 2


def written_sheets(workdir, count, verdict):
    """Sheets of `read_prompts`, read: ``verdict`` maps an entry of the key to [label, fit]."""
    folder = workdir / "relabel" / "all" / "0"
    folder.mkdir(parents=True, exist_ok=True)
    texts, key = relabel.sheets(read_prompts(count), seed=0)
    (folder / "key.json").write_text(json.dumps(key), encoding="utf-8")
    for number, text in enumerate(texts):
        (folder / f"sheet-{number}.md").write_text(text, encoding="utf-8")
        said = [list(map(verdict, entries)) for entries in key[10 * number : 10 * number + 10]]
        (folder / f"sheet-{number}.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def test_what_readers_said_is_collected_by_system_and_beside_peoples_labels(tmp_path):
    def verdict(entry):
        if entry["labels"]:
            return ["generic", 1]
        return ["hallucination", 2] if entry["systems"] == ["reference"] else ["entailment", 0]

    folder = written_sheets(tmp_path, 12, verdict)
    one, two = {"labels": [0] * 12, "fit": [0] * 12}, {"labels": [5] * 12, "fit": [2] * 12}
    (found,) = relabelled.collected(tmp_path)
    assert (found["reading"], found["seed"], found["answers"]) == ("all", 0, 36)
    assert found["systems"] == {"a_lol": one, "nll": one, "reference": two}
    assert sorted(found["people"]) == [[2, 2]] * 12 + [[5, 2]] * 12
    for wrong in (["entailed", 1], ["generic", 3], "generic", []):
        written_sheets(tmp_path, 12, lambda entry, wrong=wrong: wrong)
        with pytest.raises(UserError, match="is not a label of the six and 0, 1 or 2"):
            relabelled.collected(tmp_path)
    (folder / "sheet-1.json").write_text("[[]]", encoding="utf-8")
    with pytest.raises(UserError, match=r"expected a \[label, fit\] for each answer"):
        relabelled.collected(tmp_path)


def test_as_long_as_a_sheet_is_not_read_nothing_is_collected_of_it(tmp_path, capsys):
    folder = written_sheets(tmp_path, 12, lambda entry: ["generic", 1])
    (folder / "sheet-1.json").unlink()
    assert relabelled.collected(tmp_path) == []
    assert "not all sheets are read yet" in capsys.readouterr().out


def test_sheets_that_are_read_are_not_written_again(tmp_path, monkeypatch):
    written_sheets(tmp_path, 12, lambda entry: ["generic", 1])
    monkeypatch.setattr("sys.argv", ["relabel", f"--workdir={tmp_path}"])
    with pytest.raises(UserError, match="has sheets that are read: new ones would not fit them"):
        relabel.main()


def test_a_system_that_was_not_run_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="--systems: no 'a_lool' of --seed=0"):
        relabel.read(tmp_path, 0, ("a_lool",))


@pytest.mark.parametrize(
    ("pairs", "agreed", "kappa"),
    [
        ([[0, 0], [1, 1], [0, 0], [1, 1]], 1.0, 1.0),
        ([[0, 0], [0, 1], [1, 0], [1, 1]], 0.5, 0.0),  # as by chance
        ([[0, 0]] * 20 + [[0, 1]] * 5 + [[1, 0]] * 10 + [[1, 1]] * 15, 0.7, 0.4),
        ([[2, 2], [2, 2]], 1.0, math.nan),
    ],
)
def test_agreement_is_corrected_for_chance(pairs, agreed, kappa):
    found = relabelled.agreement(np.array(pairs))
    assert found == pytest.approx((agreed, kappa), nan_ok=True)


# what V can know


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_of_the_variance_between_rows_is_found_whatever_the_columns_are(share):
    draws = np.random.default_rng(0)
    own = draws.normal(scale=share**0.5, size=(3000, 1))
    rest = draws.normal(scale=(1 - share) ** 0.5, size=(3000, 3))
    of_mean = share / (share + (1 - share) / 3)
    found = summaries.between(own + rest)
    for one, expected in zip(found, (share, of_mean), strict=True):
        assert one.mean == pytest.approx(expected, abs=0.03)
        assert one.low < expected < one.high and one.high - one.low < 0.12
    columns = np.array([-1.0, 0.0, 1.0])  # of variance 2/3, seen as 1 by three columns
    shifted = summaries.between(own + rest + columns)
    assert shifted.of_mean.mean == pytest.approx(found.of_mean.mean)
    assert shifted.of_one.mean == pytest.approx(share / 2, abs=0.03)


def test_where_nothing_varies_there_is_no_share():
    found = summaries.between([[1.0, 1.0], [1.0, 1.0]])
    assert math.isnan(found.of_one.mean) and math.isnan(found.of_mean.low)


def test_ridge_regression_is_tested_on_rows_that_it_has_not_seen():
    draws = np.random.default_rng(0)
    x = draws.normal(size=(400, 8))
    fold = np.arange(400) % 4
    noise = draws.normal(size=400)
    for observed, share in ((x @ np.ones(8) + noise, 8 / 9), (noise, 0.0)):
        predicted, penalty = value.ridge(x, observed, fold)
        found = summaries.explained(value.errors(predicted, observed, fold))
        assert found.mean == pytest.approx(share, abs=0.03) and found.low < share < found.high
    assert penalty > 0.1


def test_the_shares_explained_are_those_of_the_mean_of_the_other_folds():
    observed, fold = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    perfect = value.errors(observed, observed, fold)
    np.testing.assert_array_equal(perfect, [[0, 6.25], [0, 2.25], [0, 2.25], [0, 6.25]])
    assert summaries.explained(perfect).mean == 1.0
    means = value.errors(np.array([2.5, 2.5, 0.5, 0.5]), observed, fold)
    assert summaries.explained(means).mean == 0.0


def test_prompts_that_all_three_models_answered_are_studied_in_the_order_of_a_hash(tmp_path):
    file = audit(tmp_path, 6)
    long = audit(tmp_path / "long", 6, knowledge="word " * 80, history=["Hi."])
    first = audit(tmp_path / "first", 6, history=["[]"])
    three = ["gpt2", "doha", "human"]
    people = audit(tmp_path / "people", 6, writer=three, knowledge="Another fact.")
    one = long.read_text().splitlines()[0]
    text = "\n".join((file.read_text(), one, first.read_text(), people.read_text()))
    file.write_text(text, encoding="utf-8")
    rows = value.labelled(file)
    assert len(rows) == 7 and [one.short for one in rows].count(True) == 6
    assert [one.prompt for one in rows] != sorted(one.prompt for one in rows)
    by_name = {one.knowledge: one.rewards for one in rows}
    assert by_name["Fact 1."] == (0.25, 0.5, 0.75)  # ctrl, doha, gpt2
    assert len(value.chosen(rows, value.Setting("MiniLM"))) == 6
    assert len(value.chosen(rows, value.Setting("MiniLM", "all"))) == 7
    assert len(value.chosen(rows, value.Setting("MiniLM", count=2))) == 2
    with pytest.raises(UserError, match="too few short prompts that all three models answered"):
        value.labelled(people)
