"""Who may import whom, which file is the door of which library, and how long a file may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "alol_jax"

# models/ in the order in which one may import the other.
MODELS = (
    *("config", "attention", "nf4", "blocks", "transformer", "heads", "classifiers", "adapters"),
    *("weight_names", "hf_fields", "hf_config", "hf_files", "hf_writer", "gguf_file", "convert"),
    *("classifier_files", "peft_config", "peft_files", "merge"),
)

# (module or package.*) -> (layer, what it may import of its own layer). Everything may import any
# lower layer, unless `FORBIDDEN` says otherwise.
LAYERS: dict[str, tuple[float, tuple[str, ...]]] = {
    "": (0, ()),  # alol_jax/__init__.py
    "types": (0, ()),
    # mathematics: arrays in, arrays out
    "objectives": (1, ("ppo",)),
    "ppo": (1, ()),
    "advantage": (1, ()),
    "logprobs": (1, ()),
    "statistics": (1, ()),
    # machinery
    "models": (2, ()),
    **{
        f"models.{name}": (2, tuple(f"models.{earlier}" for earlier in MODELS[:place]))
        for place, name in enumerate(MODELS)
    },
    "tasks": (2, ("tasks.*",)),
    "tasks.*": (2, ("tasks.*",)),
    "tokenizer": (2, ()),
    "tokenizer_files": (2, ("tokenizer",)),
    "tokens": (2, ()),
    "sharding": (2, ()),
    "checkpoint": (2, ()),
    "optim": (2, ()),
    "metrics": (2, ()),
    "tables": (2, ()),
    "command_line": (2, ("progress",)),
    "progress": (2, ()),
    "figures": (2, ()),
    "comparison_figures": (2, ("figures",)),
    "page": (2, ()),
    "results": (2, ()),
    # what stages are made of
    "artifacts": (3, ()),
    "workdir": (3, ("artifacts",)),
    "rewards": (3, ("rewards.*",)),
    "rewards.*": (3, ("rewards.*", "language_model")),
    "sampling": (3, ()),
    "beam": (3, ("sampling",)),
    "decode": (3, ("beam", "sampling")),
    "fit": (3, ()),
    "batches": (3, ()),
    "language_model": (3, ()),
    "flops": (3, ()),
    "sections": (3, ()),
    "sections_fit": (3, ()),
    # several runs side by side
    "comparison_rows": (3, ()),
    "comparison": (3, ("comparison_rows",)),
    "comparison_words": (3, ("comparison", "comparison_rows")),
    "comparison_files": (3, ("comparison", "comparison_rows", "comparison_words")),
    "comparison_curves": (3, ("comparison", "comparison_rows", "sections_fit")),
    "comparison_page": (
        3,
        ("comparison", "comparison_curves", "comparison_rows", "comparison_words"),
    ),
    "annotate": (3.5, ()),
    "costs": (3.5, ()),
    "head_fit": (3.5, ()),
    "rollouts": (3.5, ("answers",)),
    "validation": (3.5, ("annotate", "answers")),
    "answers": (3.5, ()),
    "checks": (3.5, ("rollouts",)),
    "stages": (4, ()),
    "stages.*": (4, ()),
    "model_card": (4, ()),
    "finished_runs": (4, ()),
    "main": (5, ()),
    "sweep": (5, ("main", "compare")),
    "distill_reward": (5, ("main",)),
    "plan": (5, ("plan.*",)),
    "plan.*": (5, ("plan.*",)),
    "export": (5, ()),
    "compare": (5, ()),
}
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "stages.*": ("tasks", "tasks.*", "workdir"),
    # A task names its scorers by key; what reads or writes files knows no model.
    "sections": ("tasks", "tasks.*"),
    "sections_fit": ("tasks", "tasks.*"),
    "artifacts": ("tasks", "tasks.*"),
    "workdir": ("tasks", "tasks.*"),
    "rewards": ("tasks", "tasks.*"),
    "rewards.*": ("tasks", "tasks.*"),
    "sampling": ("tasks", "tasks.*", "models.*"),
    "beam": ("tasks", "tasks.*", "models.*"),  # receive the model as an argument
    "decode": ("tasks", "tasks.*", "models.*"),
    "fit": ("tasks", "tasks.*", "models.*"),
    "batches": ("tasks", "tasks.*", "models.*"),
    "language_model": ("tasks", "tasks.*"),
    "annotate": ("tasks", "tasks.*"),
    "answers": ("tasks", "tasks.*"),
    "checks": ("tasks", "tasks.*"),
}

# library -> the files that may import it. A library that is not here may not be imported at all.
DOORS: dict[str, tuple[str, ...]] = {
    "orbax": ("checkpoint",),
    "transformers": ("tokenizer_files",),
    "tokenizers": ("tokenizer", "tokenizer_files"),
    "sentencepiece": ("tokenizer_files",),
    "tensorflow_datasets": ("tables",),
    "datasets": ("tasks.sources",),
    "yaml": ("tasks.smalltalk",),
    "gguf": ("models.gguf_file",),
    "safetensors": ("models.hf_files",),
    "huggingface_hub": ("models.hf_files",),
    "matplotlib": ("figures", "comparison_figures"),
    "jinja2": ("page",),
    "grain": ("batches",),
    "tensorboardX": ("metrics",),
    "tqdm": ("progress",),
    "vaderSentiment": ("rewards.text",),
    "sklearn": ("rewards.text",),
    "profanity_check": ("rewards.text",),
    "flax": ("models.blocks", "models.classifiers", "models.heads"),
    "optax": ("optim", "fit"),
    "absl": (
        "main",
        "sweep",
        "distill_reward",
        "plan.__main__",
        "command_line",
        "tables",
        "checkpoint",
    ),  # logging
    "chex": ("*",),
    "jax": ("*",),
    "ml_collections": ("*",),
    "numpy": ("*",),
}


def sources(*folders: str) -> dict[Path, str]:
    found = {
        path: path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert found
    return found


def module_name(path: Path) -> str:
    """``alol_jax/stages/load.py`` -> ``stages.load``; a package's __init__ is the package."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(dotted: str) -> bool:
    place = ROOT.joinpath(*dotted.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imports_of(text: str) -> set[str]:
    """The dotted modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who is imported"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if is_module(name)}
            found |= modules | ({node.module} if modules != inner else set())
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert name not in ("import_module", "__import__"), "an import that cannot be read"
    return found


def ours(imports: set[str]) -> set[str]:
    """Modules of the package, named as in `LAYERS`."""
    return {n[len(PACKAGE) + 1 :] for n in imports if n == PACKAGE or n.startswith(PACKAGE + ".")}


def foreign(imports: set[str]) -> set[str]:
    """Libraries that are neither ours nor Python's."""
    return {n.split(".")[0] for n in imports} - {PACKAGE} - set(sys.stdlib_module_names)


def row_of(module: str) -> str | None:
    """The key of `LAYERS` that holds a module."""
    if module in LAYERS:
        return module
    wildcard = module.rsplit(".", 1)[0] + ".*"
    return wildcard if "." in module and wildcard in LAYERS else None


def covers(patterns: tuple[str, ...], module: str) -> bool:
    return any(
        module == p or (p.endswith(".*") and module.startswith(p[:-1])) or p == "*"
        for p in patterns
    )


def upward(module: str, text: str) -> list[str]:
    """The imports of a file that the layers do not allow."""
    row = row_of(module)
    layer, peers = LAYERS[row]
    wrong = []
    for other in sorted(ours(imports_of(text))):
        lower = row_of(other) is not None and LAYERS[row_of(other)][0] < layer
        allowed = covers(peers, other) or (lower and not covers(FORBIDDEN.get(row, ()), other))
        if not allowed:
            wrong.append(f"{module} imports {other}")
    return wrong


def strangers(module: str, text: str) -> list[str]:
    """The libraries of a file that have another door."""
    libraries = sorted(foreign(imports_of(text)))
    return [
        f"{module} imports {lib}" for lib in libraries if not covers(DOORS.get(lib, ()), module)
    ]


def test_every_file_of_the_package_has_its_place_in_the_table():
    modules = {module_name(path) for path in sources(PACKAGE)}
    assert {module for module in modules if row_of(module) is None} == set()


def test_the_table_names_no_file_that_is_gone():
    modules = {module_name(path) for path in sources(PACKAGE)}
    rows = LAYERS.keys() | {door for doors in DOORS.values() for door in doors} - {"*"}
    assert {row for row in rows if not any(covers((row,), module) for module in modules)} == set()


def test_imports_go_strictly_downwards():
    wrong = [line for p, text in sources(PACKAGE).items() for line in upward(module_name(p), text)]
    assert wrong == []


def test_each_foreign_library_has_one_door():
    wrong = [
        line for p, text in sources(PACKAGE).items() for line in strangers(module_name(p), text)
    ]
    assert wrong == []


def test_configs_import_only_the_shared_defaults():
    for path, text in sources("configs").items():
        assert imports_of(text) <= {"ml_collections", "configs.common"}, path


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("models.blocks", "from alol_jax.models import transformer"),
        ("models.blocks", "from alol_jax.models.transformer import Transformer"),
        ("objectives", "import alol_jax.advantage"),
        ("stages.select", "from alol_jax.stages.fit_value import fit_value"),
        ("stages.select", "def late():\n    from alol_jax import workdir"),
        ("stages.load", "from alol_jax.tasks import get_task"),
        ("tasks.jsonl", "from alol_jax.rewards import SCORERS"),
        ("fit", "from alol_jax.models.heads import ValueHead"),
        ("annotate", "from alol_jax.answers import answer"),
        ("workdir", "from alol_jax import decode"),
        ("types", "from alol_jax import objectives"),
    ],
)
def test_a_forbidden_import_is_found(module, line):
    assert len(upward(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("fit", "def late():\n    import orbax.checkpoint as ocp"),
        ("tasks.jsonl", "from datasets import load_dataset"),
        ("models.convert", "import torch"),
    ],
)
def test_a_library_at_the_wrong_door_is_found(module, line):
    assert len(strangers(module, line)) == 1


def test_an_allowed_import_is_not_reported():
    assert upward("workdir", "from alol_jax.artifacts import save_result") == []
    assert upward("answers", "from alol_jax import decode, rewards") == []
    assert strangers("checkpoint", "import orbax.checkpoint, json") == []


def test_no_file_is_longer_than_four_hundred_lines():
    lengths = {
        str(path.relative_to(ROOT)): len(text.splitlines())
        for path, text in sources(PACKAGE, "configs", "tests").items()
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_only_main_and_progress_print():
    printing = {
        str(path.relative_to(ROOT))
        for path, text in sources(PACKAGE, "configs", "tests").items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
    }
    assert printing == {"alol_jax/main.py", "alol_jax/progress.py"}
