"""The training loop as a generator: state in, state out, control flow stays with the caller."""

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

from alol_jax.objectives.logprobs import joined, response_logp
from alol_jax.runs.checkpoint import Checkpoints
from alol_jax.runs.progress import progress
from alol_jax.training.metrics import MetricLog, read_curves
from alol_jax.types import (
    Batch,
    Cost,
    Interrupted,
    Params,
    Policy,
    StageContext,
    Targets,
    Validation,
    Watch,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Any, Any, jax.Array], tuple[jax.Array, tuple[jax.Array, Metrics]]]
"""(trained, frozen, batch, key) -> (mean loss, (its denominator, metrics as means))."""
Update = Callable[["TrainState", Any, Any], tuple["TrainState", Metrics]]
"""(state, frozen, micro-batches [A, …]) -> (state, metrics); jitted, donates the state."""


class TrainState(NamedTuple):
    """What a training run is: everything a resumed run needs to be the undisturbed one."""

    step: jax.Array  # i32[], optimizer steps done
    trained: Params
    opt_state: optax.OptState


def init_state(trained: Params, tx: optax.GradientTransformation) -> TrainState:
    """Step 0. The leaves of ``trained`` are copied, because the loop donates its state."""
    copies = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(0), copies, tx.init(copies))


def make_update(
    loss_fn: LossFn, tx: optax.GradientTransformation, key: jax.Array, like: TrainState
) -> Update:
    """One jitted optimizer step over A micro-batches; the state is donated.

    gradient = Σ_a w_a ∇loss_a / Σ_a w_a with w_a the denominator of micro-batch a, summed in
    float32; metrics likewise. Randomness: key, folded with the step and the micro-batch.

    Args:
        loss_fn: see `LossFn`; differentiated in its first argument.
        tx: the optimizer.
        key: the stage's key.
        like: a state; the new state is laid out over the devices as this one.

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
    """Trains on ``batches`` and yields (steps done, state, metrics still on the device) each step.

    The yielded state is donated to the next step: save it or read it before going on. Reading
    metrics at once would make the host wait; `metrics.MetricLog` reads them one step late.

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
    """An objective as a function of parameters: one forward pass of one model, then ``loss``.

    Args:
        model: has ``hidden`` and ``unembedding`` (`models.transformer`).
        loss: an objective with its hyper-parameters bound.
        chunk: response tokens whose logits exist at once.
    """

    def loss_fn(trained: Params, frozen: Params, batch: Batch, key: jax.Array):
        params = {**frozen, **trained}
        read = joined(batch.tokens)
        hidden = model.hidden(params, read.ids, read.mask, key, read.branches)
        logp = response_logp(hidden, model.unembedding(params), batch.tokens, chunk=chunk)
        targets = Targets(batch.tokens.mask, batch.ref_logp, batch.reward, batch.advantage)
        value, metrics = loss(logp, targets)
        return value, (jnp.float32(batch.tokens.prompt.shape[0]), metrics)

    return loss_fn


class Plan(NamedTuple):
    """How long a policy is fitted and when it is looked at."""

    steps: int
    validate_at: frozenset[int]
    checkpoint_every: int


def make_plan(options: ConfigDict, items: int) -> Plan:
    """Steps for ``options.epochs`` passes over ``items``, with evenly spaced validations."""
    per_step = options.batch_size * options.accumulate
    return plan_of(options, max(1, math.ceil(options.epochs * items / per_step)))


def plan_of(options: ConfigDict, steps: int) -> Plan:
    """``steps`` steps with ``options.validations`` evenly spaced validations, one at the end."""
    looks = min(max(options.validations, 1), steps)
    at = frozenset(round(steps * (look + 1) / looks) for look in range(looks))
    return Plan(steps, at, options.checkpoint_every)


class Validator(NamedTuple):
    """What selects the step that is kept."""

    metric: str  # what is measured
    score: Callable[[Params], float]  # of the trained leaves; larger is better


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
    """Fits, validates, checkpoints, goes on after an interruption, and returns the best step.

    Step 0 is validated too: if nothing beats the starting point, the starting point is returned.
    A checkpoint is saved before a validation and does not know its outcome; a run that goes on from
    there validates again, with the same outcome.

    Args:
        state: step 0, on the mesh: a `TrainState`, or what else has its ``step`` and ``trained``.
        frozen: leaves that do not train.
        batches: (start, stop) -> the batches of these steps.
        update: from `make_update`, or what else takes and gives such a state and metrics.
        plan: how many steps, and when to validate.
        validator: what selects the step.
        label: of the progress bar.

    Raises:
        Interrupted: the run was asked to stop; a checkpoint of the step reached is saved.
    """

    def look(step: int, trained: Params) -> None:
        found = Validation(step, validator.metric, float(validator.score(trained)))
        seen.append(found)
        context.say(f"step {step}/{plan.steps}: {found.metric} {found.score:.4f}")

    with contextlib.closing(Checkpoints(context.folder / "checkpoints")) as checkpoints:
        if (latest := checkpoints.latest()) is not None:
            context.say(f"going on at step {latest}/{plan.steps}")
        start, state, seen, spent = _start_or_go_on(checkpoints, state)
        if start in plan.validate_at | {0} and start not in {found.step for found in seen}:
            look(start, state.trained)
        log = MetricLog(
            context.folder / "metrics.jsonl", resume_at=start, tensorboard=context.tensorboard
        )
        ahead = progress(batches(start, plan.steps), Watch(label), total=plan.steps, done=start)
        clock = _Clock(spent)
        with contextlib.closing(log):
            for step, reached, metrics in fit(state, frozen, ahead, update):
                state = reached
                log.write(step, metrics)
                stop, due = context.stopping() and step < plan.steps, step in plan.validate_at
                if stop or due or step % plan.checkpoint_every == 0:
                    log.flush()  # waits for the step, so the clock is right
                    _save(checkpoints, step, state, seen, clock.seconds)
                if stop:
                    raise Interrupted(f"saved at step {step} of {plan.steps}")
                if due:
                    with clock.stopped():
                        look(step, state.trained)
            log.flush()
            spent = clock.seconds
        state, _ = checkpoints.restore(best(seen).step, state)
    curves = read_curves(context.folder / "metrics.jsonl")
    cost = Cost(seconds=spent)
    return Policy(state.trained, best(seen).step, tuple(seen), curves, cost)


class _Clock:
    """Seconds of work, with the work of the processes before."""

    def __init__(self, before: float):
        self._before, self._began = before, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens meanwhile is not counted."""
        before = time.monotonic()
        yield
        self._began += time.monotonic() - before


def _start_or_go_on(
    checkpoints: Checkpoints, state: TrainState
) -> tuple[int, TrainState, list[Validation], float]:
    """The step to go on from, its state, the validations before it, and the seconds that it took;
    step 0 is saved."""
    start = checkpoints.latest()
    if start is None:
        _save(checkpoints, 0, state, [], 0.0)
        return 0, state, [], 0.0
    state, record = checkpoints.restore(start, state)
    return start, state, [Validation(*values) for values in record["seen"]], record["seconds"]


def _save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    seen: Sequence[Validation],
    seconds: float,
) -> None:
    """Saves before the look at ``step``, so that a stop during the look loses nothing."""
    record = {"seen": [dataclasses.astuple(found) for found in seen], "seconds": seconds}
    checkpoints.save(step, state, record, best=best(seen).step if seen else None)


def best(seen: Sequence[Validation]) -> Validation:
    """The first validation with the highest score."""
    return max(seen, key=lambda found: found.score)
