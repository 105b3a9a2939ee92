"""A policy answers prompts, and the answers are scored: one way for all stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from alol_jax.decoding.decode import respond
from alol_jax.decoding.sampling import Sampling
from alol_jax.devices.sharding import place_params
from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards.reward import Reward
from alol_jax.runs.progress import never
from alol_jax.types import Params, Scored, Task

Ids = tuple[int, ...]


def one_per_prompt(rows: Sequence[Scored]) -> tuple[Scored, ...]:
    """The rows without the further responses of a prompt."""
    first: dict[str, Scored] = {}
    for row in rows:
        first.setdefault(row.example_id, row)
    return tuple(first.values())


def write(
    lm: LanguageModel,
    task: Task,
    trained: Params,
    asked: Sequence[Scored],
    sampling: Sampling,
    *,
    batch_size: int,
    key: jax.Array,
    label: str,
    say: Callable[[str], None],
    stopping: Callable[[], bool] = never,
) -> tuple[Ids, ...]:
    """The token ids that the policy with leaves ``trained`` writes for the prompts of ``asked``.

    Args:
        sampling: its ``end`` gets the tokenizer's end token besides, its ``stop`` is set to the
            tokens of the task's stop texts: decoding ends where they come as these very tokens.
        key: row i draws from fold_in(key, i), where sampling draws at all.
        say: is told how fast it went.
        label, stopping: see `progress`.
    """
    limit = lm.prompt_widths[-1]
    return respond(
        lm.transformer,
        {**lm.frozen(), **place_params(trained, lm.mesh)},
        [lm.tokenizer.prompt(task.template, row.prompt, limit=limit) for row in asked],
        ending_as(sampling, lm, task),
        widths=lm.prompt_widths,
        batch_size=batch_size,
        pad_id=lm.tokenizer.pad_id,
        key=key,
        mesh=lm.mesh,
        label=label,
        say=say,
        stopping=stopping,
    )


def ending_as(sampling: Sampling, lm: LanguageModel, task: Task) -> Sampling:
    """``sampling`` with everything that ends an answer of this model to this task."""
    stop = (tuple(lm.tokenizer.encode(text)) for text in task.stop)
    end = (lm.tokenizer.eos_id, *sampling.end)
    return dataclasses.replace(sampling, end=end, stop=tuple(ids for ids in stop if ids))


def texts(lm: LanguageModel, task: Task, written: Sequence[Ids]) -> tuple[str, ...]:
    """What was written as the task reads it."""
    return tuple(task.clean(lm.tokenizer.decode(ids)) for ids in written)


def endings(
    lm: LanguageModel, task: Task, written: Sequence[Ids], sampling: Sampling
) -> tuple[str, ...]:
    """How the answers end, counted; and a warning about stop texts that none of them has, where
    answers run on to the limit. A stop text with spaces around it is no other one: it is listed
    because its tokens are others.

    Args:
        sampling: as given to `write`.
    """
    ends = {lm.tokenizer.eos_id, *sampling.end}
    closed = sum(bool(ids) and ids[-1] in ends for ids in written)
    full = sum(len(ids) == sampling.max_new_tokens and ids[-1] not in ends for ids in written)
    stopped = len(written) - closed - full
    lines = [f"{closed} ended, {stopped} stopped by a text, {full} cut at the limit"]
    decoded = [lm.tokenizer.decode(ids) for ids in written]
    stops = dict.fromkeys(stop.strip() or stop for stop in task.stop)
    unseen = [stop for stop in stops if not any(stop in text for text in decoded)]
    if unseen and full:
        said = ", ".join(map(repr, unseen))
        lines.append(f"warning: no answer has the stop text {said}: is it what this model writes?")
    return tuple(lines)


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
        say: is told how fast it went and how the answers end.
        sampling, batch_size, key, label, stopping: as in `write`.
    """
    speed: list[str] = []
    written = write(
        lm,
        task,
        trained,
        asked,
        sampling,
        batch_size=batch_size,
        key=key,
        label=label,
        say=speed.append,
        stopping=stopping,
    )
    how, *warnings = endings(lm, task, written, sampling)
    for line in (f"{speed[0]}; {how}", *warnings):
        say(line)
    responses = texts(lm, task, written)
    if reward.names:
        return reward.rows(asked, responses)
    return tuple(
        dataclasses.replace(row, response=response, components=(), reward=0.0)
        for row, response in zip(asked, responses, strict=True)
    )
