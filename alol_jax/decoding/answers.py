"""A policy answers prompts, and the answers are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from alol_jax.decoding.decode import respond
from alol_jax.decoding.sampling import Sampling, decoding_of, drawing_of
from alol_jax.devices.sharding import place_params
from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards.reward import Reward, Scoring
from alol_jax.types import Params, Scored, ScoredSplits, Task, Watch

Ids = tuple[int, ...]


class Setup(NamedTuple):
    """A model, the task whose prompts it answers, and the reward of its answers."""

    lm: LanguageModel
    task: Task
    scoring: Scoring
    decoding: ConfigDict  # config.decode
    seed: int

    def reward(self, scored: ScoredSplits) -> Reward:
        """The reward; its parts that need fitting (tf-idf) are fitted to the training responses."""
        return self.scoring.reward([row.response for row in scored.train])

    def likeliest(self) -> Sampler:
        """Decodes greedily or by beams, as ``config.decode`` says."""
        return self._sampler(decoding_of(self.decoding))

    def drawn(self, drawing: ConfigDict) -> Sampler:
        """Decodes with the temperature, top-k and top-p of ``drawing``."""
        return self._sampler(drawing_of(self.decoding, drawing))

    def _sampler(self, sampling: Sampling) -> Sampler:
        return Sampler(self.lm, self.task, sampling, self.decoding.batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Writes the answers of a policy to the prompts of a task.

    Attributes:
        lm: the model without the policy's own leaves.
        sampling: how tokens are chosen. The tokenizer's end token and the task's stop texts end an
            answer too.
        batch_size: prompts decoded together.
    """

    lm: LanguageModel
    task: Task
    sampling: Sampling
    batch_size: int

    def write(
        self, trained: Params, asked: Sequence[Scored], *, key: jax.Array, watch: Watch
    ) -> tuple[Ids, ...]:
        """The token ids that the policy writes to the prompts of ``asked``, the end included.

        Args:
            trained: the policy's leaves.
            key: row i draws from fold_in(key, i), where sampling draws at all.
            watch: gets one line with the speed.
        """
        lm, limit = self.lm, self.lm.prompt_widths[-1]
        return respond(
            lm.transformer,
            {**lm.frozen(), **place_params(trained, lm.mesh)},
            [
                lm.tokenizer.encode_prompt(self.task.template, row.prompt, limit=limit)
                for row in asked
            ],
            self._ending(),
            batching=lm.batching(self.batch_size),
            key=key,
            watch=watch,
        )

    def answer(
        self,
        trained: Params,
        asked: Sequence[Scored],
        reward: Reward,
        *,
        key: jax.Array,
        watch: Watch,
    ) -> tuple[Scored, ...]:
        """``asked`` with the policy's responses and their scores.

        Args:
            reward: without components the rewards are 0 and mean nothing.
            watch: gets the speed, how the answers end, and warnings.
            trained, key: as in `write`.
        """
        speed: list[str] = []
        written = self.write(trained, asked, key=key, watch=watch._replace(say=speed.append))
        how, *warnings = self.endings(written)
        for line in (f"{speed[0]}; {how}", *warnings):
            watch.say(line)
        responses = self.texts(written)
        if reward.names:
            return reward.rows(asked, responses)
        return tuple(
            dataclasses.replace(row, response=response, components=(), reward=0.0)
            for row, response in zip(asked, responses, strict=True)
        )

    def texts(self, written: Sequence[Ids]) -> tuple[str, ...]:
        """The written ids as text, cleaned as the task says."""
        return tuple(self.task.clean(self.lm.tokenizer.decode(ids)) for ids in written)

    def endings(self, written: Sequence[Ids]) -> tuple[str, ...]:
        """How many answers ended in which way.

        A second line warns about stop texts that no answer has, where answers run to the limit.
        Stop texts that differ only in the spaces around them count as one: they are listed apart
        because their tokens differ.
        """
        limit, ends = self.sampling.max_new_tokens, {self.lm.tokenizer.eos_id, *self.sampling.end}
        closed = sum(bool(ids) and ids[-1] in ends for ids in written)
        full = sum(len(ids) == limit and ids[-1] not in ends for ids in written)
        stopped = len(written) - closed - full
        lines = [f"{closed} ended, {stopped} stopped by a text, {full} cut at the limit"]
        decoded = [self.lm.tokenizer.decode(ids) for ids in written]
        stops = dict.fromkeys(stop.strip() or stop for stop in self.task.stop)
        unseen = [stop for stop in stops if not any(stop in text for text in decoded)]
        if unseen and full:
            said = ", ".join(map(repr, unseen))
            lines.append(
                f"warning: no answer has the stop text {said}: is it what this model writes?"
            )
        return tuple(lines)

    def _ending(self) -> Sampling:
        """``sampling`` with everything that ends an answer of this model to this task."""
        stop = (tuple(self.lm.tokenizer.encode(text)) for text in self.task.stop)
        end = (self.lm.tokenizer.eos_id, *self.sampling.end)
        return dataclasses.replace(self.sampling, end=end, stop=tuple(ids for ids in stop if ids))


def one_per_prompt(rows: Sequence[Scored]) -> tuple[Scored, ...]:
    """The first row of each prompt."""
    first: dict[str, Scored] = {}
    for row in rows:
        first.setdefault(row.example_id, row)
    return tuple(first.values())
