"""Keeping the special tokens of a text from being found."""

import random

import pytest

from alol_jax.text.special_tokens import Guard, any_of

NAMES = ("<|im_end|>", "<s>", "</s>", "ab|", "|cd", "[INST]", "x")


@pytest.mark.parametrize("names", [NAMES, ()])
def test_texts_side_by_side_hold_no_name_and_lose_nothing(names):
    draw, guard = random.Random(0), Guard(names)
    pieces = [name[start:end] for name in NAMES for start in range(9) for end in range(9)]
    pieces += [" ", "\n", "é", ""]
    long = any_of(name for name in names if len(name) > 1)
    for _ in range(3000):
        texts = ["".join(draw.choices(pieces, k=draw.randint(0, 4))) for _ in range(3)]
        for change in (str, str.strip):  # as templates do
            joined = "".join(change(guard(text)) for text in texts)
            assert not long.search(joined)
            assert joined.replace(guard.mark, "") == "".join(map(change, texts))


def test_ordinary_texts_are_left_as_they_are():
    guard = Guard(NAMES)
    for text in ("", " ", "hello", " a < b, c > d ", "<think>\n</think>", "{{ it }}"):
        assert guard(text) == text
