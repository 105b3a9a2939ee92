"""Long texts: responses that leave, and what stays with those that remain."""

import dataclasses

import pytest

from alol_jax.tables.table import Table
from alol_jax.text import tokenizer_files
from alol_jax.text.long_texts import TokenCounter, without_long_rows, without_old_turns
from alol_jax.types import Example
from tests.tiny_run import TASK

ASKED = dataclasses.replace(TASK, template="<|im_start|>{prompt}:", marks=("<|im_end|>",))
COUNTER = TokenCounter(tokenizer_files.byte_level(), ASKED, 12)


def table(*examples):
    return Table.of(examples, Example)


ROWS = table(
    Example("a", "four", ("12345", "1", "123456"), "s", (0.1, 0.2, 0.3)),
    Example("b", "fourteen chars", ("1", "2"), "t", (0.4, 0.5)),
    Example("c", "", ("12345678", "1234567890"), "s", ()),
    Example("d", "four", ("é", "ééé"), "t", (0.6, 0.7)),
)


def test_tokens_are_those_of_the_template_the_text_and_the_end():
    assert COUNTER.prompts(["", "abc", "a<|im_end|>b", "é"]).tolist() == [2, 5, 5, 4]
    assert COUNTER.responses(["", "abc", "<|im_end|>"]).tolist() == [1, 4, 11]


def test_responses_that_are_too_long_with_their_prompt_leave_and_rewards_stay_with_theirs():
    notes = []
    kept = without_long_rows("train", ROWS, 12, COUNTER, notes)
    assert kept == (
        Example("a", "four", ("12345", "1"), "s", (0.1, 0.2)),
        Example("c", "", ("12345678",), "s", ()),  # all responses to b's prompt are too long
        Example("d", "four", ("é",), "t", (0.6,)),
    )
    assert notes == ["5 train responses with more than 12 tokens left out."]


def test_no_limit_that_all_rows_keep_changes_anything():
    notes = []
    assert without_long_rows("train", ROWS, 20, COUNTER, notes) is ROWS and notes == []


@pytest.mark.parametrize("limit", range(0, 21))
def test_what_stays_fits_and_what_fits_stays(limit):
    notes = []
    kept = without_long_rows("test", ROWS, limit, COUNTER, notes)
    rows = [(e.id, text) for e in kept for text in e.responses]
    lengths = {
        (e.id, text): COUNTER.prompts([e.prompt])[0] + COUNTER.responses([text])[0]
        for e in ROWS
        for text in e.responses
    }
    assert rows == [row for row, length in lengths.items() if length <= limit]
    assert all(not e.rewards or len(e.rewards) == len(e.responses) for e in kept)
    left_out = len(lengths) - len(rows)
    said = f"{left_out} test responses with more than {limit} tokens left out."
    assert notes == ([said] if left_out else [])


def test_turns_leave_one_by_one_until_the_prompt_fits_or_none_can_go():
    asked = []

    def shorten(prompt):
        asked.append(prompt)
        return prompt.partition("|")[2] or None

    prompts = ("ab|cd|efgh|ij", "short", "x" * 20, "ab|" + "y" * 20)
    rows = table(*(Example(str(n), text, ("r",), "s") for n, text in enumerate(prompts)))
    notes = []
    kept = without_old_turns("train", rows, shorten, COUNTER, notes)
    assert list(kept["prompt"]) == ["cd|efgh|ij", "short", "x" * 20, "y" * 20]
    assert "short" not in asked
    assert notes == ["The oldest turns of 2 of 4 train prompts left out, to fit in 12 tokens."]
    assert kept.replace(prompt=rows["prompt"]) == rows


def test_the_fingerprint_follows_all_that_the_counts_depend_on():
    same = TokenCounter(tokenizer_files.byte_level(), ASKED, 12)
    assert same.fingerprint == COUNTER.fingerprint
    changes = ({"template": "{prompt}"}, {"marks": ()}, {"date": "2026-01-01"})
    others = [TokenCounter(COUNTER.tokenizer, dataclasses.replace(ASKED, **c), 12) for c in changes]
    for other in (*others, TokenCounter(COUNTER.tokenizer, ASKED, 13)):
        assert other.fingerprint != COUNTER.fingerprint
