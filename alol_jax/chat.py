"""Ask the reference and the policy of a finished run, and read both answers side by side.

    python -m alol_jax.chat runs/quickstart
    python -m alol_jax.chat runs/quickstart --prompt="How are you today?"

Each line is a prompt of its own, in the form that the run's task gives to prompts, and is answered
as in `evaluate`. Below an answer are its reward, if the run has a scorer, and log π/π_ref of the
whole answer: above 0, the policy finds it likelier than the reference does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from alol_jax import paths
from alol_jax.decoding.answers import Sampler, Setup
from alol_jax.devices.sharding import place_params
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath
from alol_jax.reports.side_by_side import side_by_side
from alol_jax.rewards.opening import open_reward_models
from alol_jax.rewards.reward import Reward, Scoring
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import Parser, parsed, started
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import finished_stage
from alol_jax.stages.distil import scored_by
from alol_jax.tables.table import Table
from alol_jax.tasks.registry import get_task
from alol_jax.text.prompts import encoder_of
from alol_jax.trained import open_trained, trained_stage
from alol_jax.training.annotate import annotate
from alol_jax.training.items import tokenise
from alol_jax.types import Distilled, Params, Policy, Scored, ScoredSplits, Watch

LEAVE = ("/quit", "/exit")


class Options(argparse.Namespace):
    """The flags."""

    workdir: AnyPath
    prompt: str | None
    base: str
    adapter: str
    compile_cache: str
    debug: bool


class Answer(NamedTuple):
    """An answer and what is known about it."""

    text: str
    ratio: float  # log π/π_ref of the whole answer, in nats
    reward: float | None  # None if nothing can score it
    components: tuple[float, ...]  # unweighted, by the names of the reward


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """The two models of a run.

    Attributes:
        sampler: decodes one prompt as the run does.
        models: "reference" and "policy" -> their leaves.
        reward: scores answers; without components it cannot.
        notes: lines for the user.
    """

    sampler: Sampler
    models: dict[str, Params]
    reward: Reward
    notes: tuple[str, ...]

    def ask(self, prompt: str) -> dict[str, Answer]:
        """Return the answer of each model.

        Raises:
            UserError: the prompt cannot be encoded.
        """
        texts = []
        for name, trained in self.models.items():
            ids = self.sampler.generate(
                trained, [prompt], key=jax.random.key(0), watch=Watch(f"the {name} answers")
            )
            texts += self.sampler.texts(ids)
        ratios = self._ratios(prompt, texts)
        if not self.reward.names:
            return {
                name: Answer(text, ratio, None, ())
                for name, text, ratio in zip(self.models, texts, ratios, strict=True)
            }
        components, rewards = self.reward.score([prompt] * len(texts), texts)
        return {
            name: Answer(text, ratio, float(total), tuple(map(float, each)))
            for name, text, ratio, total, each in zip(
                self.models, texts, ratios, rewards, components, strict=True
            )
        }

    def cut(self, prompt: str) -> str:
        """Return a line if the models read only the end of the prompt; else ""."""
        lm, task = self.sampler.lm, self.sampler.task
        encode = encoder_of(lm.tokenizer, task, task.conversation)
        _, cut = encode([prompt], limit=lm.limits.prompt)
        return f"the models read the last {lm.limits.prompt} tokens of this prompt" if cut else ""

    def _ratios(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """Return log π/π_ref of each answer."""
        lm, task = self.sampler.lm, self.sampler.task
        rows = Table.of((Scored("", prompt, text, "", (), 0.0) for text in texts), Scored)
        tokens, _ = tokenise(rows, task, lm.tokenizer, lm.limits)
        logps = {
            name: annotate(lm, trained, tokens, watch=Watch("log-ratio"))[0].sums()
            for name, trained in self.models.items()
        }
        return [float(x) for x in np.subtract(logps["policy"], logps["reference"])]


def open_chat(workdir: AnyPath, *, base: str = "", adapter: str = "") -> Chat:
    """Open the reference and the policy of a run, and its reward.

    Args:
        base, adapter: see `trained.open_trained`.

    Raises:
        UserError: the run has no policy, or a model cannot be read.
    """
    stage, config, lm = open_trained(workdir, "policy", base=base, adapter=adapter)
    task = get_task(config.task)
    stages = {"reference": trained_stage(workdir, "reference"), "policy": stage}
    models = {
        name: place_params(load_result(one.folder, Policy).trained, lm.mesh)
        for name, one in stages.items()
    }
    used = [name for name, weight in config.rewards.items() if weight]
    opened = open_reward_models(config.reward_models, used, task.exchange, lm)
    scoring = Scoring(task.rewards, opened, config.rewards, tuple(config.reward_models))
    left_out = dict.fromkeys(scoring.comparing, 0.0)
    notes = [
        f"{name} compares with the data's responses to a prompt: not shown" for name in left_out
    ]
    scoring = dataclasses.replace(scoring, weights={**config.rewards, **left_out})
    if config.score.distil:
        distilled = load_result(finished_stage(workdir, "distil").folder, Distilled)
        scoring = scored_by(distilled, scoring, lm, task, config.distill)
    if not scoring.can_score:
        notes.append("no scorer is left for an answer: its reward is not shown")
    config.decode.batch_size = 1
    setup = Setup(lm, task, scoring, config.decode, config.seed)
    scored = load_result(finished_stage(workdir, "score").folder, ScoredSplits)
    return Chat(setup.deterministic_sampler(), models, setup.reward(scored), tuple(notes))


def shown(answers: dict[str, Answer], names: Sequence[str], *, width: int) -> str:
    """Return the answers as two columns.

    Args:
        names: of the components of the reward.
        width: cells of the terminal.
    """
    return side_by_side(
        *([name, "", one.text, "", *_figures(one, names)] for name, one in answers.items()),
        width=width,
    )


def _figures(answer: Answer, names: Sequence[str]) -> list[str]:
    lines = [f"log π/π_ref {answer.ratio:+.2f}"]
    if answer.reward is not None:
        parts = ", ".join(f"{n} {x:.2f}" for n, x in zip(names, answer.components, strict=True))
        lines.insert(0, f"reward {answer.reward:.3f} ({parts})")
    return lines


def chat(options: Options) -> None:
    """Answer ``options.prompt``, or every line that is typed.

    Raises:
        UserError: see `open_chat`; or the one prompt cannot be encoded.
    """
    it = open_chat(options.workdir, base=options.base, adapter=options.adapter)
    for note in it.notes:
        say(note)
    if options.prompt is not None:
        _answer(it, options.prompt)
        return
    say("type a prompt; Ctrl-D or /quit ends")
    with contextlib.suppress(KeyboardInterrupt):
        for prompt in _typed():
            try:
                _answer(it, prompt)
            except UserError as error:
                say(f"error: {error}")


def _answer(it: Chat, prompt: str) -> None:
    if cut := it.cut(prompt):
        say(cut)
    width = shutil.get_terminal_size((100, 24)).columns
    say(f"\n{shown(it.ask(prompt), it.reward.names, width=width)}\n")


def _typed() -> Iterator[str]:
    """Yield the lines that are typed, until the end of the input."""
    if importlib.util.find_spec("readline"):
        import readline  # noqa: F401  # arrow keys and earlier prompts in input()
    with contextlib.suppress(EOFError):
        while (prompt := input("> ").strip()) not in LEAVE:
            if prompt:
                yield prompt


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        UserError: a flag is unknown, or the workdir is missing.
    """
    parser = Parser("alol_jax.chat", description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag("workdir", type=paths.path_of, metavar="WORKDIR", help="workdir of a finished run")
    flag("--prompt", help="answer this one prompt and end")
    flag("--base", default="", help="path of the base model, if it was moved")
    flag("--adapter", default="", help="path of the adapter that training began from, if moved")
    flag("--compile_cache", default="", help="where compiled programs are kept; 'off' keeps none")
    flag("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments, Options())


def entry() -> None:
    """Run `chat`; a `UserError` is printed as one line on stderr, with exit code 2."""
    started(parsed(parse, chat))


if __name__ == "__main__":
    entry()
