"""Who may import whom, which file is the door of which library, and how long a file may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "alol_jax"

# Room -> its floor. A room imports from lower floors and from itself, never in a circle. What
# stands at the top of the package, `plan` and `prepare` are programs.
FLOORS: dict[str, int] = {
    "errors": 0,  # imports nothing of ours
    "paths": 1,
    "tables": 2,
    "types": 3,
    "objectives": 4,
    "devices": 4,
    "text": 5,
    "tasks": 5,
    "runs": 6,
    "models": 7,
    "rewards": 8,
    "decoding": 9,
    "training": 10,
    "reports": 11,
    "stages": 12,
    "programs": 13,
}
PROGRAMS = (
    "__main__",
    "main",
    "sweep",
    "compare",
    "chat",
    "export",
    "trained",
    "distill_reward",
    "doctor",
    "harness",
    "checks",
    "forecast",
    "checks_of_rows",
    "plan",
    "prepare",
)

# What a room or a file may not import although it stands lower.
CLOSED: dict[str, tuple[str, ...]] = {
    # A task is a value: programs look it up by its name and hand it on.
    **{room: ("tasks",) for room in FLOORS if room not in ("tasks", "programs")},
    "stages": ("tasks", "stages", "runs.workdir"),
    # These receive the model as an argument.
    "decoding.sampling": ("tasks", "models"),
    "decoding.beam": ("tasks", "models"),
    "decoding.decode": ("tasks", "models"),
    "training.fit": ("tasks", "models"),
    "training.batches": ("tasks", "models"),
}

# library -> the files that may import it. A library that is not here may not be imported at all.
DOORS: dict[str, tuple[str, ...]] = {
    "etils": ("paths.store", "paths.copies"),
    "fsspec": ("paths.store",),
    "orbax": ("runs.checkpoint",),
    "transformers": ("text.tokenizer_files",),
    "tokenizers": (
        "text.tokenizer",
        "text.tokenizer_files",
        "text.special_tokens",
        "text.gguf_tokenizer",
    ),
    "sentencepiece": ("text.tokenizer_files",),
    "tensorflow_datasets": ("runs.tfds", "tasks.tfds_source"),
    "pyarrow": (
        "tables.columns",
        "tables.table",
        "tables.files",
        "tasks.columnar",
        "tasks.csv_file",
        "tasks.listed",
        "tasks.sources",
    ),
    "loky": ("runs.workers",),
    "packaging": ("doctor.packages",),
    "array_record": ("runs.tfds",),
    "datasets": ("tasks.sources", "tasks.hub_source"),
    "yaml": ("tasks.smalltalk",),
    "gguf": ("models.files.gguf_file",),
    "safetensors": ("models.files.hf_reader",),
    "huggingface_hub": ("models.files.hf_reader", "prepare.hub", "runs.hub"),
    "requests": ("prepare.web",),
    "matplotlib": ("reports.figures", "reports.compare.figures"),
    "jinja2": ("reports.page", "text.chat_template"),
    "grain": ("training.batches",),
    "tensorboardX": ("training.boards",),
    "lm_eval": ("harness.model",),
    "wandb": ("training.boards",),
    "tqdm": ("runs.progress",),
    "vaderSentiment": ("rewards.text",),
    "scipy": ("reports.statistics",),
    "nltk": ("rewards.lexical",),
    "sacrebleu": ("rewards.likeness",),
    "sklearn": ("rewards.text",),
    "profanity_check": ("rewards.text",),
    "flax": ("models.blocks", "models.classifiers", "models.heads"),
    "optax": ("training.optim", "training.fit"),
    "absl": (
        "main",
        "sweep",
        "distill_reward",
        "plan.__main__",
        "prepare.__main__",
        "runs.command_line",
        "runs.tfds",
        "runs.checkpoint",
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
    """``alol_jax/stages/load.py`` -> ``stages.load``; a room's __init__ is the room."""
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
    """Modules of the package, named as in `FLOORS`."""
    return {n[len(PACKAGE) + 1 :] for n in imports if n == PACKAGE or n.startswith(PACKAGE + ".")}


def foreign(imports: set[str]) -> set[str]:
    """Libraries that are neither ours nor Python's."""
    return {n.split(".")[0] for n in imports} - {PACKAGE} - set(sys.stdlib_module_names)


def room_of(module: str) -> str:
    """The key of `FLOORS`: the first name of a module, or "programs"."""
    room = module.split(".")[0]
    return "programs" if room in PROGRAMS else room


def covers(patterns: tuple[str, ...], module: str) -> bool:
    """Whether a pattern names the module, a room that it is in, or everything (``*``)."""
    return any(p in ("*", module) or module.startswith(p + ".") for p in patterns)


def upward(module: str, text: str) -> list[str]:
    """The imports of a file that the floors do not allow."""
    room = room_of(module)
    closed = CLOSED.get(module, CLOSED.get(room, ()))
    wrong = []
    for other in sorted(ours(imports_of(text))):
        inside = room_of(other) == room or FLOORS[room_of(other)] < FLOORS[room]
        if not inside or covers(closed, other):
            wrong.append(f"{module} imports {other}")
    return wrong


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, if there are any."""
    while imports:
        free = {module for module, others in imports.items() if not others & imports.keys()}
        if not free:
            return sorted(imports)
        imports = {module: others for module, others in imports.items() if module not in free}
    return []


def strangers(module: str, text: str) -> list[str]:
    """The libraries of a file that have another door."""
    libraries = sorted(foreign(imports_of(text)))
    return [
        f"{module} imports {lib}" for lib in libraries if not covers(DOORS.get(lib, ()), module)
    ]


def test_every_file_of_the_package_is_in_a_room():
    rooms = {room_of(module_name(path)) for path in sources(PACKAGE)} - {""}
    assert rooms == FLOORS.keys()


def test_every_room_has_a_door_sign():
    for path, text in sources(PACKAGE).items():
        if path.name == "__init__.py" and path.parent.name != PACKAGE:
            sign = ast.get_docstring(ast.parse(text)) or ""
            assert 3 <= len(sign.splitlines()) <= 8, path


def test_the_tables_name_no_file_that_is_gone():
    modules = {module_name(path) for path in sources(PACKAGE)}
    doors = {door for doors in DOORS.values() for door in doors} - {"*"}
    named = doors | set(PROGRAMS) | CLOSED.keys() - FLOORS.keys()
    assert named - modules == set()


def test_imports_go_downwards():
    wrong = [line for p, text in sources(PACKAGE).items() for line in upward(module_name(p), text)]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    imports = {module_name(p): ours(imports_of(text)) for p, text in sources(PACKAGE).items()}
    assert circle({module: others - {module} for module, others in imports.items()}) == []
    assert circle({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b", "c"]


def test_each_foreign_library_has_its_door():
    wrong = [
        line for p, text in sources(PACKAGE).items() for line in strangers(module_name(p), text)
    ]
    assert wrong == []


def test_configs_import_only_the_shared_defaults():
    for path, text in sources("configs").items():
        shared = {"ml_collections", "configs.common", "configs.published", "configs.own"}
        assert imports_of(text) <= shared, path


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("models.blocks", "from alol_jax import rewards"),
        ("models.blocks", "from alol_jax.decoding.decode import generate"),
        ("objectives.losses", "from alol_jax.models.heads import ValueHead"),
        ("stages.select", "from alol_jax.stages.fit_value import fit_value"),
        ("stages.select", "def late():\n    from alol_jax.runs import workdir"),
        ("stages.load", "from alol_jax.tasks.registry import get_task"),
        ("tasks.own", "from alol_jax.rewards.reward import SCORERS"),
        ("training.fit", "from alol_jax.models.heads import ValueHead"),
        ("training.annotate", "from alol_jax.stages.load import load"),
        ("runs.workdir", "from alol_jax.decoding import decode"),
        ("reports.page", "import alol_jax.main"),
        ("types", "from alol_jax.objectives import losses"),
    ],
)
def test_a_forbidden_import_is_found(module, line):
    assert len(upward(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("training.fit", "def late():\n    import orbax.checkpoint as ocp"),
        ("tasks.own", "from datasets import load_dataset"),
        ("models.files.convert", "import torch"),
    ],
)
def test_a_library_at_the_wrong_door_is_found(module, line):
    assert len(strangers(module, line)) == 1


def test_an_allowed_import_is_not_reported():
    assert upward("runs.workdir", "from alol_jax.runs.artifacts import save_result") == []
    assert upward("decoding.answers", "from alol_jax.rewards.reward import Reward") == []
    assert upward("plan.setting", "from alol_jax import checks") == []
    assert strangers("runs.checkpoint", "import orbax.checkpoint, json") == []


def test_no_file_is_longer_than_four_hundred_lines():
    lengths = {
        str(path.relative_to(ROOT)): len(text.splitlines())
        for path, text in sources(PACKAGE, "configs", "tests").items()
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_only_main_prints():
    printing = {
        str(path.relative_to(ROOT))
        for path, text in sources(PACKAGE, "configs", "tests").items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
    }
    assert printing == {"alol_jax/main.py"}
