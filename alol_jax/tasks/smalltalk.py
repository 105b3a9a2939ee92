"""English small talk: the ChatterBot corpus (BSD-3-Clause), from the package chatterbot-corpus.

Twenty-one small YAML files of short exchanges, usable offline. The files differ in what a
conversation of more than two lines means; ``FORMS`` lists it for each:

* a **dialogue**: each line answers the line before it (earlier context is dropped);
* **alternatives**: the first line is a prompt, all others are responses to it;
* **exchanges**: lines 1 and 2 are one exchange, lines 3 and 4 the next.

For two lines, all three mean the same.
"""

from __future__ import annotations

import collections
import importlib.resources
from collections.abc import Callable, Iterator, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from alol_jax.errors import UserError
from alol_jax.tables.table import Table
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import NOVELTY, TEXT_REWARDS
from alol_jax.types import Example, Progress, Splits, Task, unseen

Pair = tuple[str, str]  # prompt, response


def dialogue(lines: Sequence[str]) -> tuple[Pair, ...]:
    """Pair (line n, line n + 1) for every n."""
    return tuple(zip(lines[:-1], lines[1:], strict=True))


def alternatives(lines: Sequence[str]) -> tuple[Pair, ...]:
    """Pair the first line with each other line."""
    return tuple((lines[0], line) for line in lines[1:])


def exchanges(lines: Sequence[str]) -> tuple[Pair, ...]:
    """Pair (line 1, line 2), (line 3, line 4), …; drop an unpaired last line."""
    return tuple(zip(lines[0::2], lines[1::2], strict=False))


FORMS: dict[str, Callable[[Sequence[str]], tuple[Pair, ...]]] = {
    "ai": dialogue,
    "botprofile": dialogue,
    "coding": dialogue,
    "computers": alternatives,
    "conversations": dialogue,
    "emotion": alternatives,
    "food": dialogue,
    "gossip": dialogue,
    "greetings": dialogue,
    "health": dialogue,
    "history": dialogue,
    "humor": dialogue,
    "literature": exchanges,
    "money": dialogue,
    "movies": dialogue,
    "politics": dialogue,
    "psychology": dialogue,
    "science": dialogue,
    "sports": dialogue,
    "tech_support": dialogue,
    "trivia": dialogue,
}
"""File stem -> form of its conversations; files with only two-line ones are listed as dialogue."""


def load(options: Any, progress: Progress = unseen) -> Splits:
    """Read the installed corpus and split it by prompt.

    Prompts that differ only in case, whitespace or punctuation at the ends become one example with
    all their responses; it has the wording and source of the first.

    Args:
      options: ``validation`` and ``test`` (numbers of prompts), ``max_words`` (responses with more
        whitespace-separated words are dropped), ``limit`` (training examples; 0 for all).

    Raises:
      UserError: the package is missing or has another version; there are not enough prompts.
    """
    del progress  # the files are small
    dropped: collections.Counter[str] = collections.Counter()
    seen: set[Pair] = set()
    examples = []
    for example in _exchanges(dropped):
        fault = _fault(example, options.max_words)
        pair = (splitting.normalise(example.prompt), example.responses[0])
        if fault:
            dropped[fault] += 1
        elif pair in seen:
            dropped["Merged repetitions of an exchange"] += 1
        else:
            seen.add(pair)
            examples.append(example)
    names = [splitting.normalise(example.prompt) for example in examples]
    grouped = splitting.group_by_prompt(Table.of(examples, Example), names)
    splits = splitting.split_by_prompt(grouped, validation=options.validation, test=options.test)
    notes = tuple(f"{what}: {count}." for what, count in sorted(dropped.items()))
    return splitting.limit_train(
        Splits(splits.train, splits.validation, splits.test, notes), options.limit
    )


def _fault(example: Example, max_words: int) -> str | None:
    response = example.responses[0]
    if not example.prompt or not response:
        return "Dropped exchanges with an empty side"
    if "```" in response:
        return "Dropped responses with a code block"
    if len(response.split()) > max_words:
        return f"Dropped responses of more than {max_words} words"
    return None


def _exchanges(dropped: collections.Counter[str]) -> Iterator[Example]:
    """Yield every exchange of the corpus, one response each, with whitespace collapsed."""
    for file in _files():
        source = file.name.removesuffix(".yml")
        for number, lines in enumerate(_conversations(file)):
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                dropped["Dropped malformed conversations (no list of texts)"] += 1
                continue
            for turn, (prompt, response) in enumerate(FORMS[source](lines)):
                yield Example(
                    id=f"{source}-{number}.{turn}",
                    prompt=" ".join(prompt.split()),
                    responses=(" ".join(response.split()),),
                    source=source,
                )


def _files() -> list[Traversable]:
    try:
        package = importlib.resources.files("chatterbot_corpus")
    except ModuleNotFoundError as error:
        raise UserError(
            "task smalltalk needs its data: pip install chatterbot-corpus==1.3.3"
        ) from error
    folder = package / "data" / "english"
    files = [file for file in folder.iterdir() if file.name.endswith(".yml")]
    stems = {file.name.removesuffix(".yml") for file in files}
    if stems != set(FORMS):
        odd = ", ".join(sorted(stems ^ set(FORMS)))
        raise UserError(
            f"task smalltalk knows chatterbot-corpus 1.3.3, the installed one differs in {odd}: "
            "pip install chatterbot-corpus==1.3.3"
        )
    return sorted(files, key=lambda file: file.name)


def _conversations(file: Traversable) -> list[Any]:
    import yaml

    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    return yaml.load(file.read_text(encoding="utf-8"), Loader=loader)["conversations"]


SMALLTALK = Task(
    name="smalltalk",
    load=load,
    files=lambda options: tuple(Path(str(file)) for file in _files()),
    # ChatML without a system message, as SmolLM2-Instruct reads it; the end token ends a response.
    template="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    stop=(),
    rewards=(*TEXT_REWARDS, NOVELTY),
)
