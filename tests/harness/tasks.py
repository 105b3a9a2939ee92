"""Tasks of lm-eval in YAML files, with their data beside them."""

import json

ROWS = [
    {"question": "Two and two are", "choices": ["four", "five", "a boat"], "answer": 0},
    {"question": "The sky is", "choices": ["green", "blue, as ever"], "answer": 1},
    {"question": "Fire is hot,\nand ice is", "choices": ["cold", "hot"], "answer": 0},
    {"question": "Ünter", "choices": ["den Linden", "x"], "answer": 1},
]
CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
ANSWER = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {kwargs}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
PERPLEXITY = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
"""


def write_tasks(folder, kwargs='{until: ["e"], max_gen_toks: 8}'):
    """A folder with a task of each kind: likelihoods of choices, answers, perplexity."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choice", CHOICE), ("answer", ANSWER), ("perplexity", PERPLEXITY)):
        (folder / f"{name}.yaml").write_text(text.format(name=name, data=data, kwargs=kwargs))
    return folder
