"""Invented rows of both kinds, their files and options: cases of the tests of hha."""

import json

from ml_collections import ConfigDict


def row(question="Is water wet?", suffix=("Yes.", "No."), reward=(0.5, -1.5), folder="", **more):
    """A published row."""
    prefix = [f"<|prompter|>{question}", "<|assistant|>"]
    fields = {"prefix": [prefix] * len(suffix), "suffix": list(suffix), "reward": list(reward)}
    meta = {"path": f"../../data/raw_data/hhrlhf/{folder}/dev.jsonl", "line_num": 7}
    return fields | {"sft_index": 0} | ({"meta": meta} if folder else {}) | more


def transcripts(question="Is fire cold?", chosen=" No.", rejected=" Yes. "):
    text = f"\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": text + chosen, "rejected": text + rejected}


def numbered(word, count, **more):
    return [row(f"{word} {n}?", **more) for n in range(count)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def task_options(train=(), validation_files=(), test_files=(), **changes):
    options = dict(
        name="hha",
        template="",
        train_files=tuple(train),
        validation_files=tuple(validation_files),
        test_files=tuple(test_files),
        bad_test_indices="",
        validation=0,
        test=0,
        limit=0,
    )
    return ConfigDict(options | changes)


def three_splits(tmp_path):
    """Six training rows, two validation rows, three rows in each of two test files."""
    return dict(
        train=[write(tmp_path / "train.json", numbered("train", 6, folder="helpful-online"))],
        validation_files=[
            write(
                tmp_path / "sampled_dev.json",
                [
                    row("dev 0?", folder="harmless-base"),
                    row("dev 1?", folder="helpful-rejection-sampled"),
                ],
            )
        ],
        test_files=[
            write(tmp_path / f"{name}.json", numbered(name, 3, folder="helpful-online"))
            for name in ("harmless_base", "helpful_base")
        ],
    )
