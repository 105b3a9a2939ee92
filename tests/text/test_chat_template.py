"""Running a chat template: what it may use, and how it can be wrong."""

import re

import pytest

from alol_jax.errors import UserError
from alol_jax.text.chat_template import ChatTemplate
from alol_jax.types import ASSISTANT, SYSTEM, USER, Turn
from tests.text.chat_templates import GEMMA

DAY = "2026-03-01"
HI = (Turn(USER, "hi"),)


def rendered(source, turns=HI, **options):
    return ChatTemplate(source, {"bos_token": "<s>"}).render(turns, date=DAY, **options)


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>hi"),
        ("{{ strftime_now('%d %b %Y %H') }}", "01 Mar 2026 00"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ ['b'] | tojson(indent=2) }}", '[\n  "b"\n]'),
        ("a{% generation %}{{ messages[0].content }}{% endgeneration %}b", "ahib"),
        ("{% for n in range(9) %}{% if n == 3 %}{% break %}{% endif %}{{ n }}{% endfor %}", "012"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{{ dict(a=1)['a'] }}{{ dict.fromkeys('x') }}", "1{'x': None}"),
        ("{% if tools or documents or eos_token %}x{% endif %}y", "y"),
        ("{% if add_generation_prompt %}next{% endif %}", "next"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),  # blocks leave no lines behind
    ],
)
def test_a_template_has_what_transformers_gives_it(source, written):
    assert rendered(source) == written


def test_a_finished_conversation_has_no_generation_prompt():
    source = "{% if add_generation_prompt %}next{% endif %}."
    assert rendered(source, answer_next=False) == "."


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{% if %}", "is damaged (line 1): Expected an expression"),
        ("{{ messages[0].content\n}", "is damaged (line"),
        ("{% for m in messages %}", "is damaged (line 1): Unexpected end of template"),
        ("{{ raise_exception('only\nthe user') }}", "does not take the turns user: only"),
        ("{{ 1 / 0 }}", "does not take the turns user: division by zero"),
        ("{{ messages[7].content }}", "does not take the turns user: list object has no element 7"),
        ("{{ ''.__class__.__mro__ }}", "does not take the turns user: access to attribute '__cl"),
        ("{% set ns = namespace(__x=1) %}", "the name '__x' begins with an underscore"),
        ("{{ messages.append(1) }}", "does not take the turns user: "),
    ],
)
def test_a_template_that_is_damaged_or_fails_is_one_line(source, named):
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        rendered(source)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(
        "or give a string with {prompt} as config.task.template"
    )


@pytest.mark.parametrize(
    ("turns", "named"),
    [
        ((Turn(SYSTEM, "be kind"), *HI), "the turns system, user: System role not supported"),
        ((*HI, *HI), "the turns user, user: Conversation roles must alternate"),
        ((*HI, Turn(ASSISTANT, "x"), Turn(ASSISTANT, "y")), "roles must alternate"),
    ],
)
def test_a_role_that_the_template_refuses_is_named(turns, named):
    with pytest.raises(UserError, match=named):
        rendered(GEMMA, turns)
