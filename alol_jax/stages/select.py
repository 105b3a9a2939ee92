"""select: annotate every training row and keep those with positive advantage."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.devices import processes
from alol_jax.devices.sharding import place_params
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.advantage import advantages, kept
from alol_jax.tables.table import Table
from alol_jax.training.annotate import annotate
from alol_jax.training.items import Cut, tokenise
from alol_jax.types import Annotated, Policy, ScoredSplits, StageContext, Task, TrainingTable, Value

EXTREMES = 10  # rows shown at each end of the data report


def select(
    lm: LanguageModel,
    task: Task,
    reads: tuple[str, ...],
    heads: ConfigDict,
    scored: ScoredSplits,
    reference: Policy | None,
    value: Value | None,
    *,
    context: StageContext,
) -> TrainingTable:
    """Make the training table: tokens, with ``ref_logp``, ``value`` and ``advantage`` if needed.

    Also writes ``data_report.json``.

    Args:
        reads: the columns to compute: those the objective reads and any others the config asks
            for, so that runs of several objectives can share the table.
        heads: ``config.value``, the architecture of the value head.
    """
    tokens = context.folder / "tokens.arrow"
    rows, cut = tokenise(scored.train, task, lm.tokenizer, lm.limits, file=tokens)
    if any(cut):
        context.say(cut.summary(len(rows), lm.limits))
    if "ref_logp" in reads or "advantage" in reads:
        rows = _annotated(lm, rows, reads, heads, reference, value, context)
        # Its rows stay mapped until they are written again, annotated.
        processes.from_first("tokens", tokens.unlink)
    report = data_report(rows, cut)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if processes.is_first():
        paths.write_text(context.folder / "data_report.json", text)
    context.say(f"kept {report['kept']} of {report['rows']} rows")
    return TrainingTable(rows)


def _annotated(lm, rows, reads, heads, reference, value, context):
    fitted = None
    if value is not None:
        width = lm.transformer.config.width
        head = ValueHead(width, value.max_value, heads.heads, heads.dropout, value.min_value)
        fitted = (head, place_params(value.params, lm.mesh))
    logps, values = annotate(
        lm,
        place_params(reference.trained, lm.mesh),
        rows,
        value=fitted,
        logp="ref_logp" in reads,
        watch=context.watch("annotate"),
    )
    advantage = advantages(rows["reward"], values.astype(np.float64))
    by_advantage = "advantage" in reads
    return rows.replace(
        ref_logp=logps if "ref_logp" in reads else rows["ref_logp"],
        value=values.astype(np.float64),
        advantage=advantage if by_advantage else rows["advantage"],
        kept=kept(advantage) if by_advantage else rows["kept"],
    )


def data_report(rows: Table[Annotated], cut: Cut) -> dict:
    """Count kept and dropped rows by source, response length and reward; list extreme rows."""
    keeps, reward = rows["kept"], rows["reward"]
    ranked = np.argsort(-rows["advantage"], kind="stable")
    third = np.searchsorted(np.quantile(reward, [1 / 3, 2 / 3]), reward)
    return {
        "rows": len(rows),
        "kept": int(keeps.sum()),
        "cut": cut.responses,
        "cut_prompts": cut.prompts,
        "by_source": _count_by(keeps, rows["source"].codes(), list(rows["source"].distinct())),
        "by_response_tokens": _count_by_length(keeps, rows["response"].lengths),
        "by_reward": _count_by(keeps, third, ["low", "middle", "high"]),
        "most_advantageous": [_row_json(row) for row in rows.take(ranked[:EXTREMES])],
        "least_advantageous": [_row_json(row) for row in rows.take(ranked[::-1][:EXTREMES])],
    }


def _count_by_length(keeps: np.ndarray, lengths: np.ndarray) -> dict[str, dict[str, int]]:
    """Count by classes of lengths: 1 to 4, 5 to 8, 9 to 16, …"""
    power = np.maximum(np.searchsorted(2 ** np.arange(63), lengths), 2)
    names = ["", "", "1 to 4", *(f"{2 ** (p - 1) + 1} to {2**p}" for p in range(3, 64))]
    return _count_by(keeps, power, names)


def _count_by(
    keeps: np.ndarray, group: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count kept and dropped rows of each group; ``group`` has the group of each row."""
    every = np.bincount(group, minlength=len(names)).tolist()
    kept = np.bincount(group[keeps], minlength=len(names)).tolist()
    counts = {
        name: {"kept": k, "dropped": n - k}
        for name, k, n in zip(names, kept, every, strict=True)
        if n
    }
    return dict(sorted(counts.items()))


def _row_json(row: Annotated) -> dict:
    return {
        "prompt": row.prompt_text,
        "response": row.response_text,
        "source": row.source,
        "reward": row.reward,
        "value": row.value,
        "advantage": row.advantage,
    }
