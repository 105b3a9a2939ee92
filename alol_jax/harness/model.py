"""A policy as lm-eval asks it, and tasks of lm-eval on it: the only file that imports lm_eval.

``lm_eval.api.model`` defines the questions and ``TemplateLM`` how a text and its continuation are
split into tokens; both as for its own models, so that the numbers are those of ``lm_eval`` on the
exported model.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import numbers
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from alol_jax.decoding.decode import respond
from alol_jax.decoding.sampling import Sampling
from alol_jax.errors import UserError, reason
from alol_jax.harness.scores import Outcome
from alol_jax.models.config import ModelConfig
from alol_jax.models.language_model import LanguageModel
from alol_jax.tables.columns import Ragged
from alol_jax.text import flat_ids
from alol_jax.text.prompts import chat_template_of
from alol_jax.training.annotate import continuations
from alol_jax.types import Params, Turn, Watch

SEEDS = {"python": 0, "numpy": 1234, "fewshot": 1234}  # lm-eval's own
DRAWS = 1000  # resamples for the standard error of a metric that is no mean
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
"""What a task may ask of generation."""


class HarnessModel(TemplateLM):
    """A policy on one device.

    Attributes:
      lm: the model.
      trained: the policy's leaves, on the mesh.
      batch_size: prompts answered together.
      date: YYYY-MM-DD, today for chat templates that ask.
      label: of the lines about it.
      say: gets the lines.
    """

    def __init__(
        self,
        lm: LanguageModel,
        trained: Params,
        *,
        batch_size: int,
        date: str,
        label: str,
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.lm, self.trained, self.batch_size, self.date = lm, trained, batch_size, date
        self.label, self.say = label, say

    # what lm-eval asks about tokens

    @property
    def eot_token_id(self) -> int:
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the begin token, or the end token."""
        bos = self.lm.tokenizer.settings.get("bos_token")
        return self.lm.tokenizer.encode(bos)[0] if bos else self.eot_token_id

    @property
    def max_length(self) -> int:
        return self.lm.transformer.config.longest_alike

    @property
    def tokenizer_name(self) -> str:
        return self.lm.tokenizer.fingerprint()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Encode a text with its special tokens; a begin token comes first where prompts have it,
        unless the text begins with it."""
        ids, begin = self.lm.tokenizer.encode(string), list(self.lm.tokenizer.begin)
        if add_special_tokens is False or (add_special_tokens is None and ids[:1] == begin):
            return ids
        return begin + ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation in the model's own chat template.

        Without a generation prompt it ends with what was said last, to be continued.
        """
        turns = [Turn(message["role"], message["content"]) for message in chat_history]
        template = chat_template_of(self.lm.tokenizer)
        text = template.render(turns, date=self.date, answer_next=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = turns[-1].text.strip()
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str:
        return chat_template_of(self.lm.tokenizer).source if chat_template else ""

    # what it asks about texts

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether greedy decoding would write it.

        Contexts that are too long lose their oldest tokens.

        Raises:
          UserError: a continuation is empty or longer than the model can read.
        """
        contexts, wanted = [], []
        for (_, text), context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"lm-eval asks for the likelihood of {text[:60]!r}, of {len(continuation)} "
                    f"tokens: expected 1 to {self.max_length}, what the model can read: take it "
                    "out of the task"
                )
            contexts.append(context[-(self.max_length + 1 - len(continuation)) :])
            wanted.append(continuation)
        logp, lead = continuations(
            self.lm,
            self.trained,
            Ragged.of(*flat_ids.flat(contexts)),
            Ragged.of(*flat_ids.flat(wanted)),
            watch=self._watch("likelihoods"),
        )
        return [
            (float(total), bool(behind == 0))
            for total, behind in zip(logp.sums(), lead.sums(), strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Instance], **_) -> list[float]:
        """The log-likelihood of each text, in pieces of what the model can read."""
        pieces, owner = [], []
        for place, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            found = [(request.args * 2, *make_disjoint_window(window)) for window in windows]
            pieces += found
            owner += [place] * len(found)
        each = [logp for logp, _ in self._loglikelihood_tokens(pieces)] if pieces else []
        return np.bincount(owner, weights=each, minlength=len(requests)).tolist()

    def generate_until(self, requests: list[Instance], **_) -> list[str]:
        """Answer each context, up to the first of its stop sequences."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        answers = [""] * len(requests)
        for number, places in enumerate(groups.values()):
            contexts = [requests[place].args[0] for place in places]
            found = self._answers(contexts, requests[places[0]].args[1], jax.random.key(number))
            for place, text in zip(places, found, strict=True):
                answers[place] = text
        return answers

    def _answers(self, contexts: Sequence[str], asked: Mapping, key: jax.Array) -> list[str]:
        tokenizer, until = self.lm.tokenizer, _until(asked)
        sampling = _sampling(asked)
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise UserError(
                f"a task asks for max_gen_toks={sampling.max_new_tokens}, and the model has "
                f"{self.max_length} positions: set generation_kwargs.max_gen_toks lower in it"
            )
        # An early end for the usual ones; the text is cut at all of them.
        stop = tuple(tuple(tokenizer.encode(text)) for text in until)
        sampling = dataclasses.replace(sampling, end=tokenizer.ends, stop=stop)
        prompts = [self.tok_encode(text)[-room:] for text in contexts]
        longest = max(map(len, prompts))
        limits = self.lm.limits._replace(prompt=longest)
        batching = dataclasses.replace(self.lm, limits=limits).batching(self.batch_size)
        model, params = self.lm.for_decoding(self.trained)
        watch = self._watch("answers")
        found = respond(model, params, prompts, sampling, batching=batching, key=key, watch=watch)
        return [_cut(tokenizer.decode(ids, framed=False), until) for ids in found]

    def _watch(self, what: str) -> Watch:
        return Watch(f"{self.label} {what}", self.say)


def notes_on_length(config: ModelConfig) -> tuple[str, ...]:
    """Say what a model reads otherwise than transformers, or in shorter pieces."""
    notes = []
    if config.reads_short_texts_as_long:
        notes.append(
            "positions are scaled as in the run's longest text, of config.model.max_prompt + "
            f"max_response = {config.rotary.length:,} tokens; transformers scales shorter ones "
            "otherwise, so figures may differ from lm-eval's on the exported model"
        )
    if config.longest_alike < config.longest:
        notes.append(
            f"texts are read up to {config.longest_alike:,} tokens, not {config.longest:,}: this "
            "run scales positions for texts within them"
        )
    return tuple(notes)


def _until(asked: Mapping) -> tuple[str, ...]:
    """The stop sequences of a request."""
    until = asked.get("until") or ()
    return tuple(filter(None, [until] if isinstance(until, str) else until))


def _sampling(asked: Mapping) -> Sampling:
    """How lm-eval asks to decode: greedily, or with a temperature.

    Raises:
      UserError: it asks for something else.
    """
    wanted = normalize_gen_kwargs(dict(asked))
    if odd := sorted(wanted.keys() - KNOWN):
        raise UserError(
            f"a task's generation_kwargs ask for {', '.join(odd)}, which is not supported: "
            f"expected {', '.join(sorted(KNOWN))}"
        )
    return Sampling(
        max_new_tokens=wanted["max_gen_toks"],
        temperature=float(wanted.get("temperature", 1.0)) if wanted["do_sample"] else 0.0,
        top_k=int(wanted.get("top_k") or 0),
        top_p=float(wanted.get("top_p") or 1.0),
    )


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.partition(stop)[0]
    return text


# tasks


def version() -> str:
    """Return the version of lm_eval."""
    return importlib.metadata.version("lm_eval")


def run_tasks(
    model: HarnessModel,
    places: Sequence[str],
    *,
    num_fewshot: int | None,
    limit: int | None,
    chat: bool,
) -> Outcome:
    """Run the tasks of YAML files, or of folders of them, on a model.

    Args:
      num_fewshot: examples before each question, except where a task says 0; None: what each
        task says, else 0.
      limit: documents of each task; None: all.
      chat: whether the model's own chat template is used.

    Raises:
      UserError: a place has no task, or a task cannot be loaded or does not fit its data.
    """
    random.seed(SEEDS["python"])
    np.random.seed(SEEDS["numpy"])
    loaded = _loaded(places)
    for name, task in loaded["tasks"].items():
        said = task.get_config("num_fewshot")
        if said == 0 and num_fewshot:
            model.say(f"task {name} says num_fewshot: 0, which --num_fewshot does not change")
        elif num_fewshot is not None or said is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
        # `evaluate` makes the questions of all tasks before it asks any. Making them here, too,
        # would draw other examples and random numbers than lm-eval.
        task.build_all_requests = functools.partial(_make, name, task.build_all_requests)
    # Its pool of processes would be forked from one that has JAX's threads.
    os.environ["DISABLE_MULTIPROC"] = "1"
    found = evaluator.evaluate(
        lm=model,
        task_dict=loaded,
        limit=limit,
        bootstrap_iters=DRAWS,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    return _outcome(found)


def _loaded(places: Sequence[str]) -> dict[str, Any]:
    """The tasks and groups of the places."""
    folders = [place for place in places if Path(place).is_dir()]
    for place in places:
        if not Path(place).exists():
            raise UserError(f"--tasks={place}: no such file or folder: name YAML files of lm-eval")
    try:
        manager = TaskManager(include_path=folders or None, include_defaults=False)
        named = [place for place in places if place not in folders]
        found = manager.load([*manager.all_subtasks, *named])
    except Exception as error:  # tasks are programs and data: they may raise anything
        raise UserError(
            f"--tasks={','.join(places)}: lm-eval cannot load them: {type(error).__name__}: "
            f"{reason(error)}"
        ) from error
    if not found["tasks"]:
        raise UserError(f"--tasks={','.join(places)}: no tasks there, in files ending in .yaml")
    return found


def _make(name: str, build: Callable[..., None], **options: Any) -> None:
    """Make the questions of a task; if its templates do not take its documents, say so."""
    try:
        build(**options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"task {name}: lm-eval cannot make its questions: {type(error).__name__}: "
            f"{reason(error)}"
        ) from error


def _outcome(found: Mapping[str, Any]) -> Outcome:
    """The figures of each task, and the values of its documents where they are numbers."""
    results, values = {}, {}
    for task, figures in found["results"].items():
        results[task] = {
            key: float(value)
            for key, value in figures.items()
            if "," in key and isinstance(value, numbers.Real)
        }
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], numbers.Real):
                    key = task, f"{metric},{sample['filter']}"
                    values.setdefault(key, {})[sample["doc_id"]] = float(sample[metric])
    counts = {task: count["effective"] for task, count in found["n-samples"].items()}
    return Outcome(results, values, counts, dict(found["higher_is_better"]))
