"""Knowledge-grounded dialogue: Wizard of Wikipedia, FaithDial or both, with DialoGPT-medium.

    python -m alol_jax.main --config=configs/dialogue.py:data=both --workdir=runs/dialogue

``:data=wow``, ``faithdial`` or ``both`` says what to train on; all are tested on FaithDial. Other
arguments: ``objective=…``, ``size=smollm2`` (two CPU cores) and ``debug``. It has not been run in
full: neither the whole data nor the reward models were available.

Every value has its source: "ours", or file and line of the authors' code; see `published` for the
letters. PW is ``preprocess_wow…``.
"""

from configs import common, published

SIZES = ("smollm2",)
WOW, FAITHDIAL = "data/wow", "McGill-NLP/FaithDial"
DATA = {  # PW:291-317
    "wow": ((f"{WOW}/train.json",), (f"{WOW}/valid_topic_split.json",)),
    "faithdial": ((f"{FAITHDIAL}:train",), (f"{FAITHDIAL}:validation",)),
    "both": (
        (f"{WOW}/train.json", f"{FAITHDIAL}:train"),
        (f"{WOW}/valid_topic_split.json", f"{FAITHDIAL}:validation"),
    ),
}


def get_config(arg=None):
    said = common.arguments(arg, sizes=SIZES, data=tuple(DATA))
    data = said.get("data", "both")
    config = common.get_config()
    published.settings(config, policy_epochs=3, validations=6, response=128)  # RD:111-115
    train, validation = DATA[data]
    config.task.update(
        {
            "name": "dialogue",
            # files, or splits on the hub
            "train_files": train,
            "validation_files": validation,
            "test_files": (f"{FAITHDIAL}:test",),
            "validation": 0,  # prompts to keep; 0 = all
            "test": 0,
            "limit": 0,
        }
    )
    models = config.reward_models  # RU:824-826
    models.fluency = common.reward_model(
        "textattack/roberta-base-CoLA", reads="response", score="LABEL_1"
    )
    # RU:721-735: the first label is "faithful"
    models.faithdial = common.reward_model(
        "McGill-NLP/roberta-large-faithcritic", reads="pair", score="0"
    )
    models.depth = common.reward_model("microsoft/DialogRPT-depth", reads="between_ends")
    for name in ("fluency", "faithdial"):
        models[name].max_tokens = 512
    config.rewards.update({name: 1.0 for name in models})
    config.rewards.diversity = 1.0  # tf-idf
    config.evaluate.measures = ("coverage", "density")  # G:1005-1056
    # G:389-400: FaithDial alone is judged by the whole reward
    config.policy.choose_by = "" if data == "faithdial" else "faithdial"
    config.model.path = "microsoft/DialoGPT-medium"
    config.reference.update({"epochs": 6.0, "validations": 12})  # RD:111
    config.objective.name = said.get("objective", "a_lol")
    if "size" in said:
        published.small(config) if said["size"] == "smollm2" else published.shrunk(config)
        config.policy.choose_by = ""
        config.task.update({"validation": 64, "test": 96, "limit": 640})
        if said["size"] == "debug":
            config.task.update({"validation": 16, "test": 16, "limit": 64})
            config.model.max_prompt = 320
    config.report.title = f"A-LoL on knowledge-grounded dialogue ({data})"
    config.lock()
    return config
