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

from alol_jax.devices import processes
from alol_jax.errors import Interrupted
from alol_jax.objectives.logprobs import grid_logp, to_batch
from alol_jax.runs.checkpoint import Checkpoints
from alol_jax.runs.progress import progress
from alol_jax.training.metrics import MetricLog, read_curves
from alol_jax.types import (
    Batch,
    Cost,
    Curve,
    Grid,
    Pace,
    Params,
    Policy,
    StageContext,
    Validation,
    Watch,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SECONDS_TO_LEAVE = 10.0  # after SIGTERM, where a cloud takes its machine back
TIMED = 3  # steps that a fit has done when its pace is told
SLOW_DISK = 100e6  # bytes per second; a network disk or a bucket is about this fast

Metrics = dict[str, jax.Array]
Forward = Callable[[Params, Any, Any, Any, jax.Array], Any]
"""(trained, frozen, grid, targets of the batch, key) -> outputs for all items of the batch, 0 for
those that are in another grid."""
Loss = Callable[[Any, Any], tuple[jax.Array, Metrics]]
"""(outputs, targets) -> (loss, metrics): a mean of one term per item, or per token."""


class TrainState(NamedTuple):
    """The training state: with it, a resumed run continues exactly as an uninterrupted one."""

    step: jax.Array  # i32[], optimizer steps done
    trained: Params
    opt_state: optax.OptState


def init_state(trained: Params, tx: optax.GradientTransformation) -> TrainState:
    """Return the state of step 0. Copies ``trained``, because the loop donates its state."""
    copies = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(0), copies, tx.init(copies))


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """One optimizer step on a `Batch`: (state, frozen, batch) -> (state, metrics).

    The gradients of its grids are summed in float32, then the optimizer runs once. It donates the
    state.

    Attributes:
        zeros: (trained, frozen, grid, targets) -> zeros like ``add``'s sums.
        add: (sums, trained, frozen, grid, targets, step, index) -> sums of gradients and outputs.
        apply: (state, sums, targets) -> (state, metrics).
    """

    zeros: Callable[..., Any]
    add: Callable[..., Any]
    apply: Callable[..., Any]

    def __call__(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        """Train on one batch."""
        sums = self.zeros(state.trained, frozen, batch.grids[0], batch.targets)
        for index, grid in enumerate(batch.grids):
            sums = self.add(
                sums, state.trained, frozen, grid, batch.targets, state.step, jnp.int32(index)
            )
        state, metrics = self.apply(state, sums, batch.targets)
        return state, metrics | batch.work.metrics()

    def _cache_size(self) -> int:
        """How many programs were compiled that read a grid: one per size."""
        return self.add._cache_size()


def make_update(
    forward: Forward,
    loss: Loss,
    tx: optax.GradientTransformation,
    key: jax.Array,
    like: TrainState,
) -> Update:
    """Make an optimizer step whose result does not depend on the grids in which its items lie.

    The loss is a mean over all items (or tokens) of the batch. Each grid's pass differentiates it
    with the outputs of its own items, those of the others being constants, so the sum of the
    gradients is that of the whole batch. The metrics are those of the whole batch.

    Args:
        forward: see `Forward`; differentiated with respect to its first argument.
        loss: see `Loss`.
        tx: the optimizer.
        key: the stage's key, folded with the step and the index of the grid.
        like: a state whose sharding the new state gets.
    """
    layout = jax.tree.map(lambda x: x.sharding, like)

    def gradient(trained, frozen, grid, targets, grid_key):
        def whole(trained):
            outputs = forward(trained, frozen, grid, targets, grid_key)
            return loss(outputs, targets)[0], outputs

        grads, outputs = jax.grad(whole, has_aux=True)(trained)
        return jax.tree.map(lambda x: x.astype(jnp.float32), (grads, outputs))

    summed = (layout.trained, layout.step)  # gradients like the parameters, outputs replicated

    @functools.partial(jax.jit, out_shardings=summed)
    def zeros(trained, frozen, grid, targets):
        found = jax.eval_shape(gradient, trained, frozen, grid, targets, key)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=summed)
    def add(sums, trained, frozen, grid, targets, step, index):
        grid_key = jax.random.fold_in(jax.random.fold_in(key, step), index)
        found = gradient(trained, frozen, grid, targets, grid_key)
        return jax.tree.map(jnp.add, sums, found)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(layout, None))
    def apply(state, sums, targets):
        grads, outputs = sums
        metrics = loss(outputs, targets)[1] | {"grad_norm": optax.tree.norm(grads)}
        updates, opt_state = tx.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return TrainState(state.step + 1, trained, opt_state), metrics

    return Update(zeros, add, apply)


def fit(
    state: TrainState, frozen: Any, batches: Iterable[Any], update: Callable[..., Any]
) -> Iterator[tuple[int, TrainState, Metrics]]:
    """Train on ``batches``, yielding (steps done, state, metrics on the device) after each step.

    The next step donates the yielded state, so use it before resuming the generator. Reading the
    metrics at once makes the host wait; `metrics.MetricLog` reads them one step late.

    Args:
        update: an `Update`, or any function like it for this kind of state.
    """
    for step, batch in enumerate(batches, int(state.step) + 1):
        state, metrics = update(state, frozen, batch)
        yield step, state, metrics


def policy_forward(model: Any, *, chunk: int, branches: bool) -> Forward:
    """Make the pass that computes log π of every response token of a batch, f32[E*, R].

    Args:
        model: has ``hidden`` and ``unembedding`` (`models.transformer`).
        chunk: response tokens whose logits are in memory at once.
        branches: whether prompts share several responses.
    """

    def forward(trained: Params, frozen: Params, grid: Grid, targets: Any, key: jax.Array):
        params = {**frozen, **trained}
        branch = grid.branch if branches else None
        hidden = model.hidden(
            params, grid.ids, grid.segment, key, positions=grid.position, branch=branch
        )
        logp = grid_logp(hidden, model.unembedding(params), grid, chunk=chunk)
        return to_batch(logp, grid, targets.mask.shape)

    return forward


class Plan(NamedTuple):
    """How many steps to train, and when to validate and to save a checkpoint."""

    steps: int
    validate_at: frozenset[int]
    checkpoint_every: int


def plan_epochs(options: ConfigDict, items: int) -> Plan:
    """Plan ``options.epochs`` passes over ``items`` items, with evenly spaced validations."""
    return plan_steps(options, max(1, math.ceil(options.epochs * items / options.batch_size)))


def plan_steps(options: ConfigDict, steps: int) -> Plan:
    """Plan ``steps`` steps with evenly spaced validations, the last of them after the last step."""
    count = min(max(options.validations, 1), steps)
    at = frozenset(round(steps * (n + 1) / count) for n in range(count))
    return Plan(steps, at, options.checkpoint_every)


class Look(NamedTuple):
    """What a validation finds."""

    score: float  # larger is better
    kl: float | None = None  # to the reference, in nats; None: not measured


class Validator(NamedTuple):
    """The score that selects the best step."""

    metric: str  # name of the score
    look: Callable[[Params], Look]  # trained leaves -> their score


def fit_best(
    state: TrainState,
    frozen: Params,
    batches: Callable[[int, int], Iterable[Any]],
    update: Callable[..., Any],
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
    long_save = long_save_warning(state, plan)
    if long_save:
        context.say(long_save)
    with contextlib.closing(_Session(plan, validator, context)) as session:
        start, state = session.start(state)
        log = MetricLog(context.folder / "metrics.jsonl", resume_at=start, options=context.log)
        ahead = progress(batches(start, plan.steps), Watch(label), total=plan.steps, done=start)
        with contextlib.closing(log):
            state = session.train(state, fit(state, frozen, ahead, update), log)
        chosen = best(session.validations)
        state, _ = session.checkpoints.restore(chosen.step, state)
    processes.meet(f"the end of {label}")  # the first one has written the log
    curves = read_curves(context.folder / "metrics.jsonl")
    cost = _cost(curves, session.seconds)
    if cost.tokens:
        context.say(f"{label}: {cost.summary()}")
    return Policy(state.trained, chosen.step, tuple(session.validations), curves, cost)


def long_save_warning(state: Any, plan: Plan) -> str:
    """Return a line if saving ``state`` may outlast the seconds that SIGTERM leaves; else ""."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    seconds = size / SLOW_DISK
    if seconds <= SECONDS_TO_LEAVE:
        return ""
    return (
        f"a checkpoint has {size / 2**30:.1f} GiB, {seconds:.0f} s at {SLOW_DISK / 1e6:.0f} MB/s: "
        f"a machine taken away sooner after SIGTERM loses up to {plan.checkpoint_every} steps "
        "(checkpoint_every)"
    )


def _cost(curves: Sequence[Curve], seconds: float) -> Cost:
    """The cost of a fit, from what was logged in its steps."""
    logged = {curve.name: sum(curve.values) for curve in curves}
    tokens, computed = (int(logged.get(name, 0)) for name in ("tokens", "computed_tokens"))
    return Cost(tokens, computed, logged.get("flops", 0.0), seconds)


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
        plan, clock, pace = self.plan, _Clock(self.seconds), _FirstSteps(self.plan, self.context)
        for step, reached, metrics in steps:
            state = reached
            log.write(step, metrics)
            pace.written(step, metrics)
            stop, due = self.context.stopping() and step < plan.steps, step in plan.validate_at
            if stop or due or step % plan.checkpoint_every == 0:
                log.keep()  # waits for the step, so the clock is right
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
        metric, (score, kl) = self.validator.metric, self.validator.look(trained)
        self.validations.append(Validation(step, metric, float(score), kl))
        apart = "" if kl is None else f", KL {kl:.3f}"
        self.context.say(f"step {step}/{self.plan.steps}: {metric} {score:.4f}{apart}")

    def _save(self, step: int, state: TrainState) -> None:
        seen = [dataclasses.astuple(validation) for validation in self.validations]
        kept = best(self.validations).step if self.validations else None
        self.checkpoints.save(step, state, {"seen": seen, "seconds": self.seconds}, best=kept)


class _FirstSteps:
    """Tells the pace of a fit once, from the shorter of its second and third step.

    When the log has taken the metrics of a step, the step before it is done. The first step of a
    process compiles, and so may another one: grids have two sizes.
    """

    def __init__(self, plan: Plan, context: StageContext):
        self._plan, self._context = plan, context
        self._ends: list[float] = []  # of the first steps, from the first on

    def written(self, step: int, metrics: Metrics) -> None:
        """Note that the log has taken the metrics of ``step``."""
        if len(self._ends) > TIMED or "tokens" not in metrics:
            return
        self._ends.append(time.monotonic())
        if len(self._ends) == TIMED + 1:
            _, first, *later = self._ends
            seconds = min(b - a for a, b in zip([first, *later], later, strict=False))
            left = self._plan.steps - step + 1  # the last one is not done
            self._context.pace(Pace(seconds, float(metrics["tokens"]), left))


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
