"""The model card of an export: training, data, evaluation and how to load it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.models.blocks import LoRA
from alol_jax.models.files.hf_reader import on_hub
from alol_jax.objectives.registry import get_objective, hyper_parameters
from alol_jax.paths import AnyPath
from alol_jax.reports.results import result_table, verdict
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.workdir import Stage, finished_stage
from alol_jax.types import Evaluation, Policy, is_chat

THIS_FOLDER = "THIS_FOLDER"  # what a card calls the folder that it is in
_FILES_SHOWN = 12
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that --max-lora-rank accepts


class Exported(NamedTuple):
    """The exported model that the card describes."""

    workdir: AnyPath
    name: str  # "policy" or "reference"
    what: str  # the form of the files: "adapter", "merged" or "gguf"
    stage: Stage  # the stage that trained it
    policy: Policy
    config: ConfigDict  # the config it was trained with
    family: str
    lora: LoRA | None
    dtype: str  # dtype of the merged weights; "" for an adapter


def model_card(of: Exported) -> str:
    """The text of README.md as model hubs read it: YAML fields, then sections."""
    task = of.stage.record["inputs"]["task"]["name"]
    title = of.config.report.title or f"A model trained on {task}"
    base = of.config.model.path
    head = {"base_model": json.dumps(base)} if named_on_the_hub(base) else {}
    head |= {
        "library_name": _LIBRARIES[of.what],
        "pipeline_tag": "text-generation",
        "tags": "[a-lol, offline-rl]" if of.lora is None else "[a-lol, offline-rl, lora]",
    }
    sections = (
        f"# {title}: the {of.name}\n\n{_what(of)}",
        f"## Objective\n\n{_objective(of)}",
        f"## Data\n\n{_data(of)}",
        f"## Evaluation\n\n{_evaluation(of)}",
        f"## How to load it\n\n{_USES[of.what](of)}\n\n{_prompt(of)}",
        "## License\n\nTo be filled in by whoever publishes this model: the license of the base "
        "model and that of the data apply.",
    )
    fields = "\n".join(f"{key}: {value}" for key, value in head.items())
    return f"---\n{fields}\n---\n\n" + "\n\n".join(sections) + "\n"


def modelfile(template: str, stop: Sequence[str]) -> str:
    """Return what `ollama create` reads beside model.gguf: the form of a prompt, and its ends."""
    lines = ["FROM ./model.gguf"]
    if not is_chat(template) and "{{" not in template and '"""' not in template:
        lines.append(f'TEMPLATE """{template.replace("{prompt}", "{{ .Prompt }}")}"""')
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stop]
    return "\n".join(lines) + "\n"


def _what(of: Exported) -> str:
    model, lora = of.config.model, of.lora
    base = f"`{model.path}`"
    if lora is None:
        trained = f"All weights of {base} were trained."
    else:
        trained = (
            f"LoRA on {base}: rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
            f"{', '.join(lora.modules)}."
        )
    if lora is not None and model.adapter:
        trained += f" Training began from the adapter `{model.adapter}`."
    form = "These files hold only the adapter, in float32."
    if of.dtype:
        form = f"These files hold the whole model, merged in float32 and stored as {of.dtype}."
    quantised = ""
    if model.quantisation != "none":
        quantised = f" The base was quantised during training ({model.quantisation}). " + (
            "The merged weights are those of the quantised base, dequantised, plus the adapter."
            if of.dtype
            else "On the unquantised base the adapter computes slightly different numbers."
        )
    step = f"Step {of.policy.step} of training, the best on the validation prompts."
    return f"{trained} {form}{quantised} {step}"


def _objective(of: Exported) -> str:
    inputs = of.stage.record["inputs"]
    if of.name == "reference":
        return "`nll`: the likelihood of the training responses."
    name = of.config.objective.name
    objective = get_objective(name)
    values = inputs["config.ppo" if objective.online else "config.objective"]
    tuned = "".join(f", {key} = {values[key]:g}" for key in hyper_parameters(objective))
    weights = inputs["scoring"]["config.rewards"].items()
    rewards = ", ".join(f"{weight:g} × {key}" for key, weight in weights if weight)
    fit, optimizer = inputs["config.policy"], inputs["config.policy"]["optimizer"]
    length = (
        f"{values['rollouts']} rollouts of {values['prompts']} prompts, {values['epochs']} epochs "
        f"each, anchor {values['anchor']}"
        if objective.online
        else f"{fit['epochs']:g} epochs of {fit['batch_size']} items a step, "
        f"sampling {fit['sampling']}"
    )
    return (
        f"`{name}`{tuned}. Reward: {rewards or 'as stored with the data'}. {length}, learning rate "
        f"{optimizer['learning_rate']:g} ({optimizer['schedule']}), seed "
        f"{inputs['config.seed'] + fit['seed']}."
    )


def _data(of: Exported) -> str:
    """The fingerprints from raw files to training table, as far as the chain is unbroken."""
    inputs = of.stage.record["inputs"]
    task = inputs["task"]["name"]
    lines = [f"Task `{task}`. Fingerprints of what was read:", ""]
    lines.append(f"- scored rows: `{inputs['scored']}`")
    score = _stage_with(of.workdir, "score", inputs["scored"])
    load = score and _stage_with(of.workdir, "load", score.record["inputs"].get("splits"))
    if load:
        files = load.record["inputs"].get("files") or []
        shown = [f"`{file['file']}` {file['content']}" for file in files[:_FILES_SHOWN]]
        more = len(files) - len(shown)
        lines.append(f"- splits: `{load.fingerprint}`")
        lines += [f"  - {line}" for line in shown] + [f"  - and {more} more"] * (more > 0)
    if "table" in inputs:
        table = _stage_with(of.workdir, "select", inputs["table"])
        report = table and _json(table.folder / "data_report.json")
        kept = f": {report['kept']} of {report['rows']} rows kept" if report else ""
        lines.append(f"- training table: `{inputs['table']}`{kept}")
    return "\n".join(lines)


def _evaluation(of: Exported) -> str:
    evaluated = finished_stage(of.workdir, "evaluate")
    if evaluated is None or evaluated.record["inputs"].get(of.name) != of.stage.fingerprint:
        return "Not evaluated."
    evaluation = load_result(evaluated.folder, Evaluation)
    return f"{verdict(evaluation).sentence}\n\n```\n{result_table(evaluation)}\n```"


def _merged_use(of: Exported) -> str:
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```\n\n'
        "With vLLM: `vllm serve THIS_FOLDER`."
    )


def _adapter_use(of: Exported) -> str:
    base = of.config.model.path
    known = (
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        if _is_for_transformers(base)
        else f'base = AutoModelForCausalLM.from_pretrained("BASE")  # the model that {base} holds\n'
    )
    loaded = (
        "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'{known}model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```\n\n'
    )
    fitting = [rank for rank in _VLLM_RANKS if rank >= of.lora.rank]
    if of.family != "llama" or not fitting:
        return loaded + "For vLLM export the merged model (`--what=merged`)."
    name = base if _is_for_transformers(base) else "BASE"
    return loaded + (
        f"With vLLM: `vllm serve {name} --enable-lora --max-lora-rank {fitting[0]} "
        f"--lora-modules {of.name}=THIS_FOLDER`."
    )


def _gguf_use(of: Exported) -> str:
    return (
        "With llama.cpp: `llama-cli -m model.gguf`. With Ollama: `ollama create NAME -f Modelfile` "
        "in this folder. llama.cpp's `llama-quantize` makes a smaller file of it."
    )


_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_USES: dict[str, Callable[[Exported], str]] = {
    "adapter": _adapter_use,
    "merged": _merged_use,
    "gguf": _gguf_use,
}
"""Form of the files -> how to load them."""


def named_on_the_hub(path: str) -> bool:
    """Whether the hub takes this as the name of a base model."""
    return on_hub(path) is not None and "@" not in path and not Path(path).exists()


def _is_for_transformers(path: str) -> bool:
    """Is it a directory or a hub name?"""
    return not path.startswith(("random:", "package:")) and not path.endswith(".gguf")


def _prompt(of: Exported) -> str:
    task = of.stage.record["inputs"]["task"]
    stop = f"\n\nAn answer ends at {' or '.join(map(repr, task['stop']))}." if task["stop"] else ""
    if is_chat(task["template"]):
        return "Prompts are in the chat template of the tokenizer's files: `apply_chat_template`."
    template = json.dumps(task["template"], ensure_ascii=False)
    return f"Prompts have this form, as a JSON string:\n\n```\n{template}\n```{stop}"


def _stage_with(workdir: AnyPath, name: str, fingerprint: Any) -> Stage | None:
    """The finished stage, if its result has this fingerprint."""
    stage = finished_stage(workdir, name)
    return stage if stage is not None and stage.fingerprint == fingerprint else None


def _json(file: AnyPath) -> Mapping[str, Any] | None:
    return json.loads(paths.read_text(file)) if paths.exists(file) else None
