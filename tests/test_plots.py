import builtins
import subprocess
import sys
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from metalr_optax import (
    Kernels,
    Memory,
    linspace_kernels,
    logspace_kernels,
    plot_memory,
    plot_memory_history,
    plot_rates,
    plot_schedule,
    plot_transfer,
)

KERNELS = linspace_kernels(2.0, 5)
RATES = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
LOGSPACE = logspace_kernels(2.0, 4, smallest=0.02)
ONE_SIDED = Kernels(np.array([0.01, 0.1, 1.0, 10.0]), np.array([0.01, 0.05, 0.5, 5.0]))


def landscape(kernels, rates, z):
    psi = np.exp(-((z[:, None] - kernels.centers) ** 2) / (2 * kernels.widths**2))
    return (psi * rates).sum(1) / psi.sum(1)


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.mark.parametrize(
    ("kernels", "scale"),
    [(KERNELS, "linear"), (logspace_kernels(2.0, 4, smallest=0.02), "symlog")],
    ids=["even", "log"],
)
def test_a_landscape_is_the_rate_of_every_kernel_input(ax, kernels, scale):
    memory = Memory(kernels, RATES)
    assert plot_memory(memory, ax) is ax
    z, rates = ax.lines[0].get_data()
    np.testing.assert_allclose(rates, landscape(kernels, RATES, z), rtol=1e-6)
    assert z[0] < -2.0
    assert z[-1] > 2.0
    assert np.isin(np.round(kernels.centers, 9), np.round(z, 9)).all()
    assert (ax.get_xscale(), ax.get_yscale()) == (scale, "log")
    assert ax.get_xlabel() == "direction"
    assert ax.get_ylabel() == "learning rate"


def test_dots_are_as_large_as_the_evidence(ax):
    memory = Memory(KERNELS, RATES, evidence_weight=np.array([0.0, 1.0, 2.0, 4.0, 0.0]))
    plot_memory(memory._replace(rms_normalized=np.array(True)), ax)
    dots = ax.collections[0]
    np.testing.assert_array_equal(dots.get_offsets()[:, 0], KERNELS.centers)
    areas = dots.get_sizes()
    assert areas[0] == areas[4] == areas.min() > 0
    np.testing.assert_allclose(
        (areas - areas[0])[1:4] / (areas[3] - areas[0]), [0.25, 0.5, 1]
    )
    assert "rms" in ax.get_xlabel()


def bars(ax):
    (below,) = (other for other in ax.figure.axes if other is not ax)
    return below, *below.patches[0].get_data()[:2]


@pytest.mark.parametrize(
    "kernels", [KERNELS, LOGSPACE, ONE_SIDED], ids=["even", "log", "one-sided"]
)
def test_bars_count_all_gradients_those_outside_too(ax, kernels):
    inside = float(kernels.centers[1] + kernels.centers[2]) / 2
    kernel_inputs = np.array([-100.0, inside, inside, 100.0, np.nan, np.inf])
    memory = Memory(kernels, RATES[: len(kernels.centers)])
    plot_memory(memory, ax, kernel_inputs=kernel_inputs)
    below, shares, edges = bars(ax)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] == shares[-1] == pytest.approx(0.25)
    assert shares[np.searchsorted(edges, inside, side="right") - 1] == 0.5
    # All of them are seen, equally wide, and behind the curve.
    assert (edges[0], edges[-1]) == ax.get_xlim()
    ax.figure.canvas.draw()
    places = ax.transData.transform(np.stack([edges, np.ones_like(edges)], 1))[:, 0]
    np.testing.assert_allclose(np.diff(places), np.diff(places).mean(), rtol=1e-6)
    assert below.get_zorder() < ax.get_zorder()


def test_without_kernel_inputs_there_is_nothing_to_count(ax):
    for kernel_inputs in (np.array([]), np.array([np.nan])):
        plot_memory(Memory(KERNELS, RATES), ax, kernel_inputs=kernel_inputs)
        _, shares, _ = bars(ax)
        assert shares.sum() == 0
        ax.figure.axes[1].remove()


def test_the_current_axes_stay_the_current_ones():
    figure, (left, right) = plt.subplots(1, 2)
    plt.sca(left)
    assert plot_memory(Memory(KERNELS, RATES), kernel_inputs=np.ones(3)) is left
    assert plt.gca() is left
    plot_memory(Memory(KERNELS, RATES), right, kernel_inputs=np.ones(3))
    assert plt.gca() is left
    plt.close(figure)


@pytest.mark.parametrize("kernels", [KERNELS, LOGSPACE], ids=["even", "log"])
def test_the_rates_of_a_new_memory_are_a_straight_line(kernels):
    figure = Figure()
    axes = figure.subplots(1, 3)
    flat = Memory(kernels, np.full(5, 1e-3, np.float32))
    plot_memory(flat, axes[0])
    plot_transfer(flat, flat, axes[1])
    plot_memory_history({0: flat, 1: flat}, axes[2])
    for low, high in (axes[0].get_ylim(), axes[1].get_ylim()):
        assert low < 0.8e-3 < 1.3e-3 < high
    low, high = axes[2].collections[0].get_clim()
    assert low < 0.8e-3 < 1.3e-3 < high
    figure.canvas.draw()


def test_dots_show_a_local_model_that_the_landscape_hides(ax):
    rates = np.array([1.0, 1.0, 1e-6, 1.0, 1.0])
    plot_memory(Memory(KERNELS, rates), ax)
    np.testing.assert_array_equal(ax.collections[0].get_offsets()[:, 1], rates)
    assert ax.lines[0].get_ydata().min() > 1e-3
    assert ax.get_ylim()[0] < 1e-6


def test_a_log_axis_has_ticks_with_room_between_them(ax):
    plot_memory(Memory(logspace_kernels(1.0, 20), np.full(21, 0.1)), ax)
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert len(ticks) <= 7
    assert all(ticks)
    assert 0 in ax.get_xticks()
    ax.figure.canvas.draw()
    places = sorted(ax.transData.transform([[x, 1.0] for x in ax.get_xticks()])[:, 0])
    assert np.diff(places).min() > 0.1 * ax.bbox.width


def test_history_has_a_column_per_step():
    figure = Figure()
    ax = figure.subplots()
    steps = (30, 0, 10)
    rates = RATES * np.array([1.0, 1.0, 1.0, 2.0, 4.0])
    history = {step: Memory(LOGSPACE, rates * (1 + step)) for step in steps}
    # Learned kernels are less precise than those that were made by hand.
    history[0] = Memory(
        Kernels(*(np.asarray(array, np.float32) for array in LOGSPACE)), rates
    )
    plot_memory_history(history, ax)
    mesh: Any = ax.collections[0]
    columns = mesh.get_array()
    np.testing.assert_allclose(columns[:, 1] / columns[:, 0], 11.0, rtol=1e-5)
    np.testing.assert_allclose(columns[:, 2] / columns[:, 0], 31.0, rtol=1e-5)
    edges = mesh.get_coordinates()[:, 0, 1]
    middle = np.searchsorted(edges, LOGSPACE.centers) - 1
    np.testing.assert_allclose(
        columns[middle, 0], landscape(LOGSPACE, rates, LOGSPACE.centers), rtol=0.1
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "direction")
    assert ax.get_yscale() == "symlog"
    assert len(figure.axes) == 2
    assert figure.axes[1].get_ylabel() == "learning rate"
    figure.canvas.draw()


def test_history_of_one_rate_is_a_line(ax):
    kernels = linspace_kernels(1.0, 1)
    rates = {0: 0.1, 5: 0.3}
    plot_memory_history(
        {step: Memory(kernels, np.array([rate])) for step, rate in rates.items()}, ax
    )
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0.1], [5, 0.3]])


def test_a_history_that_never_changed_can_be_drawn():
    figure = Figure()
    plot_memory_history({0: Memory(KERNELS, np.full(5, 0.1))}, figure.subplots())
    figure.canvas.draw()


def test_before_and_after_are_told_apart(ax):
    other = linspace_kernels(3.0, 4)
    plot_transfer(Memory(KERNELS, RATES), Memory(other, np.full(4, 0.3)), ax)
    before, after = ax.lines
    z, rates = before.get_data()
    inside = np.abs(z) <= 2.0
    np.testing.assert_allclose(
        rates[inside], landscape(KERNELS, RATES, z[inside]), rtol=1e-6
    )
    np.testing.assert_allclose(after.get_ydata(), 0.3, rtol=1e-6)
    assert before.get_linestyle() != after.get_linestyle()
    assert [one.get_text() for one in ax.get_legend().get_texts()] == [
        "before",
        "after",
    ]


def test_a_transfer_has_the_axis_of_its_kernels(ax):
    plot_transfer(Memory(LOGSPACE, RATES), Memory(LOGSPACE, RATES), ax)
    assert ax.get_xscale() == "symlog"


def test_memories_of_a_state_are_drawn_together(ax):
    """A landscape each, bars of all kernel inputs together, and the right labels."""
    memories = {"a": Memory(KERNELS, RATES), "_b": Memory(KERNELS, RATES / 9)}
    inputs = {"a": np.array([0.51, 0.51, 0.51]), "_b": np.array([-0.51])}
    assert plot_memory(memories, ax, kernel_inputs=inputs) is ax
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["a", "_b"]
    for line, factor in zip(ax.lines, (1, 1 / 9), strict=True):
        z, rates = line.get_data()
        expected = factor * landscape(KERNELS, RATES, z)
        np.testing.assert_allclose(rates, expected, rtol=1e-6)
    colors = [line.get_color() for line in ax.lines]
    assert colors[0] != colors[1]
    dots = [to_rgb(dots.get_facecolor()[0][:3]) for dots in ax.collections[:2]]
    assert dots == [to_rgb(color) for color in colors]
    assert ax.get_ylim()[0] < 0.1 / 9
    (below,) = [other for other in ax.figure.axes if other is not ax]
    (bars,) = below.patches
    share, edges = bars.get_data()[:2]
    assert share[np.searchsorted(edges, 0.51) - 1] == 0.75
    assert share[np.searchsorted(edges, -0.51) - 1] == 0.25


def test_the_rates_of_memories_are_their_schedules(ax):
    falling = np.log(np.array([4.0, 2.0] + 18 * [1.0]))
    memory = Memory(linspace_kernels(1.0, 1), np.array([0.1]), schedule=falling)
    for argument in (memory, {"dense": memory}):
        for plot in (plot_rates, plot_schedule):
            line = plot(argument, Figure().subplots()).lines[0]
            points = [[1.0, 0.4], [2.0, 0.2], [4.0, 0.1]]
            np.testing.assert_allclose(line.get_xydata(), points)
    assert plot_rates({"dense": memory}, ax).get_xlabel() == "step"


def test_the_rates_of_logs_are_drawn_and_nothing_else_of_them(ax):
    logs = [
        {"rate_mean/a/b": rate, "rate_max/a/b": 9.0, "skipped/a/b": 0, "loss": 7.0}
        for rate in (0.1, 0.2)
    ]
    plot_rates(logs, ax)
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xydata(), [[1.0, 0.1], [2.0, 0.2]])
    assert line.get_label() == "a/b"
    with pytest.raises(ValueError, match="at least one label"):
        plot_rates([{"loss": 7.0}], ax)


def test_labels_of_many_layers_stand_beside_the_picture():
    figure = Figure(figsize=(6, 3), layout="constrained")
    ax = figure.subplots()
    plot_rates({f"_encoder/block_{i}/attention": [1.0, 2.0] for i in range(24)}, ax)
    figure.canvas.draw()
    legend: Any = ax.get_legend()
    assert len(legend.get_texts()) == 24
    assert legend.get_window_extent().x0 >= ax.bbox.x1


def test_rates_have_bands_and_layers_never_look_the_same(ax):
    layers = {f"layer {i}": np.array([[2.0, 1.0, 4.0]] * 3) for i in range(24)}
    plot_rates(layers, ax, steps=[10, 20, 30])
    assert len({(one.get_color(), one.get_linestyle()) for one in ax.lines}) == 24
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [10, 20, 30])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 4.0)


def luminance(color):
    channels = [
        one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4
        for one in to_rgb(color)
    ]
    return float(np.dot(channels, [0.2126, 0.7152, 0.0722]))


def test_lines_are_seen_on_white_and_on_black(ax):
    """At least 2 : 1 on either, as thick lines want it; text follows the style."""
    plot_rates({str(i): [1.0, 2.0] for i in range(6)}, ax)
    plot_transfer(Memory(KERNELS, RATES), Memory(KERNELS, RATES), ax)
    for line in ax.lines:
        shade = luminance(line.get_color())
        assert 1.05 / (shade + 0.05) > 2, line.get_color()
        assert (shade + 0.05) / 0.05 > 2, line.get_color()
    with plt.style.context("dark_background"):
        dark = plot_memory(Memory(KERNELS, RATES), Figure().subplots())
        assert to_rgb(dark.xaxis.label.get_color()) == (1.0, 1.0, 1.0)


def test_the_current_axes_are_the_default():
    figure, ax = plt.subplots()
    assert plot_rates({"a": [1.0, 2.0]}) is ax
    plt.close(figure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda ax: plot_memory(cast(Any, "no"), ax),
            "memory must be a metalr_optax.Memory",
        ),
        (lambda ax: plot_memory_history({}, ax), "at least one step"),
        (
            lambda ax: plot_memory_history(
                {0: Memory(KERNELS, RATES), 7: Memory(linspace_kernels(1.0, 5), RATES)},
                ax,
            ),
            "others at 7",
        ),
        (
            lambda ax: plot_transfer(cast(Any, None), cast(Any, None), ax),
            "before must be",
        ),
        (
            lambda ax: plot_transfer(
                Memory(KERNELS, RATES),
                Memory(KERNELS, RATES, rms_normalized=np.array(True)),
                ax,
            ),
            "before and after must have the same normalize",
        ),
        (
            lambda ax: plot_memory(Memory(KERNELS, RATES), ax, kernel_inputs={"a": 1}),
            "kernel_inputs must be an array of numbers",
        ),
        (
            lambda ax: plot_memory(
                {"a": Memory(KERNELS, RATES)}, ax, kernel_inputs={"b": [1.0]}
            ),
            "kernel_inputs must have the labels of memory",
        ),
        (lambda ax: plot_memory({}, ax), "memory must be a mapping from labels"),
        (lambda ax: plot_rates({}, ax), "at least one label"),
        (lambda ax: plot_rates({"a": [0.1, 0.2]}, ax, steps=[1.0]), "steps must have"),
        (lambda ax: plot_rates({"a": [0.1]}, cast(Any, "no")), r"subplots\(\)"),
        (lambda ax: plot_rates({"a": np.ones((2, 2))}, ax), r"rates\['a'\] must have"),
    ],
)
def test_what_cannot_be_drawn_is_refused(ax, call, message):
    with pytest.raises(ValueError, match=message):
        call(ax)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    calls = [
        lambda: plot_memory(Memory(KERNELS, RATES)),
        lambda: plot_memory_history({0: Memory(KERNELS, RATES)}),
        lambda: plot_transfer(Memory(KERNELS, RATES), Memory(KERNELS, RATES)),
        lambda: plot_rates({"a": [1.0]}),
    ]
    for call in calls:
        with pytest.raises(ImportError, match=r"metalr-optax\[plots\]"):
            call()


def test_the_library_is_imported_without_matplotlib():
    code = "import sys, metalr_optax; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
