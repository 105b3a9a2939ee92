"""COMET: commonsense inferences, with COMET-distill (GPT-2 XL) as the reference.

    python -m alol_jax.main --config=configs/comet.py --workdir=runs/comet

trains every weight with A-LoL on ATOMIC10X. ``:objective=…`` changes the objective,
``:size=smollm2`` takes a small model with LoRA for two CPU cores, ``:debug`` a tiny random one. It
has not been run in full: the weights of COMET-distill and of its critic were not available.

Every value has its source: "ours", or file and line of the authors' code; see `published` for the
letters. CU is ``utils/comet_utils.py``, PC ``preprocess_comet…``.
"""

from configs import common, published

SIZES = ("smollm2",)


def get_config(arg=None):
    said = common.arguments(arg, sizes=SIZES)
    config = common.get_config()
    published.settings(config, policy_epochs=1, validations=16, response=30)  # RD:65
    config.task.update(
        {
            "name": "comet",
            "train_file": "data/comet/ATOMIC10X.jsonl",
            "test_file": "data/comet/test.tsv",  # PC:120-160, ATOMIC-2020; "" = ATOMIC10X's own
            "validation": 10_000,  # prompts; G:153-156: 10,000 rows
            "test": 0,  # 0 = all prompts
            "limit": 0,
        }
    )
    # CU:61-88, RU:699-719; stored rewards are this critic's
    config.reward_models.p_valid_model = common.reward_model("models/comet-critic", reads="pair")
    config.reward_models.p_valid_model.max_tokens = 512
    config.rewards.p_valid_model = 1.0
    config.score.stored = ("train", "validation")
    # ours, because the critic read names that were drawn at random: how much a score depends on
    # them is not known
    config.score.tolerance = 0.2
    config.score.best = ("test",)  # PC:176-185: the best tail of each head and relation
    config.model.path = "models/comet-distill"
    config.mesh.update({"data": 1, "fsdp": -1})  # ours
    config.reference.epochs = 0.0  # RD:65: the reference is the checkpoint itself
    config.objective.name = said.get("objective", "a_lol")
    if "size" in said:
        published.small(config) if said["size"] == "smollm2" else published.shrunk(config)
        config.model.max_prompt = 96
        config.task.update({"validation": 64, "test": 64})
        config.score.best = ()
    config.report.title = "A-LoL on COMET"
    config.lock()
    return config
