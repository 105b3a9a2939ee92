"""The report: one page, two files and a table that cannot disagree, at the edges of a run too."""

import csv
import dataclasses
import io
import json
import re

import pytest
from ml_collections import ConfigDict

from alol_jax.reports.results import EVERY, measures, result_table
from alol_jax.stages.report import report
from alol_jax.types import Cost, Evaluation, Interval, ScoredSplits, StageContext
from alol_jax.types import TestSet as PromptSet  # pytest takes what is called Test… for tests
from tests.reports.cases import (
    ATTACK,
    EMPTY,
    NAMES,
    SUMMARY,
    evaluated,
    trained,
    training_table,
    unscored,
    valued,
)
from tests.reports.page_tags import assert_loads_nothing, tags

SECTIONS = (
    "results comparison training weights advantages extremes value answers reference config "
    "versions"
).split()


@dataclasses.dataclass(frozen=True)
class Written:
    html: str
    json: dict
    csv: list[dict[str, str]]
    said: list[str]
    files: tuple[str, ...]


def write(
    folder, evaluation: Evaluation, *, value, policy, reference, examples=20, summary=SUMMARY
) -> Written:
    rows = evaluation.data
    scored = ScoredSplits(rows, rows, rows, NAMES, 2.0, ("2 rows were dropped.",))
    said: list[str] = []
    result = report(
        ConfigDict({"title": f"A title {ATTACK}", "examples": examples}),
        scored,
        reference,
        value,
        training_table(),
        policy,
        evaluation,
        summary,
        context=StageContext(folder, lambda: False, said.append),
    )
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in result.files}
    return Written(
        texts["report.html"],
        json.loads(texts["results.json"]),
        list(csv.DictReader(io.StringIO(texts["results.csv"]))),
        said,
        result.files,
    )


FULL = trained(curves=("loss", "kl_to_reference", "fraction_clipped", "effective_sample_size"))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Written:
    folder = tmp_path_factory.mktemp("full")
    return write(
        folder, evaluated(), value=valued(), policy=FULL, reference=trained(curves=("loss",))
    )


def test_the_page_is_balanced_and_every_section_is_there_in_order(full):
    found = tags(full.html).found
    assert [a["id"] for tag, a in found if tag == "section"] == SECTIONS


def test_the_page_loads_nothing_from_anywhere(full):
    assert_loads_nothing(full.html)


def test_texts_of_the_data_are_escaped(full):
    assert "<script" not in full.html and "<b>harmless" not in full.html
    assert "&lt;script&gt;alert(" in full.html and "&lt;b&gt;harmless&lt;/b&gt;" in full.html


def test_json_csv_and_page_carry_the_same_figures(full):
    measures = full.json["measures"]
    assert len(measures) == len(full.csv) == 3 * 7 + 3
    shown = [a["value"] for tag, a in tags(full.html).found if tag == "data"]
    for measure, line in zip(measures, full.csv, strict=True):
        assert (measure["system"], measure["metric"]) == (line["system"], line["metric"])
        for name in ("mean", "low", "high"):
            assert (None if line[name] == "" else float(line[name])) == measure[name]
        assert repr(measure["mean"]) in shown


def test_the_figures_are_those_of_the_evaluation(full):
    evaluation = evaluated()
    at = {(m["system"], m["metric"]): m["mean"] for m in full.json["measures"]}
    assert at["policy", "total"] == evaluation.systems[2].reward.mean
    assert at["data", "helpful"] == evaluation.systems[0].components[0].mean
    assert at["policy-reference", "total"] == evaluation.differences[-1].mean
    assert at["reference", "distinct-2"] == 0.4


def test_no_figure_is_not_a_number(full):
    assert "NaN" not in full.html and not re.search(r"\bnan\b", full.html)


def test_the_stage_names_its_files(full):
    assert full.files == ("report.html", "results.json", "results.csv")


def test_kept_rows_are_counted_alike_everywhere(full):
    kept = sum(row.kept for row in training_table().rows)
    assert full.json["training_rows_kept"] == kept
    assert f"{kept} of 50" in full.html and f"kept: {kept} of 50" in full.html


def test_without_the_filter_all_rows_are_kept_whatever_their_advantage(tmp_path):
    """As with the filter "none", or with NLL beside A-LoL on the rows of one sweep."""
    found = write(
        tmp_path,
        evaluated(),
        value=valued(),
        policy=FULL,
        reference=EMPTY,
        summary=dataclasses.replace(SUMMARY, drops=False),
    )
    assert found.json["training_rows_kept"] == 50
    assert "kept: 50 of 50" in found.html and "dropped: 0 of 50" in found.html


def test_a_long_text_is_shortened_and_wholly_there_behind_a_click(full):
    rows = sorted(training_table().rows, key=lambda row: row.advantage)
    longest = max((*rows[:10], *rows[-10:]), key=lambda row: len(row.response_text))
    assert full.html.count("word " * longest.response_text.count("word ")) >= 1
    assert '<details class="passage">' in full.html


def test_every_test_set_has_its_line_and_the_kl_its_sentence(tmp_path):
    whole = evaluated()
    change = Interval(-0.0625, -0.125, 0.25)
    sets = (
        PromptSet("easy", 12, whole.systems, change),
        PromptSet("hard", 18, whole.systems, None),
    )
    kl = Interval(3.25, 2.5, 4.125)
    evaluation = dataclasses.replace(whole, sets=sets, kl=kl)
    page = write(tmp_path, evaluation, value=None, policy=FULL, reference=EMPTY).html
    table = page[page.index("Total reward by test set") :].partition("</table>")[0]
    assert table.index("easy") < table.index("−0.062") < table.index("hard")
    assert "3.25 nats from the reference [2.50, 4.12]" in page
    found = {(m.system, m.metric, m.set): m for m in measures(evaluation)}
    assert found["policy", "kl", EVERY][2:5] == (3.25, 2.5, 4.125)
    assert found["policy-reference", "total", "easy"].low == -0.125
    assert ("policy-reference", "total", "hard") not in found
    assert found["data", "helpful", "hard"].mean == whole.systems[0].components[0].mean
    said = result_table(evaluation).splitlines()
    assert "policy's KL to the reference: 3.250 [2.500, 4.125] nats" in said
    assert [line.split()[:2] for line in said[-5:-3]] == [["easy", "(12)"], ["hard", "(18)"]]
    assert said[-3] == "paired difference in it, policy - reference"
    assert said[-2].split() == ["easy", "(12)", "-0.062", "[-0.125,", "+0.250]"]
    assert said[-1].split() == ["hard", "(18)", "-"]
    many = dataclasses.replace(evaluation, sets=sets[:1] * 7)
    assert result_table(many).splitlines()[-1] == "total reward by test set: in the report"
    (tmp_path / "one").mkdir()
    alone = dataclasses.replace(whole, sets=sets[:1])
    page = write(tmp_path / "one", alone, value=None, policy=FULL, reference=EMPTY).html
    assert "by test set" not in page and "nats from the reference" not in page


def test_a_test_set_of_one_prompt_has_no_interval(tmp_path):
    whole = evaluated()
    change = Interval(-0.0625, -0.0625, -0.0625)
    sets = tuple(PromptSet(f"a long name of {n}", n, whole.systems, change) for n in (1, 2))
    evaluation = dataclasses.replace(whole, sets=sets)
    page = write(tmp_path, evaluation, value=None, policy=FULL, reference=EMPTY).html
    assert "A test set of one prompt has no interval." in page
    table = page[page.index("Total reward by test set") :].partition("</table>")[0]
    one, two = table[table.index("of 1") :].split("of 2")
    assert "−0.062" in one and "[" not in one and "[−0.062, −0.062]" in two
    *_, one, two, _, first, second = result_table(evaluation).splitlines()
    assert one.startswith("  a long name of 1 (1) ") and len(two) <= 100
    assert "[" not in one and two.count("[") == one.count(".") == len(whole.systems)
    assert first.endswith(" -0.062") and second.endswith("-0.062 [-0.062, -0.062]")
    (tmp_path / "two").mkdir()
    larger = dataclasses.replace(whole, sets=sets[1:] * 2)
    page = write(tmp_path / "two", larger, value=None, policy=FULL, reference=EMPTY).html
    assert "of one prompt" not in page


def test_ppo_is_reported_in_rollouts_and_its_rows_as_prompts(tmp_path):
    online = dataclasses.replace(SUMMARY, objective="ppo")
    written = write(tmp_path, evaluated(), value=None, policy=FULL, reference=EMPTY, summary=online)
    page = written.html
    assert "chosen rollout" in page and "The ringed rollout was kept" in page
    assert "was trained on its own answers" in page and "training rows kept" not in page
    assert "Reward of the training rows" not in page


def test_the_page_says_how_many_of_the_computed_tokens_were_real(tmp_path):
    policy = dataclasses.replace(FULL, cost=Cost(tokens=12_345, computed=16_460))
    page = write(tmp_path, evaluated(), value=None, policy=policy, reference=FULL).html
    training, reference = (
        page[page.index(f'<section id="{name}"') :].partition("</section>")[0]
        for name in ("training", "reference")
    )
    assert "12,345 tokens" in training and "75% are real" in training
    assert "are real" not in reference and "was not logged" in reference


def test_without_a_value_head_the_page_says_why(tmp_path):
    done = write(tmp_path, evaluated(), value=None, policy=FULL, reference=EMPTY)
    assert "does not read the advantage" in done.html and "Most reward" in done.html
    assert done.json["value_head"] is None
    tags(done.html)


def test_a_value_head_no_better_than_the_mean_is_called_so(tmp_path):
    done = write(tmp_path, evaluated(), value=valued(mse=0.3), policy=FULL, reference=EMPTY)
    assert "no better than always predicting the mean reward" in done.html
    assert done.json["value_head"]["explained_variance"] < 0


def test_without_weights_the_page_says_why_there_are_no_curves(tmp_path):
    policy = trained(curves=("loss",))
    done = write(tmp_path, evaluated(), value=valued(), policy=policy, reference=EMPTY)
    assert "No clipped fraction: the objective a_lol" in done.html
    assert "No effective sample size: the objective a_lol" in done.html
    assert "training of the reference logged nothing" in done.html


def test_where_nothing_scores_a_generation_the_page_says_so(tmp_path):
    done = write(tmp_path, unscored(), value=valued(), policy=FULL, reference=EMPTY)
    assert "Nothing can score a generated answer" in done.json["verdict"]
    assert "evenly spaced over the test set" in done.html
    assert [a["id"] for tag, a in tags(done.html).found if tag == "section"] == SECTIONS
    assert all(m["mean"] is None for m in done.json["measures"] if m["metric"] == "total")
    assert "NaN" not in done.html and not re.search(r"\bnan\b", done.html)
    assert "no scorer judges the generated answers" in result_table(unscored())


def test_rewards_of_the_data_alone_are_shown_without_a_difference(tmp_path):
    mixed = unscored()
    scored = evaluated()
    mixed = dataclasses.replace(
        mixed, data=scored.data, systems=(scored.systems[0], *mixed.systems[1:])
    )
    done = write(tmp_path, mixed, value=None, policy=FULL, reference=EMPTY)
    at = {(m["system"], m["metric"]): m["mean"] for m in done.json["measures"]}
    assert at["data", "total"] == scored.systems[0].reward.mean
    assert at["policy", "total"] is None and ("policy-reference", "total") not in at


def test_one_test_prompt_gives_a_report_but_no_claim(tmp_path):
    done = write(tmp_path, evaluated(count=1), value=valued(), policy=FULL, reference=EMPTY)
    assert "One prompt shows no difference" in done.json["verdict"]
    assert "1 of 1 test prompts" in done.html


def test_a_figure_that_is_not_finite_is_an_error(tmp_path):
    evaluation = evaluated()
    broken = dataclasses.replace(evaluation.systems[0], length=Interval(float("nan"), 0.0, 1.0))
    evaluation = dataclasses.replace(evaluation, systems=(broken, *evaluation.systems[1:]))
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path, evaluation, value=None, policy=FULL, reference=EMPTY)
