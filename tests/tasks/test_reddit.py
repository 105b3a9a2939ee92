"""reddit: the published sample, what is filtered and cleaned, texts as they stand, one sign."""

import csv
import gzip
import json

import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.tasks import reddit

COLUMNS = (
    *("id", "parent_id", "subreddit_id", "link_id", "text", "score", "ups", "author"),
    *("controversiality", "parent_link_id", "parent_text", "parent_score", "parent_ups"),
    *("parent_author", "parent_controversiality"),
)


def comment(name, text="So it is.", parent="", **changes):
    """A row of the raw data."""
    fields = {"id": name, "parent_id": f"t1_{name}", "subreddit_id": "t5_2qh1i", "link_id": "t3_4"}
    fields |= {"text": text, "score": 93, "ups": 93, "author": "someone", "controversiality": 0}
    fields |= {"parent_link_id": "t3_4", "parent_text": parent or f"What is {name}?"}
    fields |= {"parent_score": 12, "parent_ups": 12, "parent_author": "other"}
    return fields | {"parent_controversiality": 0} | changes


def comments(sign, count):
    return [comment(f"{sign}{n}", text=f"Answer {n} of {sign}.") for n in range(count)]


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return path


def options(folder, positive=None, negative=None, **changes):
    """Options of the task for these rows: by default six of each sign."""
    rows = {
        "positive": comments("up", 6) if positive is None else positive,
        "negative": comments("down", 6) if negative is None else negative,
    }
    files = {
        f"{sign}_file": str(write(folder / f"comments_{sign}.csv", its_rows))
        for sign, its_rows in rows.items()
    }
    fields = {"name": "reddit", "template": "", "sign": "positive", "sample": 0, "max_words": 100}
    return ConfigDict(fields | {"validation": 1, "test": 1, "limit": 0} | files | changes)


def load(folder, positive=None, negative=None, **changes):
    return reddit.load(options(folder, positive, negative, **changes))


def refused(message, folder, positive=None, negative=None, **changes):
    with pytest.raises(UserError, match=message) as caught:
        load(folder, positive, negative, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids(examples):
    return [example.id for example in examples]


# splits


def test_the_first_rows_of_both_signs_are_test_and_validation_rows_the_rest_of_one_trains(tmp_path):
    splits = load(tmp_path, validation=2, test=1)
    assert ids(splits.test) == ["positive:up0", "negative:down0"]
    assert ids(splits.validation) == [
        *("positive:up1", "positive:up2", "negative:down1", "negative:down2")
    ]
    assert ids(splits.train) == ["positive:up3", "positive:up4", "positive:up5"]
    assert ids(load(tmp_path, validation=2, test=1, sign="negative").train) == [
        *("negative:down3", "negative:down4", "negative:down5")
    ]
    assert {e.source for e in splits.train} == {"positive"}
    assert {e.source for e in splits.test} == {"positive", "negative"}
    assert splits.notes == ()


def test_the_prompt_is_the_parent_and_the_response_the_comment(tmp_path):
    rows = [*comments("up", 2), comment("x", "Yes, of course.", "Is it?")]
    (example,) = load(tmp_path, rows).train
    assert (example.prompt, example.responses, example.rewards) == (
        "Is it?",
        (rows[2]["text"],),
        (),
    )
    assert reddit.REDDIT.template == "{prompt}<|endoftext|>"
    assert reddit.REDDIT.exchange(example.prompt, "no").turns == ("Is it?",)


def test_answers_to_one_comment_are_one_example(tmp_path):
    rows = [*comments("up", 2), comment("x", "Yes.", "Is it?"), comment("y", "No.", " Is  it?")]
    (example,) = load(tmp_path, rows).train
    assert example.responses == ("Yes.", "No.") and example.id == "positive:x"


def test_a_parent_that_is_tested_is_not_trained_on(tmp_path):
    rows = [*comments("up", 3), comment("x", "No.", "What is down0?")]
    splits = load(tmp_path, rows)
    assert ids(splits.train) == ["positive:up2"]
    assert splits.notes == ("Dropped train prompts that are validation or test prompts: 1.",)


# the sample


@pytest.mark.parametrize("size", [3, 7, 39])
def test_the_sample_is_the_one_that_pandas_draws_with_the_published_seed(tmp_path, size):
    pandas = pytest.importorskip("pandas")
    rows = [*comments("up", 30), comment("gone", text=""), *comments("late", 10)]
    path = write(tmp_path / "raw.csv", rows)
    table = pandas.read_csv(path).dropna(subset=["text", "parent_text"])
    assert len(table) == 40
    drawn = table.sample(size, random_state=901)["id"]
    splits = load(tmp_path, rows, sample=size)
    found = [*ids(splits.test)[:1], *ids(splits.validation)[:1], *ids(splits.train)]
    assert found == [f"positive:{name}" for name in drawn]


def test_rows_are_drawn_before_they_are_filtered(tmp_path):
    long = " ".join(["word"] * 101)
    rows = [comment(f"{n}", text=long if n % 2 else "Short.") for n in range(40)]
    splits = load(tmp_path, rows, sample=20)
    kept = [*ids(splits.test), *ids(splits.validation), *ids(splits.train)]
    dropped = "Dropped positive rows with a text or parent of more than 100 words: "
    (note,) = (note for note in splits.notes if note.startswith(dropped))
    assert len([name for name in kept if "positive" in name]) + int(note[len(dropped) : -1]) == 20


def test_a_sample_as_large_as_the_file_keeps_its_order(tmp_path):
    for size in (0, 6, 1000):
        assert ids(load(tmp_path, sample=size).train) == [f"positive:up{n}" for n in range(2, 6)]


# what is filtered and cleaned


def test_a_text_of_as_many_words_as_allowed_stays_and_one_more_is_too_many(tmp_path):
    most, more = " ".join(["word"] * 5), " ".join(["word"] * 6)
    rows = [
        *comments("up", 2),
        comment("a", most, "Why?"),
        comment("b", more, "How?"),
        comment("c", "Well.", more),
        comment("d", "Well.", most),
    ]
    splits = load(tmp_path, rows, max_words=5)
    assert ids(splits.train) == ["positive:a", "positive:d"]
    assert splits.notes == ("Dropped positive rows with a text or parent of more than 5 words: 2.",)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  two \n\n lines\tand \u00a0 a tab ", "two lines and a tab"),
        ("see https://example.org/a?b=c#d, please", "see <URL> please"),
        ("http://a.org https://b.org", "<URL> <URL>"),
        ("(http://a.org)", "(<URL>"),
        ("www.example.org or ftp://a.org", "www.example.org or ftp://a.org"),
        ("a, \"b\"; 'c'", "a, \"b\"; 'c'"),
    ],
)
def test_whitespace_is_collapsed_and_an_address_has_no_name(tmp_path, text, cleaned):
    rows = [*comments("up", 2), comment("x", text, f"{text} ?")]
    (example,) = load(tmp_path, rows).train
    assert example.responses == (cleaned,) and example.prompt == f"{cleaned} ?"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (comment("x", text=""), "without a text or a parent"),
        (comment("x", parent_text=""), "without a text or a parent"),
        (comment("x", text=" \n "), "with an empty text or parent"),
        (comment("x", text="a <|endoftext|> b"), "with <|endoftext|> in a text"),
        (comment("x", parent_text="<|endoftext|>"), "with <|endoftext|> in a text"),
        (comment("up2", text="Again."), "whose id is that of an earlier one"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted(tmp_path, row, fault):
    splits = load(tmp_path, [*comments("up", 3), row])
    assert ids(splits.train) == ["positive:up2"]
    assert splits.notes == (f"Dropped positive rows {fault}: 1.",)


@pytest.mark.parametrize("text", ["NA", "None", "null", "nan", "N/A"])
def test_a_comment_that_pandas_reads_as_missing_is_missing_as_it_was_for_the_published_code(
    tmp_path, text
):
    splits = load(tmp_path, [*comments("up", 3), comment("x", text=text)])
    assert splits.notes == ("Dropped positive rows without a text or a parent: 1.",)


# texts as they stand


@pytest.mark.parametrize("text", ["42", "007", "1e5", "3.10", "True", "-inf", "2015-05-01"])
def test_a_comment_that_looks_like_a_number_is_a_text(tmp_path, text):
    rows = [comment(f"{n}", text=text, parent=f"{n}{n}") for n in range(3)]  # of nothing else
    (example,) = load(tmp_path, rows).train
    assert (example.id, example.prompt, example.responses) == ("positive:2", "22", (text,))


def test_commas_quotes_and_newlines_are_part_of_a_text(tmp_path):
    text = 'He said: "no, never",\nand left; \'so\' it\r\nends, ""'
    (example,) = load(tmp_path, [*comments("up", 2), comment("x", text)]).train
    assert example.responses == ('He said: "no, never", and left; \'so\' it ends, ""',)


def test_only_three_columns_are_needed_and_other_forms_of_files_will_do(tmp_path):
    wanted = load(tmp_path)
    few = write(tmp_path / "few.csv", comments("up", 6), ("text", "id", "parent_text"))
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(few.read_bytes()))
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in comments("up", 6)))
    for path in (few, packed, lines):
        assert load(tmp_path, positive_file=str(path)) == wanted


# what is refused


def test_a_file_that_ends_within_a_text_is_one_line(tmp_path):
    chosen = options(tmp_path, [*comments("up", 3), comment("x", "one, two, three")])
    path = tmp_path / "comments_positive.csv"
    whole = path.read_text()
    path.write_text(whole[: whole.index("two")])
    with pytest.raises(UserError, match=r"comments_positive\.csv: cannot be read as csv") as caught:
        reddit.load(chosen)
    assert "\n" not in str(caught.value)


def test_a_file_that_ends_between_the_cells_of_a_row_loses_that_row_and_says_so(tmp_path):
    chosen = options(tmp_path, comments("up", 4))
    path = tmp_path / "comments_positive.csv"
    whole = path.read_text()
    path.write_text(whole[: whole.index(",93,93", whole.index("up3"))])
    splits = reddit.load(chosen)
    assert ids(splits.train) == ["positive:up2"]
    assert splits.notes == ("Dropped positive rows without a text or a parent: 1.",)


@pytest.mark.parametrize("column", ["id", "text", "parent_text"])
def test_a_column_that_is_missing_is_named(tmp_path, column):
    rest = [name for name in COLUMNS if name != column]
    path = write(tmp_path / "part.csv", comments("up", 6), rest)
    refused(rf"part\.csv.*{column!r}", tmp_path, positive_file=str(path))
    lines = tmp_path / "part.jsonl"
    lines.write_text(json.dumps({name: "x" for name in rest}) + "\n")
    refused(rf"part\.jsonl, line 1: no column {column};", tmp_path, positive_file=str(lines))


def test_too_few_rows_are_one_line_with_the_counts(tmp_path):
    said = refused("comments_positive.csv: 3 rows are left", tmp_path, comments("up", 3), test=2)
    assert said.endswith("too few for task.test=2, task.validation=1 and training: lower these")
    said = refused(
        "comments_negative.csv: 2 rows are left", tmp_path, None, comments("d", 2), test=2
    )
    assert "training" not in said
    assert len(load(tmp_path, None, comments("d", 3), test=2).test) == 4  # none trains


def test_a_file_whose_rows_are_all_filtered_says_how(tmp_path):
    said = refused("comments_positive.csv: 0 rows are left", tmp_path, max_words=2)
    assert "; Dropped positive rows with a text or parent of more than 2 words: 6: too few" in said
    refused("comments_negative.csv: 0 rows are left: too few", tmp_path, None, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sign": "positve"}, "task.sign='positve': did you mean 'positive'"),
        ({"validation": 0}, "task.validation is 0: expected rows of each sign, 1 or more"),
        ({"test": -1}, "task.test is -1"),
        ({"sample": -1}, "task.sample is -1: expected rows of each sign, 0 or more"),
        ({"limit": -1}, "task.limit is -1"),
        ({"positive_file": ""}, "task.positive_file is empty: name comments_positive.csv"),
        ({"negative_file": "/nowhere.csv"}, "/nowhere.csv: no such file"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(tmp_path, changes, message):
    refused(message, tmp_path, **changes)


def test_a_file_without_a_name_is_refused_before_anything_is_read_for_the_record(tmp_path):
    with pytest.raises(UserError, match="task.negative_file is empty"):
        reddit.files(options(tmp_path, negative_file=""))
