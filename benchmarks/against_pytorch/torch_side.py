"""The published structure in PyTorch, written from the formulas of docs/objectives.md.

A policy with peft's LoRA and a second, frozen copy as the reference; prompts padded on the left and
responses on the right to fixed lengths; micro-batches of 4 rows; the reference's log-probabilities
computed anew in every step; logits of all positions; nothing recomputed in the backward pass.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.against_pytorch.job import Job

MICRO = 4  # rows that are padded and computed together


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_bytes() -> int:
    """Peak memory: of the GPU, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def opened(folder: Path, dtype: str):
    """The base model of a job."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype))
    return model.to(device())


def train(job: Job, objective: str, folder: Path) -> dict:
    """Run the steps of a job; return seconds, losses and peak memory."""
    options, needs_reference = job.options, objective != "nll"
    policy = PeftModel.from_pretrained(
        opened(folder, options["dtype"]), folder / "adapter", is_trainable=True
    )
    reference = opened(folder, options["dtype"]).eval() if needs_reference else None
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=options["learning_rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    members, draws = job.items(objective)
    seconds, losses = [], []
    warm_up = members[draws[0]][: MICRO // members.shape[1]]
    _step(job, objective, warm_up, policy, reference)
    optimizer.zero_grad(set_to_none=True)
    for chosen in draws:
        synchronise()
        began = time.perf_counter()
        loss = _step(job, objective, members[chosen], policy, reference)
        torch.nn.utils.clip_grad_norm_(trained, options["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronise()
        seconds.append(time.perf_counter() - began)
        losses.append(loss)
    return {"seconds": seconds, "losses": losses, "peak_bytes": peak_bytes()}


def _step(job: Job, objective: str, rows: np.ndarray, policy, reference) -> float:
    """Gradients of one step, accumulated over micro-batches; its loss."""
    items = MICRO // rows.shape[1]
    total = 0.0
    for start in range(0, len(rows), items):
        part = rows[start : start + items]
        ids, attend, mask = _padded(job, part.reshape(-1))
        before = None
        if reference is not None:
            with torch.no_grad():
                before = _logp(reference, ids, attend, mask, job.options["max_prompt"])
        ours = _logp(policy, ids, attend, mask, job.options["max_prompt"])
        loss = LOSSES[objective](ours, before, job, part) * len(part) / len(rows)
        loss.backward()
        total += float(loss.detach())
    return total


def _padded(job: Job, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Token ids, attention mask and response mask at the fixed lengths."""
    p, r = job.options["max_prompt"], job.options["max_response"]
    ids, attend = (np.zeros((len(rows), p + r), np.int64) for _ in range(2))
    for place, row in enumerate(rows):
        prompt, response = job.prompts[row], job.responses[row]
        start, end = p - len(prompt), p + len(response)
        ids[place, start:p], ids[place, p:end] = prompt, response
        attend[place, start:end] = 1
    tensors = (torch.from_numpy(x).to(device()) for x in (ids, attend, attend[:, p:].copy()))
    return tuple(tensors)


def _logp(model, ids, attend, mask, prompt: int) -> torch.Tensor:
    """Log-probabilities of the response tokens, 0 on padding."""
    logits = model(input_ids=ids, attention_mask=attend, use_cache=False).logits
    logp = torch.log_softmax(logits[:, prompt - 1 : -1].float(), -1)
    return logp.gather(-1, ids[:, prompt:, None])[..., 0] * mask


def _numbers(column: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(column[rows].astype(np.float32)).to(device())


def _nll(ours, before, job, rows):
    return -ours.sum(1).mean()


def _a_lol(ours, before, job, rows):
    seq, clip = ours.sum(1), job.options["clip"]
    ratio = torch.exp(seq.detach() - before.sum(1)).clamp(1 - clip, 1 + clip)
    return -(_numbers(job.advantage, rows[:, 0]) * ratio * seq).mean()


def _a_lol_seq(ours, before, job, rows):
    clip = job.options["clip"]
    ratio = torch.exp(ours.detach() - before).clamp(1 - clip, 1 + clip)
    return -(_numbers(job.advantage, rows[:, 0]) * (ratio * ours).sum(1)).mean()


def _dpo(ours, before, job, rows):
    score = job.options["beta"] * (ours - before).sum(1).view(-1, 2)
    return -torch.nn.functional.logsigmoid(score[:, 0] - score[:, 1]).mean()


LOSSES = {"nll": _nll, "a_lol": _a_lol, "a_lol_seq": _a_lol_seq, "dpo": _dpo}


def decode(prompts: list[np.ndarray], folder: Path, options: dict) -> dict:
    """`generate`, in batches of ``slots`` prompts in the order of the data, padded on the left."""
    model = opened(folder, options["dtype"]).eval()
    size, new, end = options["slots"], options["new_tokens"], options["end"]
    stop = {"eos_token_id": end} if end else {"min_new_tokens": new, "eos_token_id": None}

    @torch.inference_mode()
    def batch(rows):
        width = max(map(len, rows))
        ids, attend = np.zeros((2, len(rows), width), np.int64)
        for place, row in enumerate(rows):
            ids[place, width - len(row) :], attend[place, width - len(row) :] = row, 1
        given = (torch.from_numpy(x).to(device()) for x in (ids, attend))
        names = ("input_ids", "attention_mask")
        out = model.generate(
            **dict(zip(names, given, strict=True)),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
            **stop,
        )
        return [_ended(row, end) for row in out[:, width:].cpu().numpy()]

    batch([row[:8] for row in prompts[:2]])
    synchronise()
    began = time.perf_counter()
    answers = [
        ids
        for start in range(0, len(prompts), size)
        for ids in batch(prompts[start : start + size])
    ]
    synchronise()
    return {
        "seconds": time.perf_counter() - began,
        "tokens": sum(map(len, answers)),
        "answers": answers,
    }


def _ended(ids: np.ndarray, end: int) -> list[int]:
    """The answer up to its end token."""
    found = np.flatnonzero(ids == end) if end else np.zeros(0, int)
    return ids[: found[0] + 1].tolist() if len(found) else ids.tolist()
