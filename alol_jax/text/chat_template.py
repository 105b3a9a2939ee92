"""A model's own chat template: from turns to the text that the model reads.

Templates are Jinja programs that come with a model, so they run in Jinja's immutable sandbox, with
the tags, filters and functions that `transformers.PreTrainedTokenizerBase.apply_chat_template`
gives them: https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from alol_jax.errors import UserError, reason
from alol_jax.types import Turn

WAY_OUT = "or give a string with {prompt} as config.task.template"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
      source: the Jinja program.
      tokens: the special tokens that it may write by name: ``bos_token`` and others -> text.
      otherwise: what to do if it fails, the end of error messages.
    """

    source: str
    tokens: Mapping[str, str]
    otherwise: str = WAY_OUT

    def render(self, turns: Sequence[Turn], *, date: str, answer_next: bool = True) -> str:
        """Return the conversation as the model reads it.

        Args:
          turns: what was said.
          date: YYYY-MM-DD, today for templates that ask. A fixed one keeps token ids the same.
          answer_next: whether the assistant's turn begins at the end (the generation prompt).

        Raises:
          UserError: the template has a syntax error, or fails on these turns.
        """
        today = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time())
        try:
            compiled = _compiled(self.source)
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            where = "" if line is None else f" (line {line})"
            raise UserError(
                f"the model's chat template is damaged{where}: {reason(error)}: download it "
                f"again, {self.otherwise}"
            ) from error
        try:
            return compiled.render(
                messages=[{"role": turn.role, "content": turn.text} for turn in turns],
                add_generation_prompt=answer_next,
                tools=None,
                documents=None,
                strftime_now=today.strftime,
                **self.tokens,
            )
        except Exception as error:  # it is a program: it may raise anything
            roles = ", ".join(turn.role for turn in turns)
            raise UserError(
                f"the model's chat template does not take the turns {roles}: {reason(error)}: "
                f"leave such rows out, {self.otherwise}"
            ) from error

    @property
    def asks_for_date(self) -> bool:
        """Whether it can write today's date."""
        return "strftime_now" in self.source


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return _sandbox().from_string(source)


@functools.cache
def _sandbox() -> jinja2.Environment:
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {"raise_exception": _raise, "namespace": _Namespace, "dict": _Dict()}
    return sandbox


class _Generation(jinja2.ext.Extension):
    """The tag ``{% generation %}`` around what the assistant says: it writes what is inside."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(inside, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's ``namespace``, without names that lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args  # so that a template may set ``self``, too
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} begins with an underscore")


class _Dict:
    """``dict`` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
