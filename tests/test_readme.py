"""What README.md says is what the code does."""

import re
from pathlib import Path

import pytest

from alol_jax.main import STAGES
from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.tasks.registry import TASKS
from configs import hha, jsonl, quickstart

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_objectives_is_the_table_in_the_code():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*?) \| (?:≥ )?(\d) \| (.*?) \|$", README, re.MULTILINE)
    told = {
        name: (
            tuple(column for column in reads.split(", ") if column != "–"),
            int(responses),
            None if draw_by == "–" else draw_by,
        )
        for name, reads, responses, draw_by in rows
    }
    assert told == {
        name: (objective.reads, objective.responses, objective.draw_by)
        for name, objective in OBJECTIVES.items()
    }


def test_the_picture_shows_the_stages_in_order():
    assert tuple(re.findall(r"^ \d (\w+) ─", README, re.MULTILINE)) == tuple(
        name
        for name in STAGES
        if name != "fit_policy_online"  # in the place of fit_policy
    )


def test_every_file_and_config_field_that_it_names_exists():
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:bash |--config=)([\w/]+\.(?:sh|py))", README):
        assert (ROOT / path).exists(), path
    configs = [one.get_config() for one in (quickstart, jsonl, hha)]
    for field in re.findall(r"--config\.([\w.]+)=", README):
        assert any(_has(config, field.split(".")) for config in configs), field


def _has(section, keys) -> bool:
    return not keys or (keys[0] in section and _has(section[keys[0]], keys[1:]))


def test_the_limits_name_the_tasks_that_there_are():
    assert all(f"`{name}`" in README for name in TASKS)


@pytest.mark.parametrize("config", [quickstart, jsonl, hha])
def test_a_config_says_what_it_is_and_how_to_run_it(config):
    assert "python -m alol_jax.main --config=configs/" in config.__doc__
