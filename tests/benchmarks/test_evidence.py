"""The experiments: best of n, what is collected, and what is drawn of it."""

import dataclasses
import json

import numpy as np
import pytest

from alol_jax.checks import check
from alol_jax.errors import UserError
from alol_jax.objectives.registry import get_objective
from alol_jax.reports.results import signed
from alol_jax.tasks.registry import get_task
from alol_jax.tasks.text_rewards import NOVELTY
from alol_jax.types import Limits, Watch
from benchmarks.evidence import (
    candidates,
    collect,
    draw,
    merging,
    order,
    samples,
    summaries,
)
from benchmarks.evidence.best_of_n import best_of_n
from benchmarks.evidence.running import Asked
from tests.reports.runs import config_of, finish
from tests.running import ROOT
from tests.tiny_run import (
    TASK,
    fitted,
    scored_splits,
    setup,
    small_options,
    tiny_lm,
)

# best of n


def test_the_best_of_more_answers_is_better():
    lm = tiny_lm()
    options = small_options()
    options.generate.temperature = 1.0
    task = dataclasses.replace(TASK, rewards=(NOVELTY,))
    found = best_of_n(
        setup(lm, task, {"novelty": 1.0}, options.decode),
        options.generate,
        (1, 2, 4),
        scored_splits(),
        fitted(lm),
        watch=Watch("answers"),
    )
    rewards = np.array(found.rewards)
    assert rewards.shape == (3, 4) and (np.diff(rewards, axis=0) >= 0).all()
    assert rewards[2].mean() > rewards[0].mean()
    assert found.kl == (0.0, pytest.approx(0.193147, abs=1e-6), pytest.approx(0.636294, abs=1e-6))


# the order of methods


@pytest.mark.parametrize("name", [*order.ABLATIONS, *order.FRONTIER])
def test_every_variant_passes_the_checks_and_differs_in_its_policy_alone(name):
    wanted = Asked("configs/quickstart.py:debug", {}, ROOT, (), (), False, lambda: False)
    objective, changes = (order.ABLATIONS | order.FRONTIER)[name]
    config, plain = wanted.config(objective, **order.LOOKS, **changes), wanted.config(objective)
    lm = tiny_lm(limits=Limits(160, 48))
    check(config, get_task(config.task), get_objective(objective), lm)
    changed = {key for key in config if config[key] != plain[key]}
    assert changed <= {"policy", "objective"} and config.policy.validation_kl
    assert all(base.startswith(objective) for base in summaries.BASES.get(name, ()))
    assert (name in summaries.BASES) == (name in order.ABLATIONS)


def test_an_objective_without_variants_has_nothing_to_run(tmp_path, capsys):
    wanted = Asked("", {}, tmp_path, ("r_gold",), (0,), False, lambda: False)
    order.frontier(wanted)
    assert "nothing to vary of r_gold" in capsys.readouterr().out and not any(tmp_path.iterdir())


# what is drawn


def run(name, seed, **more):
    draws = np.random.default_rng([seed, len(name)])
    rewards = draws.random(6).round(3).tolist()
    looks = [[0, 0.1, 0.0], [4, 0.3, 0.5]]
    return {
        **{"name": name, "seed": seed, "kl": 0.4, "rewards": rewards},
        **{"components": {"relevance": 0.3, "total": 0.4}, "distinct-2": 0.9},
        **{"step": 4, "seconds": 9.5, "looks": looks},
    } | more


VALUE = {
    **{"epochs": 3, "explained_held_out": 0.04, "explained_training_rows": -0.1, "mean": 0.4},
    **{"pearson_training_rows": None, "sd": 0.0, "kept": 5, "rows": 9},
}


def measured(seed):
    draws = np.random.default_rng(seed)
    names = ("similarity", "coverage", "density", "words", "distinct words", "likeness gap")
    return {name: draws.random(2).tolist() for name in names}


REFERENCE = {
    **{"rewards": [0.5] * 6, "components": {"relevance": 0.2, "total": 0.5}},
    **{"distinct-2": 0.7, "echoes": 5},
}


PAIR = ("relevance", "novelty")
ANSWERS = [[0.0, 1.0], [0.5, 1.0]]


def judged(seed):
    draws = np.random.default_rng(seed)
    scores = {name: draws.random(4).tolist() for name in candidates.CANDIDATES}
    return {"scores": scores, "echoes": seed, "distinct-2": 0.5}


def blind(name, **systems):
    said = {of: {"labels": labels, "fit": fit} for of, (labels, fit) in systems.items()}
    people = {"people": [[0, 0], [5, 3], [0, 1]]}
    return {"reading": name, "seed": 0, "answers": 7, "systems": said, **people}


FOUND = {
    "labels": {
        "kept": {"label": {"generic": [1, 3]}, "writer": {"human": [2, 3]}},
        "value": VALUE,
        "known": [1, 8],
        "reference": measured(0),
        "runs": [
            {"name": name, "seed": s, "measures": measured(s + 1), "looks": [[0, 0.1], [7, 0.2]]}
            for name in ("nll", "dpo")
            for s in (0, 1)
        ],
        "relabelled": [
            blind("all", nll=([0, 2], [2, 1]), reference=([5, 2], [0, 1])),
            blind("filter", dpo=([0, 0], [1, 1]), reference=([0, 2], [1, 1])),
        ],
        "study": {
            "all": [[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]],
            "short": ANSWERS,
            "settings": [
                {
                    **{"features": "MiniLM", "prompts": "short", "count": 3, "answers": "all"},
                    **{"epochs": 10, "errors": [[0.5, 1.0]] * 3, "chosen": 0.01},
                }
            ],
        },
    },
    "noise": {
        "levels": [
            {
                **{"share": share, "seed": seed, "value": VALUE, "moved": moved, "others": [6, 9]},
                **{
                    "runs": [
                        run("a_lol", seed, **{"distinct-2": 0.8 + seed / 10, "echoes": seed + 2})
                    ]
                },
                **{"reference": REFERENCE},
            }
            for seed in (0, 1)
            for share, moved in ((0.0, [0, 0]), (0.5, [2, 9]))
        ]
    },
    "order": {
        **{"value": VALUE, "reference": REFERENCE},
        "runs": [
            run(name, s)
            for name in ("a_lol", "a_lol_rate_0.003", "a_lol_no_clip", "nll")
            for s in (0, 1)
        ],
        "by_samples": [
            {"samples": 2, "value": VALUE, "answers": ANSWERS, "runs": []},
            {
                **{"samples": 4, "value": VALUE, "answers": ANSWERS, "reference": REFERENCE},
                **{"runs": [run("a_lol", 0)]},
            },
        ],
        "best_of_n": {"n": [1, 2], "rewards": [[0.5] * 6, [0.75] * 6], "kl": [0.0, 0.2]},
    },
    "candidates": {
        "rows": {"novelty": {"best": [[1.0, "p", "new"]], "worst": [[0.0, "echo", "echo"]]}},
        "sums": [
            {
                **{"sum": name, "kept": 4, "rows": 9},
                **{"reference": judged(0), "policy": judged(len(name))},
            }
            for name in ("relevance", "relevance+novelty")
        ],
    },
    "reading": {"readings": [{"seed": seed, "verdicts": [1, 0, 1, -1]} for seed in (0, 1)]},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of all experiments' collected values, tables and figures."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, found in FOUND.items():
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    draw.draw(folder)
    return folder


@pytest.fixture(scope="module")
def tables(drawn):
    return (drawn / "tables.md").read_text(encoding="utf-8")


def test_figures_are_drawn_of_all_that_was_collected_and_again_without_a_change(drawn):
    first = {file.name: file.read_text(encoding="utf-8") for file in drawn.iterdir()}
    assert {name for name in first if name.endswith(".svg")} == {
        *("candidates-relevance.svg", "candidates-novelty.svg"),
        *("labels-kept-by-label.svg", "labels-kept-by-writer.svg", "labels-coverage.svg"),
        *("labels-similarity.svg", "labels-read-all.svg", "labels-read-filter.svg"),
        *("labels-value.svg", "noise-kept.svg", "noise-relevance.svg", "noise-total.svg"),
        *("order-frontier.svg", "order-looks.svg", "order-ablations.svg", "order-rates.svg"),
    }
    for name in ("best of n", "a_lol", "nll"):
        assert first["order-frontier.svg"].count(f">{name}<") == 1  # in the legend
    assert ">nll<" not in first["order-rates.svg"]  # has one rate
    assert first["noise-relevance.svg"].count(">reference<") == 1
    draw.draw(drawn)
    assert first == {file.name: file.read_text(encoding="utf-8") for file in drawn.iterdir()}


def test_the_tables_say_what_candidates_pay_and_lead_to(tables):
    mean = np.sum([np.subtract(judged(17)["scores"][of], judged(0)["scores"][of]) for of in PAIR])
    assert f"| relevance+novelty | 4 of 9 | {signed(mean / 4, 3)} [" in tables
    candidates_part, _, _ = tables.partition("## Labels")
    assert candidates_part.count("| reference |") == 1  # both sums have the same
    assert "| 1.000 | p | new |\n| 0.000 | echo | echo |" in tables


def test_the_tables_say_what_the_answers_to_labelled_prompts_are(tables):
    heads = "|  | seeds | coverage | density | similarity | likeness gap |"
    for over in ("mean [95% over prompts]", "interquartile mean [95% over seeds]"):
        assert f"Policy − reference, {over}:\n\n{heads}" in tables
    assert "| nll | 2 | 7 | 0." in tables and "1 of 8 test prompts have a knowledge" in tables


def test_the_tables_say_what_blind_readers_said_and_whether_they_agree(tables):
    nll = "| nll | 1 | 50% | 0% | 50% | 0% | 0% | 0% | 50% | 0% | 0.750 | 1.50 | +0.500 ["
    dpo = "| dpo | 1 | 100% | 0% | 0% | 0% | 0% | 0% | 100% | 0% | 1.000 | 1.00 | +0.250 ["
    assert nll in tables and dpo in tables
    agreed = "33% are the same (κ 0.14), and 100% agree whether the answer is entailed (κ 1.00)."
    said = "People say “entailment, uncooperative” 0 times, readers 1."
    about = "equal ones of a seed once. Of 3 labels that people had given"
    assert f"{about}, {agreed} {said}" in tables
    assert "share systems and seeds, with 2 labels of each. Of these, 50% are the same" in tables


def test_the_tables_say_what_lies_between_prompts_and_what_v_explains(tables):
    assert "| short | 2 | 0.415 | " in tables
    assert "| MiniLM | short | all | 3 | – | 0.01 | 50.0% [50.0%, 50.0%] |" in tables


def test_the_tables_say_what_noise_changes(tables):
    assert "| 50% | 1 | 0.222 [" in tables and "| 0% | 0 | – |" in tables
    assert "| 50% | reference | 2 | 5.0 | 0.700 (0.700 to 0.700) | 0.200 (" in tables
    assert "| 50% | a_lol | 2 | 2.5 | 0.850 (0.800 to 0.900) | 0.300 (" in tables
    both = np.mean([run("a_lol", seed)["rewards"] for seed in (0, 1)])
    assert f"| a_lol | {both:.3f} [" in tables and f"| a_lol | −{0.5 - both:.3f} [" in tables


def test_the_tables_say_what_objectives_and_variants_earn(tables):
    assert "| reference |  | 0.500 |  |  |  |  | 0.700 |  |" in tables
    assert "| best of 2 | 0.750 [0.750, 0.750] | 0.20 |" in tables
    _, _, order_pairs = tables.rpartition("Total reward, the row's objective − the column's")
    paired = order_pairs.split("\n\n")[1]
    assert "| a_lol |" in paired and "_rate_" not in paired
    dialled = f"−{0.5 - np.mean([run('a_lol_rate_0.003', s)['rewards'] for s in (0, 1)]):.3f}"
    assert f"| a_lol_rate_0.003 | 2 | {dialled} [" in tables


def test_the_tables_say_what_more_answers_per_prompt_change(tables):
    assert "%] | 3 | 4.0% | −10.0% | 5 of 9 | not run | – |" in tables
    earned = np.mean(run("a_lol", 0)["rewards"]) - 0.5
    assert f"5 of 9 | {signed(earned, 3)} [" in tables and f"] | {signed(earned, 3)} |" in tables


def test_the_tables_say_which_answers_read_better(tables):
    assert "| 1 | 2 | 1 | 1 |" in tables
    assert "as a share of the prompts: +0.250 [−0.500" in tables


def test_an_ablation_is_compared_on_the_seeds_that_both_have():
    found = {"runs": [run("a_lol", 0), run("a_lol", 1), run("a_lol_no_clip", 1)]}
    ((name, base, gains),) = summaries.ablation_gains(found)
    theirs, mine = (np.mean(run(one, 1)["rewards"]) for one in ("a_lol", "a_lol_no_clip"))
    assert (name, base) == ("a_lol_no_clip", "a_lol")
    np.testing.assert_allclose(gains, [mine - theirs])


@pytest.mark.parametrize("name", [*order.ABLATIONS, *order.FRONTIER])
def test_the_name_of_a_variant_begins_with_its_objective(name):
    assert summaries.objective_of(name) == (order.ABLATIONS | order.FRONTIER)[name][0]


@pytest.mark.parametrize("name", FOUND)
def test_what_has_run_since_joins_what_was_collected_before(name):
    found = FOUND[name]
    assert merging.merged(found, found) == found
    if name in ("noise", "reading", "candidates"):
        key, all_of_them = [item for item in found.items() if item[0] != "rows"][0]
        parts = (found | {key: all_of_them[at::2]} for at in (0, 1))
        whole = merging.merged(*parts)[key]
        assert sorted(map(str, whole)) == sorted(map(str, all_of_them))
        return
    before, now = (found | {"runs": found["runs"][part]} for part in (slice(3), slice(2, None)))
    assert merging.merged(before, now) == found


def test_a_study_that_went_on_takes_the_place_of_what_was_collected_of_it():
    now = FOUND["labels"]["study"] | {"settings": []}
    found = merging.merged(FOUND["labels"], FOUND["labels"] | {"study": now})
    assert found["study"] == now


def test_a_run_that_ran_again_counts_once_and_runs_of_two_references_are_refused():
    before = FOUND["order"]
    again = {**before["runs"][0], "seconds": 1.0}
    runs = merging.merged(before, before | {"runs": [again]})["runs"]
    assert runs == [again, *before["runs"][1:]]
    with pytest.raises(UserError, match=r"value differs .* give another --out"):
        merging.merged(before, before | {"value": VALUE | {"kept": 6}})


def test_one_seed_has_no_interval_over_seeds(tmp_path):
    found = FOUND["order"] | {"runs": [run("a_lol", 0), run("a_lol_no_clip", 0)]}
    (tmp_path / "order.json").write_text(json.dumps(found), encoding="utf-8")
    draw.draw(tmp_path)
    mean = np.mean(run("a_lol", 0)["rewards"])
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert f"| a_lol | 1 | {mean:.3f} | {mean:.3f} | " in text and "nan" not in text
    assert "nan" not in (tmp_path / "order-ablations.svg").read_text(encoding="utf-8")


def test_what_was_not_run_is_said(tmp_path):
    with pytest.raises(UserError, match="has no collected experiment: give --runs"):
        draw.draw(tmp_path)
    (tmp_path / "noise.json").write_text(json.dumps(FOUND["noise"]), encoding="utf-8")
    draw.draw(tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "## Labels\n\nNot run." in text and "## Order\n\nNot run." in text


def test_samples_are_evenly_spaced_over_the_test_prompts(tmp_path):
    with pytest.raises(UserError, match="has no evaluated run"):
        samples.samples(tmp_path, 3)
    finish(tmp_path, config_of("a_lol"))
    head, _, *lines = samples.samples(tmp_path, 3).splitlines()
    assert head == "| prompt | data | reference | policy |"
    assert [line.split(" | ")[0] for line in lines] == ["| prompt 0", "| prompt 6", "| prompt 11"]
    assert len(set(lines[1].split(" | ")[1:])) == 3
    with pytest.raises(UserError, match="--count=13: the run has 12 test prompts"):
        samples.samples(tmp_path, 13)


def test_blind_pairs_are_in_random_order_and_the_key_says_which_is_the_policys(tmp_path):
    finish(tmp_path, config_of("a_lol"))
    told = [line.split(" | ") for line in samples.samples(tmp_path, 12).splitlines()[2:]]
    pairs, key = samples.blind(tmp_path, 12, 0)
    assert set(key) == {"A", "B"} and key != samples.blind(tmp_path, 12, 1)[1]
    for line, policy, (prompt, _, reference, answer) in zip(
        pairs.splitlines()[2:], key, told, strict=True
    ):
        pair = (answer[:-2], reference) if policy == "A" else (reference, answer[:-2])
        assert line == " | ".join((prompt, *pair)) + " |"


def test_blind_verdicts_are_counted_with_the_key(tmp_path):
    place = tmp_path / "0"
    place.mkdir()
    (place / "key.json").write_text(json.dumps(["A", "B", "A", "B"]))
    (place / "verdicts.json").write_text(json.dumps(["A", "A", "=", "B"]))
    assert collect.reading(tmp_path) == {"readings": [{"seed": 0, "verdicts": [1, -1, 0, 1]}]}
    (place / "verdicts.json").write_text(json.dumps(["A", "C", "=", "B"]))
    with pytest.raises(UserError, match="expected a list of 4 of 'A', 'B' and '='"):
        collect.reading(tmp_path)
    assert collect.reading(tmp_path / "absent") is None
