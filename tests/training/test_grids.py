"""The grids of a step: what is learned does not depend on them, nor does what is counted."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from alol_jax.devices.sharding import place_like_params, place_params
from alol_jax.errors import UserError
from alol_jax.models.attention import Attention
from alol_jax.models.grid_sizes import GridOptions
from alol_jax.objectives.ppo import PPOTargets
from alol_jax.objectives.registry import OBJECTIVES, hyper_parameters
from alol_jax.text.packing import GridShape, Layout, to_grid
from alol_jax.training import grids
from alol_jax.training.batches import place_batch, targets_of
from alol_jax.training.fit import init_state, make_update, policy_forward
from alol_jax.training.grids import Packer, packer_of, step_work
from alol_jax.training.items import Items
from alol_jax.training.online import VALUE_PATHS, ppo_forward, ppo_loss
from alol_jax.types import Batch, Limits, Work
from tests.packed import unpacked
from tests.tiny_run import (
    annotated,
    annotated_rows,
    fitted,
    mesh_of,
    small_options,
    tiny_lm,
)

LIMITS = Limits(20, 12)
LM = tiny_lm(limits=LIMITS)
ITEMS = 8
RESPONSES = {"nll": 1, "a_lol": 1, "a_lol_seq": 1, "r_gold": 1, "dpo": 2, "pro": 3, "ppo": 1}
SEVERAL = [name for name, count in RESPONSES.items() if count > 1]


def _items(responses: int, count: int = ITEMS) -> Items:
    """Items of so many responses, no two of the same lengths."""
    rows = annotated_rows(
        annotated(n, prompt=2 + 7 * n % 18, response=1 + 5 * n % 12)
        for n in range(count * responses)
    )
    return Items(rows, np.arange(count * responses).reshape(count, responses))


# one step, whatever the grids


def _targets(name: str, items: Items, chosen: np.ndarray):
    """What the objective reads of the chosen items."""
    targets = targets_of(items, chosen, items.longest)
    if name != "ppo":
        return targets
    draw = np.random.default_rng(0)
    told = [draw.normal(-1, 1, (len(items.members), items.longest)) for _ in range(4)]
    return PPOTargets(targets.mask, *(np.float32(x)[chosen] * targets.mask for x in told))


@functools.cache
def _update(name: str, lm=LM, *, branches: bool):
    """(update, frozen leaves, trained leaves) of plain gradient descent with a rate of 1: what it
    takes from a leaf is the gradient."""
    tx, options = optax.sgd(1.0), small_options()
    trained = {path: 0.1 * leaf for path, leaf in fitted(LM).trained.items()}  # well conditioned
    if name == "ppo":
        draw = np.random.default_rng(1)
        trained |= dict(zip(VALUE_PATHS, (draw.normal(0, 0.1, 64), np.zeros(())), strict=True))
        trained = place_params({path: np.float32(x) for path, x in trained.items()}, lm.mesh)
        forward, loss = ppo_forward(lm), ppo_loss(options.ppo)
    else:
        told = {key: options.objective[key] for key in hyper_parameters(OBJECTIVES[name])}
        loss = functools.partial(OBJECTIVES[name].loss, **told)
        forward = policy_forward(lm.transformer, chunk=lm.logprob_chunk, branches=branches)
    like = place_like_params(init_state(trained, tx), lm.mesh)
    return make_update(forward, loss, tx, jax.random.key(0), like), lm.frozen(), trained, tx


def _step(name: str, laid_out, targets, lm=LM, *, branches: bool):
    """(gradients and metrics, number of grids) of a step."""
    update, frozen, trained, tx = _update(name, lm, branches=branches)
    state = place_like_params(init_state(trained, tx), lm.mesh)
    before = jax.device_get(trained)
    batch = place_batch(Batch(laid_out, targets, Work()), lm.mesh)
    new, metrics = update(state, frozen, batch)
    gradients = {path: before[path] - np.asarray(leaf) for path, leaf in new.trained.items()}
    return gradients | jax.device_get(metrics), len(batch.grids)


def _packed(name: str, *, width: int, rows: int, order=None, lm=LM):
    """A step whose grids are of ``config.model.width`` and ``rows``."""
    chosen = np.arange(ITEMS) if order is None else order
    items, size = _items(RESPONSES[name]), GridOptions(width, rows)
    packer = packer_of(dataclasses.replace(lm, grid=size), items, lambda step: chosen)
    assert (packer.shape.width, packer.shape.rows) == (width, rows)
    laid_out, _ = packer(items.examples(chosen))
    branches = RESPONSES[name] > 1
    return _step(name, laid_out, _targets(name, items, chosen), lm, branches=branches)


@functools.cache
def _in_one_grid(name: str):
    """The step whose loss is differentiated in one piece."""
    step, count = _packed(name, width=512, rows=1)
    assert count == 1
    assert all(np.abs(leaf).max() > 1e-4 for path, leaf in step.items() if "/" in path)
    return step


def _close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", RESPONSES)
def test_several_grids_and_half_grids_give_the_step_of_one_grid(name):
    step, count = _packed(name, width=(56 if RESPONSES[name] > 1 else 40), rows=1)
    assert count > 2
    _close(step, _in_one_grid(name))


@pytest.mark.parametrize("name", ["a_lol", "pro", "ppo"])
def test_rows_of_padding_change_nothing(name):
    step, count = _packed(name, width=96, rows=8)
    assert count == 1
    _close(step, _in_one_grid(name))


@pytest.mark.parametrize("name", RESPONSES)
def test_the_order_of_the_items_changes_nothing(name):
    order = np.random.default_rng(3).permutation(ITEMS)
    _close(_packed(name, width=512, rows=1, order=order)[0], _in_one_grid(name))


def _scattered(name: str, *, share: bool, seed: int):
    """A step whose items lie in arbitrary rows, in an arbitrary order, two rows to a grid."""
    items, draw = _items(RESPONSES[name]), np.random.default_rng(seed)
    examples = items.examples(np.arange(ITEMS))
    rows = np.array_split(draw.permutation(ITEMS), np.sort(draw.choice(ITEMS, 3)))
    width = max(int(examples.lengths(share=share).tokens[row].sum()) for row in rows)
    shape = GridShape(2, width, width, ITEMS * RESPONSES[name])
    layout = Layout(items.longest, share, LM.tokenizer.pad_id)

    def example(n):
        return examples.prompts[n], examples.responses[n]

    laid_out = tuple(to_grid(rows[n : n + 2], example, shape, layout) for n in (0, 2))
    targets = _targets(name, items, np.arange(ITEMS))
    return _step(name, laid_out, targets, branches=share and RESPONSES[name] > 1)[0]


@pytest.mark.parametrize("name", RESPONSES)
def test_no_order_of_packing_changes_anything(name):
    _close(_scattered(name, share=True, seed=5), _in_one_grid(name))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_copy_of_the_prompt_for_every_response_changes_nothing(name):
    _close(_scattered(name, share=False, seed=6), _in_one_grid(name))


@pytest.mark.parametrize("name", ["a_lol", "pro", "ppo"])
def test_eight_devices_take_the_step_of_one(name):
    eight = tiny_lm(limits=LIMITS, mesh=mesh_of(8, fsdp=2, tensor=2))
    width = 56 if RESPONSES[name] > 1 else 32
    step, count = _packed(name, width=width, rows=4, lm=eight)
    assert count > 1
    _close(step, _in_one_grid(name))


# which items are in the grids


def _packer(lm, items: Items, *, share: bool = True) -> Packer:
    """The packer of steps on all items; splash cannot share a prompt."""
    if not share:
        attention = Attention("splash", lm.mesh)
        splash = dataclasses.replace(lm.transformer, attention=attention)
        lm = dataclasses.replace(lm, transformer=splash)
    packer = packer_of(lm, items, lambda step: np.arange(len(items.members)))
    assert packer.layout.share == share
    return packer


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("responses", [1, 3])
@pytest.mark.parametrize(("width", "rows"), [(0, 0), (96, 1), (128, 2), (512, 4)])
def test_every_item_of_a_step_is_in_the_grids_once(responses, width, rows, share):
    items = _items(responses, count=12)
    packer = _packer(tiny_lm(limits=LIMITS, width=width, rows=rows), items, share=share)
    draw = np.random.default_rng(0)
    for size in (1, 5, 12, 40):
        chosen = draw.integers(0, 12, size)  # some of them twice
        laid_out, _ = packer(items.examples(chosen))
        expected = [
            (items.rows[lead].prompt, items.rows[row].response)
            for lead, *others in items.members[chosen].tolist()
            for row in (lead, *others)
        ]
        assert unpacked(laid_out, items.longest) == dict(enumerate(expected))
        assert {grid.ids.shape for grid in laid_out} <= {
            (packer.shape.rows, packer.shape.width),
            (packer.shape.rows, packer.shape.half.width),
        }


def test_the_size_that_is_set_is_taken_and_one_that_is_chosen_holds_what_no_sampled_step_draws():
    items = _items(1)
    longest = int(np.argmax(items.rows["prompt"].lengths + items.rows["response"].lengths))
    others = np.delete(np.arange(ITEMS), longest)
    packer = packer_of(LM, items, lambda step: others)
    laid_out, _ = packer(items.examples(np.array([longest] * 3)))
    assert len(unpacked(laid_out, items.longest)) == 3
    told = packer_of(tiny_lm(limits=LIMITS, width=80, rows=3), items, lambda step: others)
    assert (told.shape.rows, told.shape.width) == (3, 80)
    said = "grids of 3 × 80 tokens, and of half the width for the rest"
    assert told.summary == said
    copies = dataclasses.replace(told, copies=2)
    assert copies.summary == f"{said}; every response has its own copy of the prompt"


def test_every_device_has_a_row_of_a_grid():
    for rows in (0, 8):
        lm = tiny_lm(limits=LIMITS, mesh=mesh_of(8, fsdp=2, tensor=2), rows=rows)
        shape = _packer(lm, _items(1)).shape
        assert shape.rows % 4 == 0 and (rows == 0 or shape.rows == rows)


def test_only_sizes_that_fit_in_memory_are_chosen_from_and_the_smallest_if_none_does(monkeypatch):
    every = grids.sizes(LM, 32)
    for room in (0, 100, 10**9):
        monkeypatch.setattr(
            grids, "fits_in_training", lambda lm, tokens, _, room=room: tokens <= room
        )
        fitting = [size for size in every if np.prod(size) <= room]
        assert grids.sizes(LM, 32) == (fitting or every[:1])
    assert len(every) > 10 and min(np.prod(size) for size in every) == np.prod(every[0])


# the work of a step


@pytest.mark.parametrize("responses", [1, 3])
def test_tokens_are_those_of_the_items_and_computed_ones_those_of_the_grids(responses):
    items, chosen = _items(responses), np.array([0, 3, 3, 5])
    laid_out, work = _packer(tiny_lm(limits=LIMITS, width=96, rows=1), items)(
        items.examples(chosen)
    )
    rows, members = items.rows, items.members[chosen]
    prompts, answers = (rows[name].lengths for name in ("prompt", "response"))
    assert work.tokens == prompts[members[:, 0]].sum() + answers[members].sum()
    assert work.computed == sum(grid.ids.size for grid in laid_out)
    assert work.metrics() == {
        "tokens": work.tokens,
        "computed_tokens": work.computed,
        "flops": work.flops,
    }
    assert work.flops > 2 * work.forward > 0


def test_the_operations_of_two_steps_add_up():
    work, shape = step_work(LM), GridShape(2, 64, 32, 4)
    one, other = [(shape, [])], [(shape, []), (shape.half, [])]
    found = [work(40, 500.0, one), work(50, 700.0, other), work(90, 1200.0, one + other)]
    for field in Work._fields:
        first, second, both = (getattr(each, field) for each in found)
        assert both == pytest.approx(first + second)


def test_a_shared_prompt_is_computed_once():
    items = _items(3)
    shared, copies = (
        _packer(tiny_lm(limits=LIMITS, width=256, rows=1), items, share=share)(
            items.examples(np.arange(ITEMS))
        )[1]
        for share in (True, False)
    )
    prompts = items.rows["prompt"].lengths[items.members[:, 0]].sum()
    assert copies.tokens == shared.tokens + 2 * prompts
    assert copies.flops > shared.flops


def test_logits_in_pieces_are_computed_again():
    pieces = dataclasses.replace(LM, logprob_chunk=8)
    grid = [(GridShape(1, 64, 32, 4), [])]
    whole, again = (step_work(lm)(40, 500.0, grid) for lm in (LM, pieces))
    assert again.forward == whole.forward
    config = LM.transformer.config
    assert again.flops - whole.flops == 2 * 32 * config.width * config.vocab_size


# refused


def test_a_width_below_the_longest_ranked_example_is_one_clear_line():
    items = _items(5)
    longest = int(items.examples(np.arange(ITEMS)).lengths(share=True).tokens.max())
    lm = tiny_lm(limits=LIMITS, width=longest - longest % 2 - 2)
    with pytest.raises(UserError) as caught:
        _packer(lm, items)
    assert str(caught.value) == (
        f"config.model.width={lm.grid.width}: the longest example has {longest} tokens: raise it "
        "(0 = chosen from the data), or lower config.model.max_prompt or max_response"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"width": 30},
            "config.model.width=30: a row holds whole examples of up to max_prompt + max_response "
            "= 20 + 12 tokens: raise it, lower these, or set it to 0 (chosen from the data)",
        ),
        ({"width": 33}, "config.model.width=33 must be even"),
        (
            {"rows": 6, "mesh": mesh_of(8, fsdp=2, tensor=2)},
            "config.model.rows=6 must be a multiple of data · fsdp = 4, or 0 (chosen)",
        ),
        ({"rows": -4}, "config.model.rows=-4 must be a multiple of data · fsdp = 1, or 0 (chosen)"),
    ],
)
def test_a_size_that_cannot_be_is_one_clear_line(changes, said):
    with pytest.raises(UserError) as caught:
        tiny_lm(limits=LIMITS, **changes)
    assert str(caught.value) == said
