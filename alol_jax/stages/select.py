"""select: annotate every training row and keep those with positive advantage."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from alol_jax.devices.sharding import place_params
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.advantage import advantages, kept
from alol_jax.training.annotate import annotate
from alol_jax.training.batches import Cut, tokenise
from alol_jax.types import Annotated, Policy, ScoredSplits, StageContext, Task, TrainingTable, Value

EXTREMES = 10  # rows shown at each end of the data report


def select(
    lm: LanguageModel,
    task: Task,
    reads: tuple[str, ...],
    heads: ConfigDict,
    options: ConfigDict,
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
        options: ``config.select``.
    """
    rows, cut = tokenise(scored.train, task.template, lm.tokenizer, lm.shapes)
    if any(cut):
        context.say(cut.summary(len(rows), lm.shapes))
    if "ref_logp" in reads or "advantage" in reads:
        rows = _annotated(lm, rows, reads, heads, options, reference, value, context)
    report = data_report(rows, cut)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (context.folder / "data_report.json").write_text(text, encoding="utf-8")
    context.say(f"kept {report['kept']} of {report['rows']} rows")
    return TrainingTable(rows)


def _annotated(lm, rows, reads, heads, options, reference, value, context):
    fitted = None
    if value is not None:
        head = ValueHead(lm.transformer.config.width, value.max_value, heads.heads, heads.dropout)
        fitted = (head, place_params(value.params, lm.mesh))
    logps, values = annotate(
        lm,
        place_params(reference.trained, lm.mesh),
        rows,
        value=fitted,
        logp="ref_logp" in reads,
        batch_size=options.batch_size,
        watch=context.watch("annotate"),
    )
    advantage = advantages(np.array([row.reward for row in rows]), values.astype(np.float64))
    keeps = kept(advantage) if "advantage" in reads else np.ones(len(rows), bool)
    return tuple(
        dataclasses.replace(
            row,
            ref_logp=tuple(logp.tolist()) if "ref_logp" in reads else (),
            value=float(v),
            advantage=float(a) if "advantage" in reads else 0.0,
            kept=bool(keep),
        )
        for row, logp, v, a, keep in zip(rows, logps, values, advantage, keeps, strict=True)
    )


def data_report(rows: Sequence[Annotated], cut: Cut) -> dict:
    """Count kept and dropped rows by source, response length and reward; list extreme rows."""
    ranked = sorted(rows, key=lambda row: -row.advantage)
    reward = np.array([row.reward for row in rows])
    third = np.searchsorted(np.quantile(reward, [1 / 3, 2 / 3]), reward).tolist()
    return {
        "rows": len(rows),
        "kept": sum(row.kept for row in rows),
        "cut": cut.responses,
        "cut_prompts": cut.prompts,
        "by_source": _count_by(rows, [row.source for row in rows]),
        "by_response_tokens": _count_by(rows, [_length_class(len(row.response)) for row in rows]),
        "by_reward": _count_by(rows, [("low", "middle", "high")[place] for place in third]),
        "most_advantageous": [_row_json(row) for row in ranked[:EXTREMES]],
        "least_advantageous": [_row_json(row) for row in ranked[::-1][:EXTREMES]],
    }


def _length_class(tokens: int) -> str:
    high = max(4, 1 << (tokens - 1).bit_length())
    return f"{high // 2 + 1 if high > 4 else 1} to {high}"


def _count_by(rows: Sequence[Annotated], group: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count kept and dropped rows of each group; ``group`` has the group of each row."""
    counts = collections.Counter((name, row.kept) for name, row in zip(group, rows, strict=True))
    return {
        name: {"kept": counts[name, True], "dropped": counts[name, False]}
        for name in sorted({*group})
    }


def _row_json(row: Annotated) -> dict:
    return {
        "prompt": row.prompt_text,
        "response": row.response_text,
        "source": row.source,
        "reward": row.reward,
        "value": row.value,
        "advantage": row.advantage,
    }
