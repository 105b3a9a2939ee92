"""Texts to texts: six data sets of RL4LMs, with a causal model.

    python -m alol_jax.main --config=configs/seq2text.py:data=xsum --workdir=runs/xsum

``:data=xsum``, ``cnn_dailymail``, ``imdb``, ``iwslt_en_de``, ``daily_dialog`` or ``common_gen``
chooses one. Other arguments: ``objective=…``, ``size=smollm2`` (two CPU cores) and ``debug``.
Splits come from the hub or from files: ``--config.task.train_files="('my.jsonl',)"``, and so on;
see ``docs/seq2text.md``. None of it has been run in full: neither the data nor the reward models
were available.

Every value has its source: "ours", or file and line of the authors' code; see `published` for the
letters. R4 is ``utils/rl4lms_data_utils.py``. The published code takes reward models and policies
as arguments without a default, so which ones are named here is ours.
"""

from configs import common, published

SIZES = ("smollm2",)
DATA = {  # train, validation, test; without validation, training prompts are split off
    "xsum": tuple((f"EdinburghNLP/xsum:{split}",) for split in ("train", "validation", "test")),
    "cnn_dailymail": tuple(
        (f"abisee/cnn_dailymail:3.0.0:{split}",) for split in ("train", "validation", "test")
    ),
    "imdb": (("stanfordnlp/imdb:train",), (), ("stanfordnlp/imdb:test",)),
    # the hub has these two as programs, which `datasets` no longer runs
    "iwslt_en_de": tuple(
        (f"data/iwslt2017/{split}.jsonl",) for split in ("train", "validation", "test")
    ),
    "daily_dialog": tuple(
        (f"data/daily_dialog/{split}.jsonl",) for split in ("train", "validation", "test")
    ),
    # the test split of the data has no targets
    "common_gen": (("allenai/common_gen:train",), (), ("allenai/common_gen:validation",)),
}
# Prompts to keep; 0 = all. IMDB: R4:163-167, a fifth of 25,000, and the first 5,000 of the test
# rows. CommonGen: ours, as many as its validation split has.
VALIDATION = {"imdb": 5000, "common_gen": 993}
TEST = {"imdb": 5000}
METEOR = ("xsum", "cnn_dailymail", "iwslt_en_de", "common_gen")
# RU:217; "-ve perplexity" of DailyDialog; CommonGen (which the published code cannot train): ours
CHOOSE_BY = {
    "xsum": "meteor",
    "cnn_dailymail": "meteor",
    "imdb": "sentiment",
    "iwslt_en_de": "meteor",
    "daily_dialog": "likelihood",
    "common_gen": "meteor",
}
MODELS = {  # RU:832-910
    "xsum": ("fluency", "relevance", "entailment"),
    "cnn_dailymail": ("fluency", "relevance", "entailment"),
    "imdb": ("fluency", "sentiment"),
    "iwslt_en_de": ("relevance",),
    "daily_dialog": ("fluency",),
    "common_gen": ("fluency",),
}
WORDS = {"daily_dialog": "diversity", "common_gen": "coverage"}  # RU:832-910, rewards by words


def get_config(arg=None):
    said = common.arguments(arg, sizes=SIZES, data=tuple(DATA))
    data = said.get("data", "xsum")
    config = common.get_config()
    # G:50, G:63: 4 epochs; two validations an epoch (RD:87-115)
    published.settings(config, policy_epochs=4, validations=8, response=128)
    train, validation, test = DATA[data]
    config.task.update(
        {
            "name": data,
            # files, or splits on the hub
            "train_files": train,
            "validation_files": validation,
            "test_files": test,
            "validation": VALIDATION.get(data, 0),
            "test": TEST.get(data, 0),
            "limit": 0,
        }
    )
    _rewards(config, data)
    config.policy.choose_by = CHOOSE_BY[data]
    config.evaluate.measures = ("meteor",) if data in METEOR else ()
    dialogue = data == "daily_dialog"
    config.model.path = "microsoft/DialoGPT-medium" if dialogue else "openai-community/gpt2-medium"
    config.reference.update({"epochs": 4.0, "validations": 8})
    config.objective.name = said.get("objective", "a_lol")
    if "size" in said:
        _small(config, data, said["size"])
    config.report.title = f"A-LoL on {data}"
    config.lock()
    return config


def _rewards(config, data):
    """The published components, each with weight 1."""
    known = {
        "fluency": common.reward_model(
            "textattack/roberta-base-CoLA", reads="response", score="LABEL_1"
        ),
        "sentiment": common.reward_model(
            "siebert/sentiment-roberta-large-english", reads="whole", score="POSITIVE"
        ),
        "relevance": common.reward_model(
            "sentence-transformers/all-distilroberta-v1", reads="relevance"
        ),
        # RU:553-563: the first label is "entailment"
        "entailment": common.reward_model(
            "ynie/roberta-large-snli_mnli_fever_anli_R1_R2_R3-nli", reads="pair", score="0"
        ),
    }
    for name in MODELS[data]:
        config.reward_models[name] = known[name]
        config.reward_models[name].max_tokens = 512
        config.rewards[name] = 1.0
    if data == "common_gen":
        config.rewards.coverage = 0.0
    if data in WORDS:
        config.rewards[WORDS[data]] = 1.0
    if "entailment" in MODELS[data]:  # it judges the test prompts alone
        config.evaluate.rewards = config.rewards.to_dict()
        config.rewards.entailment = 0.0


def _small(config, data, size):
    """Text rewards, without METEOR, which needs WordNet: ours."""
    published.small(config) if size == "smollm2" else published.shrunk(config)
    config.evaluate.rewards, config.evaluate.measures = {}, ()
    config.policy.choose_by = "likelihood" if data == "daily_dialog" else ""
    if size == "smollm2":
        config.task.update({"validation": 64, "test": 96, "limit": 640})
        config.rewards.update({"coverage": 1.0} if data == "common_gen" else {})
