"""What README and docs say is what the code does."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from alol_jax.main import STAGES
from alol_jax.objectives.registry import OBJECTIVES, hyper_parameters
from alol_jax.tasks.registry import TASKS
from configs import hha, own, quickstart

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*.md"))
}
README = PAGES["README.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_table_of_objectives_is_the_table_in_the_code():
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| (.*?) \| (?:≥ )?(\d) \| (.*?) \| (.*?) \|$",
        PAGES["docs/objectives.md"],
        re.MULTILINE,
    )
    told = {
        name: (
            {column for column in reads.split(", ") if column != "–"},
            int(responses),
            set(re.findall(r"`(\w+)`", hyper)),
            None if draw_by == "–" else draw_by,
        )
        for name, reads, responses, hyper, draw_by in rows
        if name != "ppo"
    }
    assert told == {
        name: (set(row.reads), row.responses, set(hyper_parameters(row)), row.draw_by)
        for name, row in OBJECTIVES.items()
        if name != "ppo"  # has a config section of its own
    }
    assert all(f"`{name}`" in README for name in OBJECTIVES)


def test_the_picture_shows_the_stages_in_order():
    assert tuple(re.findall(r"^ \d (\w+) ─", README, re.MULTILINE)) == tuple(
        name
        for name in STAGES
        # Only if the config asks for them, and the first half of evaluate.
        if name not in ("distil", "fit_policy_online", "evaluate_reference")
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    folder = (ROOT / page).parent
    for path in re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", PAGES[page]):
        assert (folder / path).exists(), path
    rooms = "alol_jax|configs|tests|launch|docs|benchmarks"
    for path in re.findall(rf"`((?:{rooms})/[\w/.-]*)[`:]", PAGES[page]):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:bash |--config=)([\w/]+\.(?:sh|py))", PAGES[page]):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:alol_jax|benchmarks)[\w.]*)", PAGES[page]):
        place = ROOT.joinpath(*module.rstrip(".").split("."))
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    for path in re.findall(r"pytest ((?:tests/[\w/.]+ ?)+)", PAGES[page]):
        assert all((ROOT / one.rstrip(".")).exists() for one in path.split()), path


@pytest.mark.parametrize("page", PAGES)
def test_every_config_field_that_a_page_sets_exists(page):
    configs = [one.get_config() for one in (quickstart, own, hha)]
    for field in re.findall(r"--config\.([\w.]+)=", PAGES[page]):
        assert any(_has(config, field.split(".")) for config in configs), field


def _has(section, keys) -> bool:
    return not keys or (keys[0] in section and _has(section[keys[0]], keys[1:]))


def test_the_map_names_every_room_and_program():
    page = PAGES["docs/architecture.md"]
    rooms = {path.parent.name for path in (ROOT / "alol_jax").glob("*/__init__.py")}
    assert all(re.search(rf"── {room}/ ", page) for room in rooms)
    programs = {path.name for path in (ROOT / "alol_jax").glob("*.py")} - {"__init__.py"}
    assert all(name in page for name in programs)


def test_the_readme_is_short_and_names_the_tasks():
    assert len(README.splitlines()) <= 150
    assert all(f"`{name}`" in README for name in TASKS)


@pytest.mark.parametrize("config", [quickstart, own, hha])
def test_a_config_says_what_it_is_and_how_to_run_it(config):
    assert "python -m alol_jax.main --config=configs/" in config.__doc__


def test_the_workflow_calls_the_test_command_on_supported_pythons():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["default"]
    assert job["steps"][-1]["run"] == "bash launch/test.sh"
    least = PROJECT["requires-python"].removeprefix(">=")
    assert min(job["strategy"]["matrix"]["python"]) == least


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["version"] and cited["license"] == PROJECT["license"]
