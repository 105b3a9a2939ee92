"""plan: the programs of a config compiled for a TPU without one, and what is said about them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.models.language_model import open_language_model
from alol_jax.objectives.registry import get_objective
from alol_jax.plan.chips import CHIPS, GIB, read_topology
from alol_jax.plan.costs import Cost, Memory
from alol_jax.plan.knobs import KNOBS, advice
from alol_jax.plan.programs import largest_grid, programs_of
from alol_jax.plan.setting import Setting, prepare
from alol_jax.plan.summary import as_json, chip_hours, chip_hours_line, table, verdict
from alol_jax.plan.traffic import Traffic
from configs import own, quickstart
from tests.running import ROOT, refused

V5E = read_topology("v5e:2x4")


def debug_config(**values):
    config = quickstart.get_config("debug")
    config.update_from_flattened_dict({"mesh.data": 1, "mesh.fsdp": 8} | values)
    return config


def cost(name="policy step", *, peak=1.0, compiled=True, traffic=None, flops=0.0):
    """A cost whose peak is so many GiB."""
    memory = Memory(peak * GIB, 0.0, 0.0, 0.0, 0.0) if compiled else None
    return Cost(name, memory, traffic, peak * GIB, flops, CHIPS["v5e"], 1.0)


@pytest.fixture(scope="module")
def tiny():
    """The debug config on eight chips of v5e, and what its programs cost."""
    prepare()
    setting = Setting(debug_config(), V5E, 8)
    return setting, list(setting.costs())


@pytest.mark.tpu
def test_the_programs_of_a_config_compile_for_a_tpu(tiny):
    _, costs = tiny
    assert [one.name for one in costs] == ["select", "policy step", "decode"]
    assert all(one.fits for one in costs)


@pytest.mark.tpu
def test_weights_are_cut_over_the_chips(tiny):
    setting, costs = tiny
    trained, frozen = setting.open().abstract()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in (trained | frozen).values())
    policy = costs[1].memory
    assert whole / 8 <= policy.weights < whole / 2
    assert policy.optimizer >= 2 * 4 * sum(leaf.size for leaf in trained.values()) / 8


@pytest.mark.tpu
def test_the_parts_of_the_memory_make_up_the_peak(tiny):
    for one in tiny[1]:
        assert min(one.memory) >= 0 and one.memory.weights > 0
        assert one.peak == sum(one.memory)


@pytest.mark.tpu
def test_weights_that_are_cut_must_be_gathered(tiny):
    _, costs = tiny
    for one in costs:
        read = 0.4 if one.name == "decode" else 1.0  # the folded copy, not kernels and adapters
        assert one.traffic.network > 0 and one.traffic.memory > read * one.memory.weights
        assert 0 <= one.traffic.waited <= one.traffic.network
        assert one.times[one.bound] == max(one.times.values()) <= one.seconds


@pytest.mark.tpu
def test_one_chip_sends_nothing_and_needs_no_mesh():
    prepare()
    setting = Setting(debug_config(**{"mesh.fsdp": 1}), read_topology("v5e:1x1"), 1)
    (one,) = setting.costs(("select",))
    assert one.traffic.network == 0 and one.fits


@pytest.mark.slow
@pytest.mark.tpu
def test_a_quantised_llama_7b_trains_on_one_chip_of_v5e_within_12_gib():
    """QLoRA of rank 64 on all linear maps; 4 × 768 tokens, prompts of 640 and responses of 128."""
    prepare()
    config = own.get_config()
    config.model.update({"path": "random:llama-7b", "quantisation": "nf4"})
    config.model.update({"max_prompt": 640, "max_response": 128, "width": 768, "rows": 4})
    config.model.lora.rank = 64
    (step,) = Setting(config, read_topology("v5e:1x1"), 1).costs(("policy step",))
    assert 4.4 * GIB < step.memory.weights < 4.6 * GIB
    assert step.peak <= 12 * GIB


@pytest.mark.tpu
def test_a_topology_that_the_compiler_does_not_know_is_one_line():
    prepare()
    with pytest.raises(UserError, match="v5e:3x5 is not a topology of libtpu; there are v5e:1x1"):
        Setting(debug_config(), read_topology("v5e:3x5"), 8).open()


@pytest.mark.tpu
def test_an_objective_that_reads_no_annotation_has_no_select():
    prepare()
    config = debug_config(**{"objective.name": "nll"})
    setting = Setting(config, V5E, 8)
    assert list(setting.costs(("select",))) == []


@pytest.mark.tpu
def test_the_report_is_one_json_object(tiny):
    found = json.loads(as_json(*tiny, knob=""))
    assert found["topology"] == "v5e:2x4" and found["fits"] is True
    assert [one["name"] for one in found["programs"]] == ["select", "policy step", "decode"]
    assert [one["grid"] for one in found["programs"]] == [[one.rows, one.width] for one in tiny[1]]


@pytest.mark.tpu
def test_more_chips_than_the_topology_has_are_refused():
    with pytest.raises(UserError, match="has 8 chips"):
        Setting(debug_config(), V5E, 9).open()


@pytest.mark.tpu
@pytest.mark.parametrize("field", ["decode.batch_size", "model.rows"])
def test_rows_that_cannot_be_cut_are_refused(field):
    prepare()
    with pytest.raises(UserError, match=f"{field}=4 must be a multiple of data · fsdp = 8"):
        Setting(debug_config(**{field: 4}), V5E, 8).open()


@pytest.mark.tpu
def test_a_grid_that_is_set_is_the_one_that_is_compiled():
    prepare()
    config = debug_config(**{"model.width": 512, "model.rows": 16})
    costs = Setting(config, V5E, 8).costs(("select", "policy step"))
    assert [(one.rows, one.width) for one in costs] == [(16, 512)] * 2


def test_without_libtpu_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements-plan.txt"):
        prepare()


@pytest.mark.parametrize(("quantisation", "copies"), [("none", True), ("nf4", False)])
def test_decoding_folds_adapters_into_a_copy_of_a_plain_base_only(quantisation, copies):
    config = debug_config(**{"mesh.fsdp": 1, "model.quantisation": quantisation})
    lm = open_language_model(config.model, make_mesh(data=-1, fsdp=1, tensor=1))
    program = programs_of(lm, config, get_objective("a_lol"), room=GIB)["decode"]()
    _, kept = program.idle
    assert bool(kept) is copies


def test_bad_input_is_one_line_and_exit_code_2():
    words = ["--config=configs/quickstart.py:debug", "--topology=v7:2x2"]
    result = subprocess.run(
        [sys.executable, "-m", "alol_jax.plan", *words],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "no chip 'v7'" in refused(result)


def test_the_longest_time_is_the_bound():
    chip = CHIPS["v5e"]
    traffic = Traffic(2 * chip.bandwidth, {"all-gather": 3 * chip.interconnect})
    one = cost(traffic=traffic, flops=chip.flops)
    assert (one.bound, one.seconds) == ("network", 3.0)
    assert one.times == {"compute": 1.0, "memory": 2.0, "network": 3.0}


def test_what_is_waited_for_comes_on_top_of_the_work():
    chip = CHIPS["v5e"]
    sent = {"all-gather": 2 * chip.interconnect}
    traffic = Traffic(chip.bandwidth, sent, waited=0.5 * chip.interconnect)
    assert cost(traffic=traffic, flops=chip.flops).seconds == 2.0
    one = cost(traffic=traffic._replace(waited=1.5 * chip.interconnect), flops=chip.flops)
    assert (one.bound, one.seconds) == ("network", 2.5)


def test_a_program_that_was_not_compiled_or_is_too_large_does_not_fit():
    assert cost(peak=15.7).fits
    assert not cost(peak=15.8).fits
    assert not cost(peak=1.0, compiled=False).fits


def test_the_table_has_a_line_per_program_and_dashes_for_what_is_unknown():
    lines = table([cost("select"), cost("policy step", peak=20.0, compiled=False)]).split("\n")
    assert len({len(line) for line in lines}) == 1 and len(lines) == 3
    assert lines[2].split()[:7] == ["policy", "step", "-", "-", "-", "-", "20.00"]


def test_the_verdict_names_the_largest_program_and_what_helps():
    setting = Setting(debug_config(), V5E, 8)
    fits = verdict(setting, [cost("select"), cost("decode", peak=3.0)], "")
    assert fits == "fits on 8 × v5e (v5e:2x4): decode needs 3.00 GiB of 15.75 GiB per chip"
    too_large = [cost("policy step", peak=20.0, compiled=False)]
    assert "fits with config.model.remat=full" in verdict(
        setting, too_large, "config.model.remat=full"
    )
    assert "nothing that was tried" in verdict(setting, too_large, "")


def test_chip_hours_are_per_million_tokens_of_a_grid_and_per_thousand_answers():
    setting = Setting(debug_config(**{"decode.batch_size": 16}), V5E, 8)
    traffic = Traffic(CHIPS["v5e"].bandwidth, {})  # a second
    step = cost(traffic=traffic)._replace(rows=100, width=1000)
    found = chip_hours(setting, [step, cost("decode", traffic=traffic), cost("select")])
    assert found == {
        "policy step": pytest.approx(8 / 3600 * 10),
        "decode": pytest.approx(8 / 3600 * 1000 / 16),
    }
    line = chip_hours_line(setting, [step, cost("decode", traffic=traffic)])
    assert line.endswith("policy step 0.0222 per million tokens, decode 0.139 per thousand answers")


BIG = {
    "model.max_prompt": 512,
    "model.max_response": 512,
    "decode.batch_size": 16,
    "mesh.data": -1,
    "mesh.fsdp": 1,
    "mesh.tensor": 2,
}


@pytest.fixture
def big(monkeypatch):
    """A setting that every knob applies to; its model is opened on processors."""
    mesh = make_mesh(data=4, fsdp=1, tensor=2)
    monkeypatch.setattr(Setting, "open", lambda self: open_language_model(self.config.model, mesh))
    return Setting(debug_config(**BIG), V5E, 8)


@pytest.mark.parametrize("responses", [1, 2])
def test_the_largest_grid_holds_the_longest_example_and_is_smaller_with_less_memory(big, responses):
    lm = big.open()
    prompt, response = lm.limits
    for training in (True, False):
        shape = largest_grid(lm, responses, 16 * GIB, training=training)
        assert shape.width >= prompt + responses * response
        assert shape.targets >= responses * response and shape.slots >= 1
        assert shape.rows % lm.shards == 0
    sizes = [largest_grid(lm, responses, room, training=True).tokens for room in (0, GIB, 64 * GIB)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert largest_grid(lm, responses, 0, training=True).rows == lm.shards
    told = open_language_model(
        debug_config(**BIG | {"model.width": 2048, "model.rows": 8}).model, lm.mesh
    )
    shape = largest_grid(told, responses, 16 * GIB, training=True)
    assert (shape.width, shape.rows) == (2048, 8)


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_changes_what_it_says(big, knob):
    said, turned = KNOBS[knob].apply(big)
    for word in said.replace(" with config.mesh data=1, fsdp=-1", "").split(", "):
        key, value = word.split("=")
        if key == "--topology":
            assert turned.topology.name == value and turned.chips == turned.topology.chips == 16
            assert (turned.config.mesh.data, turned.config.mesh.fsdp) == (1, -1)
            continue
        place = turned.config
        for part in key.removeprefix("config.").split("."):
            before, place = place, place[part]
        assert str(place) == value and before is not None
    assert turned.config.to_json() != big.config.to_json() or turned.topology != big.topology


def test_smaller_grids_are_the_smallest_and_train_on_as_many_items_a_step(big):
    turned = KNOBS["grids"].apply(big)[1]
    room = 16 * GIB
    before, after = (largest_grid(one.open(), 1, room, training=True) for one in (big, turned))
    assert sum(big.open().limits) <= after.width < before.width
    assert after.rows <= before.rows and after.tokens < before.tokens
    assert turned.config.policy.batch_size == big.config.policy.batch_size
    assert turned.config.decode.batch_size == big.config.decode.batch_size // 2
    pairs = Setting(debug_config(**BIG | {"objective.name": "dpo"}), V5E, 8)
    longest = big.open().limits.prompt + 2 * big.open().limits.response
    assert KNOBS["grids"].apply(pairs)[1].config.model.width >= longest


def test_knobs_that_do_not_apply_are_left_out(big):
    done = {"model.remat": "full", "model.quantisation": "nf4", "model.logprob_chunk": 64}
    done |= {"model.width": 1024, "model.rows": 4, "decode.batch_size": 4}
    setting = Setting(debug_config(**BIG | done), read_topology("v5e:16x16"), 256)
    left = {name for name, knob in KNOBS.items() if knob.apply(setting)}
    assert left == set()


def advised(big, monkeypatch, fits):
    """The advice where a setting fits if ``fits(config)``; and the number of compilations."""
    tried = []

    def costs(self, names=()):
        tried.append(set(names))
        return [cost(name, peak=1.0 if fits(self) else 20.0) for name in names]

    monkeypatch.setattr(Setting, "costs", costs)
    tight = [cost("policy step", peak=20.0), cost("select", peak=1.0)]
    found = advice(big, tight, lambda line: None)
    assert all(names == {"policy step"} for names in tried)
    return found, len(tried)


def test_the_cheapest_knob_that_brings_it_under_is_advised(big, monkeypatch):
    assert advised(big, monkeypatch, lambda s: s.config.model.remat == "full") == (
        "config.model.remat=full",
        1,
    )


def test_knobs_are_turned_together_where_none_alone_is_enough(big, monkeypatch):
    def both(setting):
        return setting.config.model.remat == "full" and setting.config.model.width > 0

    found, compilations = advised(big, monkeypatch, both)
    assert "remat=full" in found and "model.width=1024" in found and "nf4" not in found
    assert compilations == len(KNOBS) + 2


def test_where_nothing_helps_nothing_is_advised(big, monkeypatch):
    assert advised(big, monkeypatch, lambda setting: False)[0] == ""


def test_a_knob_that_cannot_help_is_not_tried(big, monkeypatch):
    tried = []

    def costs(self, names=()):
        tried.append(self.config.model.remat)
        return [cost(name, peak=1.0) for name in names]

    monkeypatch.setattr(Setting, "costs", costs)
    found = advice(big, [cost("decode", peak=20.0)], lambda line: None)
    assert "batch_size" in found and tried == ["none"]
