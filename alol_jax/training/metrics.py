"""What each metric means, and the metric log: JSON lines, which the boards show."""

from __future__ import annotations

import json
import math

import jax

from alol_jax import paths
from alol_jax.devices import processes
from alol_jax.devices.sharding import fetch
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath
from alol_jax.training.boards import open_boards
from alol_jax.types import Curve, LogOptions

OBJECTIVE_METRICS: dict[str, str] = {
    "loss": "The objective, which the optimizer minimises.",
    "nll": "Mean over the responses of −log π of the whole response, in nats.",
    "logp_per_token": "Mean log π of a response token, in nats; exp(−it) is the perplexity.",
    "weight_mean": "Mean of the weights that multiply log π (reward or advantage times ratio).",
    "effective_sample_size": "(Σw)² / (n Σw²) of these n weights: 1 if all equal, 0 if all are 0.",
    "ratio_mean": "Mean importance ratio π/π_ref after clipping, as the loss uses it.",
    "fraction_clipped": (
        "Share of the ratios changed by the clamp to [1 − clip, 1 + clip]; in PPO, share of the "
        "tokens whose loss the clamp changed, which then carry no gradient."
    ),
    "kl_to_reference": (
        "Mean over the responses of Σ_t (π_ref/π − 1 − log π_ref/π): never negative, 0 at the "
        "reference; an estimate of KL(π‖π_ref) only where π itself wrote the responses."
    ),
    "chosen_reward": "Mean score of response 0 as the objective compares it.",
    "rejected_reward": "Mean score of the other responses as the objective compares them.",
    "margin": "chosen_reward − rejected_reward.",
    "accuracy": "Share of prompts whose response 0 scores above all others.",
}
"""What the metrics of an objective mean, by name."""

ROLLOUT_METRICS: dict[str, str] = {
    # Of PPO's loss, besides "loss" and "fraction_clipped": means over the steps of a rollout.
    "policy_loss": "Clipped loss of the policy: mean over the tokens of max(−A ρ, −A clip(ρ)).",
    "value_loss": "Half the clipped squared error of the token values, mean over the tokens.",
    "value_fraction_clipped": "Share of the token values whose loss the value clip changed.",
    "approx_kl": (
        "Mean over the tokens of ρ − 1 − log ρ, ρ = π/π_old: an estimate of how far one rollout "
        "moves the policy, KL(π_old‖π) per token in nats; 0 before its first step."
    ),
    # Of the rollout itself.
    "score": "Mean reward of the responses that the policy drew in this rollout.",
    "score_std": "Standard deviation of these rewards.",
    "normalised_score": "Mean of the scores that PPO learns from: normalised over all rollouts.",
    "normalised_score_std": "Standard deviation of the scores that PPO learns from.",
    "kl_to_anchor": (
        "Mean over the responses of Σ_t log(π/π_anchor), in nats: the policy drew them, so an "
        "estimate of KL(π‖π_anchor); that of a single rollout may be negative."
    ),
    "kl_coef": "Weight of the KL penalty in the token rewards of this rollout.",
    "token_reward": "Mean over the responses of the summed token rewards: score less KL penalty.",
    "response_length": "Mean number of tokens of a response, including the end token.",
    "explained_variance": (
        "1 − Var(G − V)/Var(G) of the token values V against the returns G, before the optimizer "
        "steps: 1 is perfect, 0 no better than a constant."
    ),
}
"""What the metrics of a rollout mean, by name."""

WORK_METRICS: dict[str, str] = {
    "tokens": "Real tokens of a step; of all optimizer steps of a rollout.",
    "computed_tokens": "Tokens that were computed for these: the rest is padding.",
    "flops": (
        "Operations of a step in closed form, padding included; of a rollout: generating the "
        "responses, the forward passes of policy and anchor over them, and all optimizer steps."
    ),
}
"""What is logged of the work of a step, by name."""

METRICS = OBJECTIVE_METRICS | ROLLOUT_METRICS | WORK_METRICS
"""What a logged metric means, by name."""


class MetricLog:
    """The metrics of one stage, one JSON object per line: {"step": 3, "loss": 1.25, …}.

    `write` takes metrics that may not be computed yet. It keeps them and writes those of the
    previous call, so that host and device work overlap. `flush` writes what is pending. Of several
    processes the first one writes.
    """

    def __init__(self, path: AnyPath, *, resume_at: int, options: LogOptions):
        """Open the log, dropping lines after step ``resume_at`` that a killed run left."""
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._file, self._boards = None, ()
        if not processes.is_first():
            return
        lines = [line for line in _complete_lines(path) if line["step"] <= resume_at]
        paths.make_folder(path.parent)
        kept = "".join(json.dumps(line) + "\n" for line in lines)
        self._file = paths.Appended(path, kept)
        self._boards = open_boards(path.parent, lines, options)

    def write(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keep the metrics of ``step``, and write those of the previous call."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Write pending metrics to the file.

        Raises:
            UserError: the loss is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in fetch(metrics).items()}
        if not math.isfinite(values.get("loss", 0.0)):
            raise UserError(
                f"training diverged: the loss of step {step} is {values['loss']}; lower the "
                "optimizer's learning_rate, or clip its gradients (max_grad_norm), and restart "
                "this stage (--redo)"
            )
        line = {"step": step} | values
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
        for board in self._boards:
            board.show(line)

    def keep(self) -> None:
        """Write what is pending, and keep all of it for a run that goes on from here."""
        self.flush()
        if self._file is not None:
            self._file.keep()
        for board in self._boards:
            board.keep()

    def close(self) -> None:
        """Keep all of it and close the log."""
        self.keep()
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close()


def read_curves(path: AnyPath) -> tuple[Curve, ...]:
    """Read a log as one curve per metric, in order of first appearance."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in _complete_lines(path):
        for name, value in line.items():
            if name != "step":
                points.setdefault(name, []).append((line["step"], value))
    return tuple(
        Curve(name, tuple(step for step, _ in pairs), tuple(value for _, value in pairs))
        for name, pairs in points.items()
    )


def _complete_lines(path: AnyPath) -> list[dict[str, float]]:
    """Read the lines of a log, without a last line that a killed run left incomplete."""
    try:
        text = paths.read_text(path)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
