"""A policy answers prompts, and the answers are scored: one way for all stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from alol_jax.decode import respond
from alol_jax.language_model import LanguageModel
from alol_jax.progress import never
from alol_jax.rewards import Reward
from alol_jax.sampling import Sampling
from alol_jax.sharding import place_params
from alol_jax.types import Params, Scored, Task


def one_per_prompt(rows: Sequence[Scored]) -> tuple[Scored, ...]:
    """The rows without the further responses of a prompt."""
    first: dict[str, Scored] = {}
    for row in rows:
        first.setdefault(row.example_id, row)
    return tuple(first.values())


def answer(
    lm: LanguageModel,
    task: Task,
    trained: Params,
    asked: Sequence[Scored],
    reward: Reward,
    sampling: Sampling,
    *,
    batch_size: int,
    key: jax.Array,
    label: str,
    say: Callable[[str], None],
    stopping: Callable[[], bool] = never,
) -> tuple[Scored, ...]:
    """``asked`` with the responses of the policy with leaves ``trained``, scored.

    Args:
        reward: without components, the rewards of the answers are 0 and mean nothing.
        sampling: its ``end`` gets the tokenizer's end token besides, its ``stop`` is set to the
            tokens of the task's stop texts. Decoding ends early where they come as these very
            tokens; the text is cut at the first stop text in any case.
        key: row i draws from fold_in(key, i), where sampling draws at all.
        say: is told how fast it went.
        label, stopping: see `progress`.
    """
    stop = (tuple(lm.tokenizer.encode(text)) for text in task.stop)
    end = (lm.tokenizer.eos_id, *sampling.end)
    responses = respond(
        lm.transformer,
        {**lm.frozen(), **place_params(trained, lm.mesh)},
        lm.tokenizer,
        [
            lm.tokenizer.prompt(task.template, row.prompt, limit=lm.prompt_widths[-1])
            for row in asked
        ],
        dataclasses.replace(sampling, end=end, stop=tuple(ids for ids in stop if ids)),
        widths=lm.prompt_widths,
        batch_size=batch_size,
        key=key,
        mesh=lm.mesh,
        stop_texts=task.stop,
        label=label,
        say=say,
        stopping=stopping,
    )
    if reward.names:
        return reward.rows(asked, responses)
    return tuple(
        dataclasses.replace(row, response=response, components=(), reward=0.0)
        for row, response in zip(asked, responses, strict=True)
    )
