"""What both sides run: rows as token ids, the items of each step, options and initial weights.

A job is a folder with ``rows.npz``, ``job.json``, ``model`` (a Hugging Face directory) and
``adapter`` (PEFT). It imports nothing of either side.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Job:
    """Attributes:
    prompts, responses: token ids of N rows.
    reward, advantage: f32[N].
    pairs: i64[I, 2], rows of one prompt, the better one first.
    draws: i64[steps, B], rows of each step; for pairs, rows of ``pairs``.
    options: limits, optimizer, hyper-parameters.
    """

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    reward: np.ndarray
    advantage: np.ndarray
    pairs: np.ndarray
    draws: np.ndarray
    pair_draws: np.ndarray
    options: dict

    def items(self, objective: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of every item, i64[I, K], and the items of each step, i64[steps, B]."""
        if objective == "dpo":
            return self.pairs, self.pair_draws
        return np.arange(len(self.reward))[:, None], self.draws

    def real_tokens(self, objective: str) -> int:
        """The tokens of all steps without padding, a prompt counted for every response."""
        members, draws = self.items(objective)
        rows = members[draws].reshape(-1)
        return sum(len(self.prompts[row]) + len(self.responses[row]) for row in rows)


def save(folder: Path, job: Job) -> None:
    """Write the rows and the options of a job."""
    texts = {}
    for name in ("prompts", "responses"):
        rows = getattr(job, name)
        texts[name] = np.concatenate(rows)
        texts[f"{name}_lengths"] = np.array([len(row) for row in rows])
    numbers = {n: getattr(job, n) for n in ("reward", "advantage", "pairs", "draws", "pair_draws")}
    np.savez(folder / "rows.npz", **texts, **numbers)
    (folder / "job.json").write_text(json.dumps(job.options, indent=1), encoding="utf-8")


def load(folder: Path) -> Job:
    """Read what `save` wrote."""
    stored = dict(np.load(folder / "rows.npz"))
    texts = {
        name: np.split(stored.pop(name), np.cumsum(stored.pop(f"{name}_lengths"))[:-1])
        for name in ("prompts", "responses")
    }
    return Job(**texts, **stored, options=json.loads((folder / "job.json").read_text()))
