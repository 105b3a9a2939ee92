"""Generating a policy's answers to prompts, and scoring them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.decode import respond
from alol_jax.decoding.sampling import Sampling, deterministic_decoding, stochastic_decoding
from alol_jax.devices.out_of_memory import watching_memory
from alol_jax.models.language_model import LanguageModel
from alol_jax.models.savings import DECODING, program_of
from alol_jax.rewards.reward import Reward, Scoring
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table
from alol_jax.text.prompts import encoder_of
from alol_jax.types import Agreement, Params, Scored, ScoredSplits, Task, Watch

Ids = tuple[int, ...]


class Setup(NamedTuple):
    """A model, the task whose prompts it answers, and how its answers are decoded and scored."""

    lm: LanguageModel
    task: Task
    scoring: Scoring
    decoding: ConfigDict  # config.decode
    seed: int
    # of the scorers with the stored rewards; None if they gave the rewards of the rows
    agreement: Agreement | None = None

    def reward(self, scored: ScoredSplits) -> Reward:
        """Return the reward of an answer, with what its components need of the data."""
        reward = self.scoring.reward(scored.train["response"], scored.gold)
        if not self.scoring.trained_on:
            return reward
        return dataclasses.replace(reward, transform=scored.of_answers)

    def deterministic_sampler(self) -> Sampler:
        """Return a sampler for greedy decoding or beam search, as set by ``config.decode``."""
        return self._sampler(deterministic_decoding(self.decoding))

    def stochastic_sampler(self, options: ConfigDict) -> Sampler:
        """Return a sampler with the temperature, top-k and top-p of ``options``."""
        return self._sampler(stochastic_decoding(self.decoding, options))

    def _sampler(self, sampling: Sampling) -> Sampler:
        return Sampler(self.lm, self.task, sampling, self.decoding.batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Generates a policy's answers to the prompts of a task.

    Attributes:
        lm: the model; the policy's trained leaves are passed to the methods.
        sampling: how tokens are chosen. The tokenizer's end tokens and the task's stop sequences
            are added to it.
        batch_size: prompts decoded together.
        lengths: of all prompts that will be asked, so that every call has grids of one size; None:
            each call has its own.
    """

    lm: LanguageModel
    task: Task
    sampling: Sampling
    batch_size: int
    lengths: np.ndarray | None = None

    def generate(
        self, trained: Params, prompts: Sequence[str], *, key: jax.Array, watch: Watch
    ) -> tuple[Ids, ...]:
        """Generate the token ids of one answer per prompt, including the token that ends it.

        Args:
            trained: the policy's leaves.
            prompts: their texts.
            key: answer i is sampled with fold_in(key, i); unused at temperature 0.
            watch: gets one line with the speed.
        """
        lm, task = self.lm, self.task
        encode = encoder_of(lm.tokenizer, task, task.conversation)
        columns = lm.limits.prompt + self.sampling.max_new_tokens
        rows = self.batch_size * self.sampling.beams
        with watching_memory(program_of(lm, DECODING, watch.label, rows, columns)):
            return respond(
                *lm.for_decoding(trained),
                encode(prompts, limit=lm.limits.prompt)[0],
                self._with_stops(),
                batching=lm.batching(self.batch_size, self.lengths),
                key=key,
                watch=watch,
            )

    def answer(
        self,
        trained: Params,
        rows: Table[Scored],
        reward: Reward,
        *,
        key: jax.Array,
        watch: Watch,
    ) -> Table[Scored]:
        """Return ``rows`` with the policy's responses and their scores.

        Args:
            reward: if it has no components, the returned rewards are 0 and meaningless.
            watch: gets the speed, how the answers ended, and warnings.
            trained, key: as in `generate`.
        """
        speed: list[str] = []
        answers = self.generate(
            trained, rows["prompt"], key=key, watch=watch._replace(say=speed.append)
        )
        how, *warnings = self.endings(answers)
        for line in (f"{speed[0]}; {how}", *warnings):
            watch.say(line)
        responses = self.texts(answers)
        if reward.names:
            for note in reward.notes(rows["prompt"], responses):
                watch.say(note)
            return reward.score_rows(rows, responses)
        return rows.replace(
            response=Texts.of(responses),
            components=Ragged.empty(len(rows), np.float64),
            reward=np.zeros(len(rows)),
        )

    def texts(self, answers: Sequence[Ids]) -> tuple[str, ...]:
        """Decode token ids to text, cleaned by the task."""
        return tuple(self.task.clean(self.lm.tokenizer.decode(ids)) for ids in answers)

    def endings(self, answers: Sequence[Ids]) -> tuple[str, ...]:
        """Count how the answers ended, as lines for the user.

        Further lines warn if most answers reached the length limit, and, if any did, about stop
        sequences that appear in no answer. Those that differ only in surrounding spaces count as
        one; a task lists both because their tokens differ.
        """
        limit, ends = self.sampling.max_new_tokens, {*self.lm.tokenizer.ends, *self.sampling.end}
        ended = sum(bool(ids) and ids[-1] in ends for ids in answers)
        full = sum(len(ids) == limit and ids[-1] not in ends for ids in answers)
        stopped = len(answers) - ended - full
        share = (ended + stopped) / max(len(answers), 1)
        lines = [
            f"{ended} ended, {stopped} hit a stop sequence, {full} hit the limit "
            f"({share:.0%} by themselves)"
        ]
        if answers and share < 0.5:
            lines.append(
                f"warning: most answers did not end by themselves: raise "
                f"config.decode.max_new_tokens={limit}, or choose a config.task.template that the "
                f"model knows: it may never have learned its end token {self.lm.tokenizer.eos!r}"
            )
        decoded = [self.lm.tokenizer.decode(ids) for ids in answers]
        stops = dict.fromkeys(stop.strip() or stop for stop in self.task.stop)
        unseen = [stop for stop in stops if not any(stop in text for text in decoded)]
        if unseen and full:
            names = ", ".join(map(repr, unseen))
            lines.append(
                f"warning: no answer has the stop sequence {names}: does this model write it?"
            )
        return tuple(lines)

    def _with_stops(self) -> Sampling:
        """Return ``sampling`` with the model's end tokens and the task's stop sequences added."""
        stop = (tuple(self.lm.tokenizer.encode(text)) for text in self.task.stop)
        end = tuple(dict.fromkeys((*self.lm.tokenizer.ends, *self.sampling.end)))
        return dataclasses.replace(self.sampling, end=end, stop=tuple(ids for ids in stop if ids))


def one_per_prompt(rows: Table[Scored]) -> Table[Scored]:
    """Return the first row of each prompt."""
    return rows.take(rows["example_id"].firsts())


def responses_by_prompt(rows: Table[Scored]) -> dict[str, list[str]]:
    """Return the responses to each prompt, by ``example_id``."""
    found: dict[str, list[str]] = {}
    for name, response in zip(rows["example_id"], rows["response"], strict=True):
        found.setdefault(name, []).append(response)
    return found
