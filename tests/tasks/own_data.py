"""Files of a user's own data, and the options of the task that reads them."""

import json

from ml_collections import ConfigDict

from alol_jax.tasks import own
from alol_jax.types import Splits


def write(path, rows) -> str:
    """Writes rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def options(train_file, **changes) -> ConfigDict:
    """``config.task`` of `own`: one prompt for validation, one for test."""
    values = {
        "name": "own",
        "template": "",
        "date": "2024-07-26",
        "train_file": str(train_file),
        "validation_file": "",
        "test_file": "",
        "validation": 1,
        "test": 1,
        "limit": 0,
        "columns": {},
        "bad_rows": "stop",
        "bad_share": 0.05,
    }
    return ConfigDict(values | changes)


def load(train_file, **changes) -> Splits:
    """The splits of a file."""
    return own.load(options(train_file, **changes))


def every(splits):
    """The examples of all splits, by prompt."""
    everywhere = (*splits.train, *splits.validation, *splits.test)
    return sorted(everywhere, key=lambda example: example.prompt)


def first(splits):
    """The prompt, responses and rewards of the first example by prompt."""
    example = every(splits)[0]
    return example.prompt, example.responses, example.rewards
