"""The training loop as a generator, and fitting a policy with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alol_jax.errors import Interrupted
from alol_jax.objectives.logprobs import response_logp, to_sequences
from alol_jax.runs.checkpoint import Checkpoints
from alol_jax.runs.progress import progress
from alol_jax.training.metrics import MetricLog, read_curves
from alol_jax.types import Batch, Cost, Params, Policy, StageContext, Targets, Validation, Watch

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Any, Any, jax.Array], tuple[jax.Array, tuple[jax.Array, Metrics]]]
"""(trained, frozen, batch, key) -> (mean loss, (its denominator, metrics as means))."""
Update = Callable[["TrainState", Any, Any], tuple["TrainState", Metrics]]
"""(state, frozen, micro-batches [A, …]) -> (state, metrics); jitted, donates the state."""


class TrainState(NamedTuple):
    """The training state: with it, a resumed run continues exactly as an uninterrupted one."""

    step: jax.Array  # i32[], optimizer steps done
    trained: Params
    opt_state: optax.OptState


def init_state(trained: Params, tx: optax.GradientTransformation) -> TrainState:
    """Return the state of step 0. Copies ``trained``, because the loop donates its state."""
    copies = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(0), copies, tx.init(copies))


def make_update(
    loss_fn: LossFn, tx: optax.GradientTransformation, key: jax.Array, like: TrainState
) -> Update:
    """Make a jitted optimizer step over A micro-batches. It donates the state.

    gradient = Σ_a w_a ∇loss_a / Σ_a w_a with w_a the denominator of micro-batch a, summed in
    float32; metrics likewise. Each micro-batch has its own key: ``key`` folded with the step and
    the index of the micro-batch.

    Args:
        loss_fn: see `LossFn`; differentiated with respect to its first argument.
        tx: the optimizer.
        key: the stage's key.
        like: a state whose sharding the new state gets.

    Returns:
        update(state, frozen, micro_batches with leading axis A) -> (state, metrics).
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    layout = jax.tree.map(lambda x: x.sharding, like)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(layout, None))
    def update(state: TrainState, frozen: Any, micro_batches: Any):
        step_key = jax.random.fold_in(key, state.step)

        def one(index, batch):
            micro_key = jax.random.fold_in(step_key, index)
            (loss, (weight, metrics)), grads = gradient(state.trained, frozen, batch, micro_key)
            weighted = jax.tree.map(lambda x: weight * x.astype(jnp.float32), (grads, metrics))
            return weighted, weight

        count = jax.tree.leaves(micro_batches)[0].shape[0]
        total = one(0, jax.tree.map(lambda x: x[0], micro_batches))
        if count > 1:
            rest = jax.tree.map(lambda x: x[1:], micro_batches)

            def add(total, numbered):
                return jax.tree.map(jnp.add, total, one(*numbered)), None

            total = jax.lax.scan(add, total, (jnp.arange(1, count), rest))[0]
        (grads, metrics), weight = total
        grads, metrics = jax.tree.map(lambda x: x / weight, (grads, metrics))
        updates, opt_state = tx.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, trained, opt_state), metrics

    return update


def fit(
    state: TrainState, frozen: Any, batches: Iterable[Any], update: Update
) -> Iterator[tuple[int, TrainState, Metrics]]:
    """Train on ``batches``, yielding (steps done, state, metrics on the device) after each step.

    The next step donates the yielded state, so use it before resuming the generator. Reading the
    metrics at once makes the host wait; `metrics.MetricLog` reads them one step late.

    Raises:
        RuntimeError: a batch shape was compiled more than once.
    """
    step, shapes, before = int(state.step), set(), update._cache_size()
    for batch in batches:
        shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(batch)))
        state, metrics = update(state, frozen, batch)
        if update._cache_size() - before > len(shapes):
            raise RuntimeError(f"{update._cache_size()} compilations for {len(shapes)} shapes")
        step += 1
        yield step, state, metrics


def policy_loss(model: Any, loss: Callable[..., Any], *, chunk: int) -> LossFn:
    """Turn an objective into a function of parameters: one forward pass, then ``loss``.

    Args:
        model: has ``hidden`` and ``unembedding`` (`models.transformer`).
        loss: an objective with its hyper-parameters bound.
        chunk: response tokens whose logits are in memory at once.
    """

    def loss_fn(trained: Params, frozen: Params, batch: Batch, key: jax.Array):
        params = {**frozen, **trained}
        read = to_sequences(batch.tokens)
        hidden = model.hidden(params, read.ids, read.mask, key, read.branches)
        logp = response_logp(hidden, model.unembedding(params), batch.tokens, chunk=chunk)
        targets = Targets(batch.tokens.mask, batch.ref_logp, batch.reward, batch.advantage)
        value, metrics = loss(logp, targets)
        return value, (jnp.float32(batch.tokens.prompt.shape[0]), metrics)

    return loss_fn


class Plan(NamedTuple):
    """How many steps to train, and when to validate and to save a checkpoint."""

    steps: int
    validate_at: frozenset[int]
    checkpoint_every: int


def plan_epochs(options: ConfigDict, items: int) -> Plan:
    """Plan ``options.epochs`` passes over ``items`` items, with evenly spaced validations."""
    per_step = options.batch_size * options.accumulate
    return plan_steps(options, max(1, math.ceil(options.epochs * items / per_step)))


def plan_steps(options: ConfigDict, steps: int) -> Plan:
    """Plan ``steps`` steps with evenly spaced validations, the last of them after the last step."""
    count = min(max(options.validations, 1), steps)
    at = frozenset(round(steps * (n + 1) / count) for n in range(count))
    return Plan(steps, at, options.checkpoint_every)


class Validator(NamedTuple):
    """The score that selects the best step."""

    metric: str  # name of the score
    score: Callable[[Params], float]  # trained leaves -> score; larger is better


def fit_best(
    state: TrainState,
    frozen: Params,
    batches: Callable[[int, int], Iterable[Any]],
    update: Update,
    plan: Plan,
    validator: Validator,
    context: StageContext,
    *,
    label: str,
) -> Policy:
    """Train with checkpoints and validations, resume if interrupted, and return the best step.

    Step 0 is validated too, so the starting point is returned if no step beats it.

    Args:
        state: step 0, on the mesh: a `TrainState`, or any state with ``step`` and ``trained``.
        frozen: leaves that do not train.
        batches: (start, stop) -> the batches of these steps.
        update: from `make_update`, or any function like it for this kind of state.
        label: of the progress bar.

    Raises:
        Interrupted: the run was asked to stop; the step reached has been saved.
    """
    with contextlib.closing(_Session(plan, validator, context)) as session:
        start, state = session.start(state)
        log = MetricLog(
            context.folder / "metrics.jsonl", resume_at=start, tensorboard=context.tensorboard
        )
        ahead = progress(batches(start, plan.steps), Watch(label), total=plan.steps, done=start)
        with contextlib.closing(log):
            state = session.train(state, fit(state, frozen, ahead, update), log)
        chosen = best(session.validations)
        state, _ = session.checkpoints.restore(chosen.step, state)
    curves = read_curves(context.folder / "metrics.jsonl")
    cost = Cost(seconds=session.seconds)
    return Policy(state.trained, chosen.step, tuple(session.validations), curves, cost)


class _Session:
    """A fit in progress: its checkpoints, its validations, and the seconds spent on training.

    A checkpoint is saved before the validation of its step and without the result: a resumed run
    validates again, with the same result. So a stop during a validation loses nothing.
    """

    def __init__(self, plan: Plan, validator: Validator, context: StageContext):
        self.plan, self.validator, self.context = plan, validator, context
        self.checkpoints = Checkpoints(context.folder / "checkpoints")
        self.validations: list[Validation] = []
        self.seconds = 0.0

    def start(self, state: TrainState) -> tuple[int, TrainState]:
        """Return the step to start from and its state: step 0, or the last checkpoint."""
        start = self.checkpoints.latest()
        if start is None:
            start = 0
            self._save(start, state)
        else:
            self.context.say(f"resuming at step {start}/{self.plan.steps}")
            state, record = self.checkpoints.restore(start, state)
            self.validations = [Validation(*values) for values in record["seen"]]
            self.seconds = record["seconds"]
        validated = {validation.step for validation in self.validations}
        if start in self.plan.validate_at | {0} and start not in validated:
            self._validate(start, state.trained)
        return start, state

    def train(
        self, state: TrainState, steps: Iterable[tuple[int, TrainState, Metrics]], log: MetricLog
    ) -> TrainState:
        """Run ``steps`` from `fit`, with logging, checkpoints and validations."""
        plan, clock = self.plan, _Clock(self.seconds)
        for step, reached, metrics in steps:
            state = reached
            log.write(step, metrics)
            stop, due = self.context.stopping() and step < plan.steps, step in plan.validate_at
            if stop or due or step % plan.checkpoint_every == 0:
                log.flush()  # waits for the step, so the clock is right
                self.seconds = clock.seconds
                self._save(step, state)
            if stop:
                raise Interrupted(f"saved at step {step} of {plan.steps}")
            if due:
                with clock.stopped():
                    self._validate(step, state.trained)
        log.flush()
        self.seconds = clock.seconds
        return state

    def close(self) -> None:
        """Close the checkpoints."""
        self.checkpoints.close()

    def _validate(self, step: int, trained: Params) -> None:
        score = float(self.validator.score(trained))
        self.validations.append(Validation(step, self.validator.metric, score))
        self.context.say(f"step {step}/{self.plan.steps}: {self.validator.metric} {score:.4f}")

    def _save(self, step: int, state: TrainState) -> None:
        seen = [dataclasses.astuple(validation) for validation in self.validations]
        kept = best(self.validations).step if self.validations else None
        self.checkpoints.save(step, state, {"seen": seen, "seconds": self.seconds}, best=kept)


class _Clock:
    """Counts seconds of work, starting from those of earlier processes."""

    def __init__(self, before: float):
        self._before, self._start = before, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock within the context."""
        before = time.monotonic()
        yield
        self._start += time.monotonic() - before


def best(validations: Sequence[Validation]) -> Validation:
    """Return the first validation with the highest score."""
    return max(validations, key=lambda validation: validation.score)
