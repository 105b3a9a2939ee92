"""What others do, on the same device and shapes: `transformers.generate`, and a published step.

The step is that of the authors' PyTorch code (Leftover Lunch): a policy with peft's LoRA, a second,
frozen model whose log-probabilities are computed anew in every step, logits of all positions,
nothing recomputed in the backward pass. Random bfloat16 weights, PyTorch's own attention (sdpa).
Nothing here runs where torch, transformers or peft is not installed, or torch sees no accelerator
(``tiny`` runs on a CPU).
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

from alol_jax.models.config import ModelConfig
from alol_jax.models.presets import PRESETS
from benchmarks.accelerator import subjects
from benchmarks.accelerator.answers import sizes
from benchmarks.accelerator.measuring import Row, Tell
from benchmarks.accelerator.steps import NARROW, ONE_B


def generate(tell: Tell, tiny: bool) -> None:
    """As `answers.one_b`."""
    if missing := _missing(("torch", "transformers"), tiny):
        tell({"what": "PyTorch generate", "failed": missing})
        return
    rows, prompt, new = sizes(tiny)
    what = f"decoding, transformers, {ONE_B.preset}, {rows} × {prompt}, {new} tokens"
    _attempt(tell, what, functools.partial(_generate_row, rows, prompt, new, tiny))


def step(tell: Tell, tiny: bool) -> None:
    """As the first row of `steps.one_b`."""
    if missing := _missing(("torch", "transformers", "peft"), tiny):
        tell({"what": "PyTorch step", "failed": missing})
        return
    load = NARROW.shrunk() if tiny else NARROW
    prompt, response = load.prompt, load.response
    rows = load.rows * (load.width // (prompt + response))  # as many examples, and tokens
    shape = (rows, prompt, response)
    for recompute in (False, True):
        kind = ", gradient checkpointing" if recompute else ""
        what = f"a_lol step, torch + peft{kind}, {ONE_B.preset}, {rows} × ({prompt} + {response})"
        _attempt(tell, what, functools.partial(_step_row, shape, recompute, tiny))


def _missing(names: tuple[str, ...], tiny: bool) -> str:
    """Why there is nothing to compare with, or ""."""
    gone = [name for name in names if importlib.util.find_spec(name) is None]
    if gone:
        return f"left out: {', '.join(gone)} not installed"
    import torch

    return "" if tiny or torch.cuda.is_available() else "left out: torch sees no GPU"


def _attempt(tell: Tell, what: str, run: Callable[[], Row]) -> None:
    """As `measuring.attempt`, with torch's count of memory."""
    import torch

    on_gpu = torch.cuda.is_available()
    try:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row = run()
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        tell({"what": what, "failed": f"{type(error).__name__}: {said}"[:300]})
        return
    peak = {"peak_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}
    tell({"what": what, "note": f"torch {torch.__version__}"} | peak | row)


def _median(call: Callable[[], Any], most: int, seconds: float) -> float:
    """As `measuring.median_of`."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: list[float] = []
    for number in range(2 + most):
        wait()
        began = time.perf_counter()
        call()
        wait()
        if number > 1:
            times.append(time.perf_counter() - began)
        if len(times) >= 3 and sum(times) > seconds:
            break
    return statistics.median(times)


def _model(tiny: bool) -> Any:
    """`LlamaForCausalLM` with the sizes of `ONE_B`, bfloat16 random weights, on the device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c: ModelConfig = PRESETS[ONE_B.preset]
    c = subjects.shrunk(c) if tiny else c
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        intermediate_size=c.mlp_width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_width,
        max_position_embeddings=8192,
        rms_norm_eps=c.norm_epsilon,
        tie_word_embeddings=c.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(_device()):
            return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _generate_row(rows: int, prompt: int, new: int, tiny: bool) -> Row:
    import torch

    model = _model(tiny).eval()
    ids = torch.randint(1, model.config.vocab_size, (rows, prompt), device=_device())
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def once():
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
        )

    if once().shape[1] != prompt + new:
        raise ValueError(f"wrote {once().shape[1] - prompt} of {new} tokens")
    seconds = _median(once, 3, 12.0)
    return {"seconds": seconds, "tokens_per_second": rows * new / seconds}


def _step_row(shape: tuple[int, int, int], recompute: bool, tiny: bool) -> Row:
    import torch
    from peft import LoraConfig, get_peft_model

    rows, prompt, response = shape
    names = list(PRESETS[ONE_B.preset].projections)
    lora = LoraConfig(r=ONE_B.rank, lora_alpha=16, lora_dropout=ONE_B.dropout, target_modules=names)
    policy, reference = get_peft_model(_model(tiny), lora).train(), _model(tiny).eval()
    reference.requires_grad_(False)
    if recompute:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.enable_input_require_grads()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    size = (rows, prompt + response)
    ids = torch.randint(1, reference.config.vocab_size, size, device=_device())
    mask, advantage = torch.ones_like(ids), torch.rand(rows, device=_device())

    def logp(model):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logits = logits[:, prompt - 1 : -1].float()
        chosen = ids[:, prompt:, None]
        return torch.log_softmax(logits, -1).gather(-1, chosen)[..., 0].sum(-1)

    def once():
        with torch.no_grad():
            before = logp(reference)
        ours = logp(policy)
        ratio = torch.exp(ours.detach() - before).clamp(0.1, 1.9)
        loss = -(advantage * ratio * ours).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    with torch.autocast(_device(), torch.bfloat16):
        seconds = _median(once, 8, 4.0)
    return {"seconds": seconds, "tokens_per_second": rows * (prompt + response) / seconds}
