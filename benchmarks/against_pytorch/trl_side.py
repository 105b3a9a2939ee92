"""The pairs of a job in TRL's `DPOTrainer`, where it is installed (tested with 1.16).

The policy is peft's, and TRL keeps a frozen copy of the adapter as the reference. Micro-batches of
as many responses as on the PyTorch side, padded to their longest. TRL's default of computing
activations again is off, as on that side; so is its shuffling, since the job says what a step
draws.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.against_pytorch.job import Job
from benchmarks.against_pytorch.torch_side import MICRO, opened, peak_bytes, synchronise


class _Trainer(DPOTrainer):
    """`DPOTrainer` on rows that are token ids already; it records the loss of every micro-batch."""

    def __init__(self, **arguments):
        self.losses: list[float] = []
        super().__init__(**arguments)

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.losses.append(float((found[0] if return_outputs else found).detach()))
        return found


class _Clock(TrainerCallback):
    """The seconds of every optimizer step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__):
        synchronise()
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        synchronise()
        self.seconds.append(time.perf_counter() - self.began)


def train(job: Job, folder: Path) -> dict:
    """Run the steps of a job on its pairs; return seconds, losses and peak memory."""
    options, (steps, size) = job.options, job.pair_draws.shape
    policy = PeftModel.from_pretrained(
        opened(folder, options["dtype"]), folder / "adapter", is_trainable=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = DPOConfig(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=MICRO // 2,
            gradient_accumulation_steps=size * 2 // MICRO,
            train_sampling_strategy="sequential",
            learning_rate=options["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=options["max_grad_norm"],
            beta=options["beta"],
            max_length=options["max_prompt"] + options["max_response"],
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        clock = _Clock()
        trainer = _Trainer(
            model=policy,
            args=arguments,
            train_dataset=Dataset.from_list(_pairs(job)),
            processing_class=_tokenizer(),
            callbacks=[clock],
        )
        _warm_up(trainer)
        trainer.train()
    losses = np.array(trainer.losses[1:]).reshape(steps, -1).mean(1)
    return {"seconds": clock.seconds, "losses": losses.tolist(), "peak_bytes": peak_bytes()}


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one token: TRL only pads with it, and the mask hides the padding."""
    words = models.WordLevel({"<pad>": 0}, "<pad>")
    named = dict.fromkeys(("pad_token", "eos_token", "unk_token"), "<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **named)


def _pairs(job: Job) -> list[dict]:
    """The drawn pairs, in order."""
    return [
        {
            "prompt_ids": job.prompts[better].tolist(),
            "chosen_ids": job.responses[better].tolist(),
            "rejected_ids": job.responses[worse].tolist(),
        }
        for better, worse in job.pairs[job.pair_draws.reshape(-1)]
    ]


def _warm_up(trainer: _Trainer) -> None:
    """One micro-batch forwards and backwards, outside of the clock."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    trainer.model.zero_grad(set_to_none=True)
