"""The card of a data set of annotated rows: what its columns are, and how they were made."""

from __future__ import annotations

import json

from alol_jax.runs.data_files import published_columns
from alol_jax.runs.workdir import Stage
from alol_jax.tables.table import Table
from alol_jax.types import Annotated, is_chat

_ABOUT = {
    "id": "the prompt's id; the responses to a prompt share it",
    "prompt": "the prompt",
    "response": "the response",
    "source": "where the row is from",
    "reward": "R, the reward of the response",
    "kept": "whether A > 0, which is what the A-LoL family trains on",
    "ref_logp": "log π_ref of the whole response, in nats: the sum over its tokens",
    "response_tokens": "how many tokens that sum has, the end token included",
    "value": "V(x), what the reference can expect for the prompt",
    "advantage": "A = R − V(x)",
}


def data_card(select: Stage, rows: Table[Annotated]) -> str:
    """Return the text of README.md as the hub reads it: YAML fields, then sections.

    Args:
        select: the stage that made the rows.
    """
    config, reads = select.config(), columns_read(select)
    title = config.report.title or f"Rows of {config.task.name}"
    weights = " + ".join(f"{w:g} × {name}" for name, w in config.rewards.items() if w)
    table = "\n".join(f"| `{name}` | {_ABOUT[name]} |" for name in published_columns(reads))
    model = f"`{config.model.path}`"
    if config.reference.epochs:
        model += f", trained on the rows' likelihood for {config.reference.epochs:g} epochs"
    form = "the task's own form"
    if is_chat(config.task.template):
        form = "the model's own chat template"
    elif config.task.template:
        form = f"this form: `{json.dumps(config.task.template, ensure_ascii=False)}`"
    return f"""---
tags: [a-lol, offline-rl]
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# {title}: annotated training rows

{len(rows)} rows, of which {int(rows["kept"].sum())} were kept, written by alol_jax.

| column | |
|---|---|
{table}

* Reward: {weights or "as stored with the data"}.
* π_ref: {model}.
* Prompts are read in {form}.

```python
from datasets import load_dataset

rows = load_dataset("THIS_FOLDER", split="train")
```

## License

To be filled in by whoever publishes this data set: the license of the data applies.
"""


def columns_read(select: Stage) -> tuple[str, ...]:
    """Return the columns that the stage computed for its objective."""
    return tuple(select.record["inputs"].get("reads", ()))
