"""Audits of labelled answers, as the experiment `labels` reads them."""

import json

from benchmarks.evidence.labels import REWARDS

LABELS = list(REWARDS)


def audit(folder, prompts, **changes):
    """An audit of short prompts, each with three answers."""
    rows = [
        {
            "knowledge": f"Fact {n}.",
            "history": ["Hello."],
            "responses": [f"It is {n}.", "Yes.", "No."],
            "begin": [LABELS[(n + k) % len(LABELS)] for k in range(3)],
            "writer": ["gpt2", "doha", "ctrl"],
        }
        | changes
        for n in range(prompts)
    ]
    file = folder / "audit.jsonl"
    folder.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
