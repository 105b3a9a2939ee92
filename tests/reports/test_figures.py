"""Figures: self-contained, themed by the page, and drawable at the edges of what a run can hold."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from alol_jax.reports import figures
from alol_jax.reports.compare import figures as comparison_figures
from alol_jax.reports.compare.figures import Bar, Point, Series
from alol_jax.types import Interval

STEPS = np.arange(1, 41)
RNG = np.random.default_rng(0)


def drawn() -> dict[str, str]:
    advantage = RNG.normal(size=60)
    return {
        "forest": figures.forest(
            ["<script>", "total"],
            np.array([0.1, -0.2]),
            np.array([0.0, -0.3]),
            np.array([0.2, -0.1]),
            label="difference",
        ),
        "distributions": figures.distributions(
            [(name, RNG.normal(size=30)) for name in ("data", "reference", "policy")],
            label="reward",
        ),
        "curve": figures.curve(
            STEPS, 1 / STEPS, label="loss", over="rollout", colour="policy", chosen=20
        ),
        "wide": figures.curve(
            STEPS, 10.0 ** (STEPS % 5), label="kl", over="x", colour="policy", chosen=2, symlog=True
        ),
        "validation": figures.validation(
            STEPS, 1 / STEPS, label="mean reward", over="optimizer step", colour="policy", chosen=20
        ),
        "kept_and_dropped": figures.kept_and_dropped(advantage, advantage > 0, label="advantage"),
        "differences": comparison_figures.differences(
            [Bar("<script>", Interval(0.1, 0.0, 0.2), (0.05, 0.15), 7)]
            + [Bar("reference", Interval(-0.1, -0.2, 0.0), (), None)],
            label="total reward, difference to nll",
        ),
        "curves": comparison_figures.curves(
            [Series(f"run {i}", ((STEPS, i / STEPS), (STEPS, i + 1 / STEPS))) for i in range(13)],
            label="mean reward",
            over="optimizer step",
            marks=True,
        ),
        "frontier": comparison_figures.frontier(
            [
                Point(
                    f"run {i}", str(i % 3), i, Interval(i, i - 1, i + 1), None, ((i, i), (i, 0)), i
                )
                for i in range(13)
            ],
            0.5,
            label="total reward",
            over="KL",
        ),
        "calibration": figures.calibration(
            np.array([0.1, 0.5]), np.array([0.2, 0.4]), np.array([0.1, 0.0]), np.array([9, 1])
        ),
    }


@pytest.fixture(scope="module")
def svgs() -> dict[str, str]:
    return drawn()


def test_every_figure_is_well_formed_and_has_no_fixed_size(svgs):
    for svg in svgs.values():
        root = ElementTree.fromstring(svg)
        assert root.get("viewBox") and root.get("width") is None and root.get("aria-label")


def test_no_figure_loads_anything(svgs):
    for svg in svgs.values():
        loads = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', svg)
        assert all((a or b).startswith("#") for a, b in loads)
        assert "@import" not in svg and "<script" not in svg


def test_every_local_reference_finds_its_target(svgs):
    for svg in svgs.values():
        ids = re.findall(r'\bid="([^"]+)"', svg)
        wanted = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
        assert set(wanted) <= set(ids)
        assert len(ids) == len(set(ids))


def test_ids_of_two_figures_do_not_clash(svgs):
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs.values()]
    assert len(set().union(*ids)) == sum(map(len, ids))


def test_no_colour_of_a_figure_is_fixed(svgs):
    for svg in svgs.values():
        bare = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", svg)
        assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{3,6}", bare)


def test_text_stays_text_and_is_escaped(svgs):
    assert "&lt;script&gt;" in svgs["forest"]
    assert "rollout" in svgs["curve"] and "optimizer step" in svgs["validation"]


def test_mathematics_signs_in_a_name_are_not_mathematics():
    svg = figures.curve(STEPS, 1 / STEPS, label="$cost_1$", over="x", colour="policy", chosen=None)
    assert "$cost_1$" in svg


def test_the_same_arrays_give_the_same_text():
    first, second = (
        figures.curve(STEPS, np.sqrt(STEPS), label="loss", over="x", colour="reference", chosen=3)
        for _ in range(2)
    )
    assert first == second


def test_a_single_value_can_be_drawn_by_every_figure():
    one, step = np.array([0.5]), np.array([1])
    assert "NaN" not in figures.distributions([("policy", one)], label="reward")
    assert figures.curve(step, one, label="loss", over="x", colour="policy", chosen=1)
    assert figures.validation(step, one, label="score", over="x", colour="policy", chosen=1)
    assert figures.kept_and_dropped(one, np.array([True]), label="advantage")
    assert figures.calibration(one, one, np.array([0.0]), np.array([1]))


@pytest.mark.parametrize("symlog", [True, False])
def test_magnitudes_have_ticks_of_their_own_on_a_wide_axis(symlog):
    values = 10.0 ** (STEPS % 5)
    one = figures.curve(
        STEPS, values, label="x", over="y", colour="policy", chosen=None, symlog=symlog
    )
    many = comparison_figures.curves(
        [Series("a", ((STEPS, values),))], label="x", over="y", marks=True, symlog=symlog
    )
    for svg in (one, many):
        found = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert ({"10", "100", "1k", "10k"} <= set(found)) == symlog


def test_a_long_curve_is_thinned_and_a_short_one_is_not():
    steps = np.arange(100_000)
    svg = figures.curve(steps, np.sin(steps), label="loss", over="x", colour="policy", chosen=None)
    assert len(svg) < 60_000


def test_the_counts_of_kept_and_dropped_rows_are_said():
    values = np.array([-1.0, -0.5, 0.0, 0.5, 2.0])
    svg = figures.kept_and_dropped(values, values > 0, label="advantage")
    assert "kept: 2 of 5" in svg and "dropped: 3 of 5" in svg


def test_twelve_series_look_different_without_reading_the_legend():
    looks = {(comparison_figures.paint_of(i), comparison_figures.is_hollow(i)) for i in range(12)}
    assert len(looks) == 12
    alone = [
        comparison_figures.curves(
            [Series("", ())] * i + [Series("a", ((STEPS, 1 / STEPS),))],
            label="score",
            over="step",
            marks=True,
        )
        for i in range(12)
    ]
    assert len({re.sub(r"f[0-9a-f]{8}-", "", svg) for svg in alone}) == 12


def test_runs_of_unequal_length_are_drawn_one_by_one_and_equal_ones_with_their_mean():
    def drawn_lines(*lengths: int) -> int:
        runs = tuple((np.arange(n), np.arange(n) ** 0.5) for n in lengths)
        svg = comparison_figures.curves(
            [Series("a", runs)], label="score", over="step", marks=False
        )
        return svg.count("stroke: var(--series1")

    assert drawn_lines(5, 5) == drawn_lines(5) + 2
    assert drawn_lines(5, 6) == drawn_lines(5) + 1


def test_curves_of_nothing_and_of_one_point_can_be_drawn():
    one = Series("a", ((np.array([1.0]), np.array([0.5])),))
    svg = comparison_figures.curves([Series("b", ()), one], label="x", over="y", marks=True)
    assert "NaN" not in svg
    assert comparison_figures.curves([], label="x", over="y", marks=True)
    point = Point("a", "a", 0.0, Interval(0.0, 0.0, 0.0), None, (), 0)
    assert comparison_figures.frontier([point], None, label="x", over="y")
