"""Every key that a config can have, with the values that most tasks share. No library code here."""

from ml_collections import ConfigDict


def optimizer(learning_rate: float) -> ConfigDict:
    """AdamW with a short warm-up and a cosine end."""
    return ConfigDict(
        {
            "learning_rate": learning_rate,
            "schedule": "cosine",  # constant, linear, cosine
            "warmup": 0,  # steps
            "b1": 0.9,
            "b2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.0,  # decoupled, on matrices
            "max_grad_norm": 1.0,  # 0 = no clipping
        }
    )


def fitting(learning_rate: float) -> ConfigDict:
    """How a policy is fitted: the reference and the A-LoL policy have the same knobs."""
    return ConfigDict(
        {
            "epochs": 1.0,  # passes over the rows it may draw (the kept rows)
            "batch_size": 16,  # items of one micro-batch, all devices together
            "accumulate": 1,  # micro-batches per optimizer step
            "validations": 4,  # looks at the validation prompts, evenly spaced, the last at the end
            "checkpoint_every": 100,  # optimizer steps; every validation saves one too
            "optimizer": optimizer(learning_rate),
        }
    )


def get_config() -> ConfigDict:
    """The shared defaults; each config fills in ``task``, ``rewards`` and ``model.path``."""
    config = ConfigDict()
    config.seed = 0
    config.task = ConfigDict({"name": "", "template": ""})  # template: "" = the task's own
    config.rewards = ConfigDict()  # weight of each reward component of the task; 0 leaves it out
    config.model = ConfigDict(
        {
            "path": "",  # a directory, a hub name, a .gguf file, package:NAME or random:PRESET
            "dtype": "bfloat16",  # of activations and of frozen weights
            "quantisation": "none",  # of the frozen base: none, nf4, nf4-double (QLoRA)
            "attention": "auto",  # kernel: auto, xla, cudnn (GPU), splash (TPU)
            "remat": True,  # recompute activations in the backward pass: less memory, more time
            "logprob_chunk": 4096,  # tokens whose [V] logits exist at once
            "shapes": ((512, 128),),  # (prompt, response) lengths that are compiled for
            # a directory that peft wrote: training starts from it, and it decides, not ``lora``
            "adapter": "",
            # rank 0 trains every weight
            "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "modules": ("all-linear",)},
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: what is left
    config.reference = fitting(2e-4)
    # How reference and policy answer: to be validated, to be evaluated, and for `generate`.
    config.decode = ConfigDict(
        {
            "max_new_tokens": 128,
            "batch_size": 32,  # prompts; with beams so many times as many rows are decoded
            "beams": 1,  # unfinished answers kept side by side; 1 = greedy
            "repetition_penalty": 1.0,  # of tokens of the prompt and the answer so far; 1 = none
            "end": (),  # ids of tokens that end an answer, besides the tokenizer's end token
        }
    )
    config.generate = ConfigDict(
        {
            "temperature": 0.0,  # 0 = as config.decode says; above 0 = drawn, without beams
            "top_k": 0,  # 0 = all
            "top_p": 1.0,
            "samples": 1,  # answers per validation prompt for the value head
        }
    )
    config.value = ConfigDict(
        {
            "heads": 8,
            "dropout": 0.1,
            "folds": 4,  # the number of epochs is chosen on held-out folds
            "epochs": 10,  # at most
            "batch_size": 32,
            "optimizer": optimizer(1e-4),
        }
    )
    config.select = ConfigDict({"batch_size": 32})
    config.objective = ConfigDict(
        {
            "name": "a_lol",
            # Each objective reads those of these that its formula has.
            "clip": 0.9,  # importance ratios are clipped to [1 - clip, 1 + clip]; inf = never
            "beta": 0.1,
            "floor": 0.1,
            "sft_weight": 0.05,
        }
    )
    config.policy = fitting(2e-4)
    config.policy.sampling = (
        "auto"  # uniform, priority, positive; auto: priority where it is defined
    )
    config.evaluate = ConfigDict({"bootstrap": 10_000})  # resamples
    config.report = ConfigDict({"title": "", "examples": 20})
    config.tensorboard = False
    return config


def finish(config: ConfigDict, arg: str | None) -> ConfigDict:
    """Applies the argument of a config (``configs/x.py:debug``) and locks the keys."""
    if arg == "debug":
        _shrink(config)
    elif arg:
        raise ValueError(f"this config knows the argument 'debug', not {arg!r}")
    config.lock()
    return config


def _shrink(config: ConfigDict) -> None:
    """A tiny random Llama with a byte tokenizer and a few rows: all stages in about a minute."""
    config.task.update({"validation": 16, "test": 16, "limit": 64})
    config.model.update(
        {"path": "random:llama-tiny", "dtype": "float32", "remat": False, "shapes": ((160, 48),)}
    )
    config.reference.update({"epochs": 0.5, "batch_size": 8, "checkpoint_every": 2})
    config.decode.update({"max_new_tokens": 8, "batch_size": 8})
    config.value.update({"folds": 2, "epochs": 2})
    config.policy.update({"epochs": 1.0, "batch_size": 8, "checkpoint_every": 2})
    config.evaluate.bootstrap = 200
    config.report.examples = 4
