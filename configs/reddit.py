"""Reddit: answers to comments, with DialoGPT-medium, trained on upvoted or on downvoted ones.

    python -m alol_jax.main --config=configs/reddit.py:sign=pos --workdir=runs/reddit_pos

``:sign=neg`` trains on downvoted comments: good answers can be learned from bad data. Other
arguments: ``objective=…``, ``size=smollm2`` (two CPU cores) and ``debug``. It has not been run in
full: neither the data nor the reward models were available.

Every value has its source: "ours", or file and line of the authors' code; see `published` for the
letters. PR is ``preprocess_reddit…``.
"""

from configs import common, published

SIZES = ("smollm2",)
SIGNS = {"pos": "positive", "neg": "negative"}


def get_config(arg=None):
    said = common.arguments(arg, sizes=SIZES, sign=tuple(SIGNS))
    config = common.get_config()
    published.settings(config, policy_epochs=3, validations=6, response=128)  # RD:87-92
    config.task.update(
        {
            "name": "reddit",
            "positive_file": "data/reddit/comments_positive.csv",
            "negative_file": "data/reddit/comments_negative.csv",
            "sign": SIGNS[said.get("sign", "pos")],
            "sample": 102_000,  # PR:257-323, rows of each file
            "max_words": 100,  # PR:257-323
            "max_tokens": 300,  # PR:320, counted after the split: ours
            "validation": 1000,  # PR:337-350, rows of each sign
            "test": 1000,
            "limit": 0,
        }
    )
    models = config.reward_models  # RU:827-828
    models.fluency = common.reward_model(
        "textattack/roberta-base-CoLA", reads="response", score="LABEL_1"
    )
    models.depth = common.reward_model("microsoft/DialogRPT-depth", reads="between_ends")
    models.updown = common.reward_model("microsoft/DialogRPT-updown", reads="between_ends")
    models.safe = common.reward_model(
        "models/DGPT_medium_OC_S_and_SBF_offensive_e2", reads="ended", score="safe"
    )
    models.fluency.max_tokens = 512
    config.rewards.update({name: 1.0 for name in models})
    config.rewards.diversity = 1.0  # tf-idf
    config.model.path = "microsoft/DialoGPT-medium"
    config.reference.update({"epochs": 6.0, "validations": 12})  # RD:87
    config.objective.name = said.get("objective", "a_lol")
    if "size" in said:
        published.small(config) if said["size"] == "smollm2" else published.shrunk(config)
        config.task.update({"validation": 48, "test": 96, "limit": 640})
        if said["size"] == "debug":
            config.task.update({"validation": 8, "test": 8, "limit": 64})
    config.report.title = f"A-LoL on Reddit, {config.task.sign} comments"
    config.lock()
    return config
