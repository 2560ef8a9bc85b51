"""Plots of memories: landscapes, their history, transfers, rates and schedules.

Functions draw on a Matplotlib Axes and return it. Colours suit colour-blind readers, on
white and on black.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metalr_optax.checks import is_number, require
from metalr_optax.memory import MARKS, Kernels, Memory, rates_by_step, read
from metalr_optax.memory_checks import check_memories, check_memory, in_use

# Colours of Okabe and Ito's palette that are visible on white and on black.
_BLUE, _GREY = "#0072B2", "#888888"
_COLORS = (_BLUE, "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_STYLES = [(dash, color) for dash in ("-", "--", "-.", ":") for color in _COLORS]
# With gaps that differ by this factor, kernels are drawn on a logarithmic axis.
_UNEVEN = 10.0
_RATE = "learning rate"
_LOGGED = "rate_mean/"
_BARS = 40
# With more labels than this the legend is placed beside the Axes.
_MANY = 8
_BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
_IMAGE = {"norm": "log", "cmap": "cividis", "shading": "nearest", "rasterized": True}

_read = jax.jit(read)


def plot_memory(
    memory: Memory | Mapping[str, Memory], ax: Any = None, *, kernel_inputs: Any = None
) -> Any:
    r"""Draw the landscape of a memory: the rate :math:`\eta(z)` for every input.

    Dots are the rates of the local models, sized by their evidence; the landscape
    between them is their weighted mean. Bars below are a histogram of kernel inputs
    (the share per bar, on the right axis).

    Args:
      memory: a memory, or label -> memory, as :func:`metalr_optax.get_memory` returns
        it: a landscape for each, with a legend of the labels.
      ax: :class:`matplotlib.axes.Axes`; default: the current one.
      kernel_inputs: [n], where the memory was read, or label -> [n], as
        :func:`metalr_optax.get_kernel_inputs` returns it, counted together. Inputs
        outside the local models count in the outermost bars, non-finite ones in none.

    Returns:
      The Axes, logarithmic in the rate.

    Raises:
      ValueError: not a memory, or kernel inputs that are not numbers.
      ImportError: matplotlib is missing: ``pip install 'metalr-optax[plots]'``.

    Examples:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import Memory, linspace_kernels, plot_memory
      >>> memory = Memory(linspace_kernels(2.0, 5), np.array([.1, .2, .4, .2, .1]))
      >>> ax = plot_memory(memory, Figure().subplots(), kernel_inputs=np.array([0.5]))
      >>> curve = ax.lines[0].get_ydata()
      >>> bool(0.35 < curve.max() < 0.4), ax.get_yscale()
      (True, 'log')

    .. seealso:: :func:`plot_transfer` for two of them.
    """
    is_single = not isinstance(memory, Mapping)
    memories: Any = {"landscape": memory} if is_single else memory
    check_memories(memories)
    names = ["memory"] if is_single else [f"memory[{label!r}]" for label in memories]
    ax, z = _prepare(ax, "x", **dict(zip(names, memories.values(), strict=True)))
    lines, all_rates = [], []
    for (label, part), style in zip(memories.items(), itertools.cycle(_STYLES)):
        dash, color = style
        lines += ax.plot(z, _landscape(part, z), dash, color=color, label=label)
        centers, rates, weight = _local_models(part)
        sizes = 6 + 60 * weight / max(float(weight.max()), 1e-30)
        dots = "local models, by evidence"
        ax.scatter(centers, rates, sizes, color, label=dots, zorder=3)
        all_rates.append(rates)
    _finish_rates(ax, np.concatenate(all_rates))
    if not is_single:
        _draw_legend(ax, lines, memories)
        if isinstance(kernel_inputs, Mapping):
            fits = set(memories) == set(kernel_inputs)
            hint = "get_kernel_inputs(opt_state) returns them"
            allowed = "have the labels of memory"
            require(fits, "kernel_inputs", allowed, kernel_inputs, hint)
            parts = [_numbers("kernel_inputs", z) for z in kernel_inputs.values()]
            kernel_inputs = np.concatenate([part.ravel() for part in parts])
    if kernel_inputs is not None:
        _draw_histogram(ax, kernel_inputs, _even(ax.xaxis, z[[0, -1]], _BARS + 1))
    return ax


def plot_memory_history(
    memories: Mapping[int, Memory], ax: Any = None, *, colorbar: bool = True
) -> Any:
    """Draw how the landscape of a memory changed while it was learned.

    Every column is the landscape after a step, its colour the rate. A memory with a
    single local model is drawn as a line.

    Args:
      memories: step -> memory of one layer, all with the same kernels.
      ax: :class:`matplotlib.axes.Axes`; default: the current one.
      colorbar: whether to draw the scale of colours beside the Axes.

    Returns:
      The Axes.

    Raises:
      ValueError: no memory, or memories with other kernels.
      ImportError: see :func:`plot_memory`.

    Examples:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import Memory, linspace_kernels, plot_memory_history
      >>> kernels = linspace_kernels(2.0, 5)
      >>> history = {0: Memory(kernels, np.full(5, 0.1)),
      ...            1: Memory(kernels, np.full(5, 0.2))}
      >>> ax = plot_memory_history(history, Figure().subplots())
      >>> [round(float(rate), 2) for rate in ax.collections[0].get_array()[0]]
      [0.1, 0.2]
    """
    fits = isinstance(memories, Mapping) and memories and all(map(is_number, memories))
    allowed = "be a mapping from at least one step to metalr_optax.Memory"
    hint = "for one layer, {step: get_memory(opt_state)[label]}"
    require(fits, "memories", allowed, memories, hint)
    steps = sorted(memories)
    first = memories[steps[0]]
    for step in steps:
        check_memory(f"memories[{step}]", memories[step], (0.0, np.inf))
        # Equal up to the precision that they are stored in.
        kernels, near = memories[step].kernels, 1e-3 * np.asarray(first.kernels.widths)
        alike = len(kernels.centers) == len(near)
        alike = alike and np.allclose(kernels, first.kernels, 0, near)
        require(alike, "memories", "have equal kernels", f"others at {step}")
    if len(first.rates) == 1:
        ax, rates = _axes(ax), np.array([memories[step].rates[0] for step in steps])
        ax.plot(steps, rates, color=_BLUE)
        _finish_rates(ax, rates)
    else:
        ax, z = _prepare(ax, "y", memories=first)
        columns = np.stack([_landscape(memories[step], z) for step in steps], axis=1)
        low, high = _range(columns)
        image = ax.pcolormesh(steps, z, columns, vmin=low, vmax=high, **_IMAGE)
        if colorbar:
            ax.figure.colorbar(image, ax=ax, label=_RATE)
    ax.set_xlabel("step")
    return ax


def plot_transfer(before: Memory, after: Memory, ax: Any = None) -> Any:
    """Draw the landscape a task started with and the one it left.

    Args:
      before: memory of a layer at the start, such as a transferred one.
      after: memory of the same layer later on.
      ax: :class:`matplotlib.axes.Axes`; default: the current one.

    Returns:
      The Axes, logarithmic in the rate.

    Raises:
      ValueError: not two memories, or two with different kernel inputs.
      ImportError: see :func:`plot_memory`.

    Examples:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import Memory, linspace_kernels, plot_transfer
      >>> kernels = linspace_kernels(2.0, 5)
      >>> before, after = (Memory(kernels, np.full(5, rate)) for rate in (0.1, 0.2))
      >>> ax = plot_transfer(before, after, Figure().subplots())
      >>> [line.get_label() for line in ax.lines]
      ['before', 'after']
    """
    ax, z = _prepare(ax, "x", before=before, after=after)
    curves = _landscape(before, z), _landscape(after, z)
    ax.plot(z, curves[0], "--", color=_GREY, label="before")
    ax.plot(z, curves[1], color=_BLUE, label="after")
    _finish_rates(ax, np.concatenate(curves))
    ax.legend()
    return ax


def plot_rates(
    rates: Memory | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    ax: Any = None,
    *,
    steps: Any = None,
) -> Any:
    """Draw the effective rate of every layer over time.

    Args:
      rates: label -> [T], or [T, 3] with mean, smallest and largest, which are drawn
        as a band. Or a list of what :func:`metalr_optax.summarize_memory` logged in
        each step, of which ``rate_mean/`` is drawn. Memories are drawn as
        :func:`plot_schedule` draws them.
      ax: :class:`matplotlib.axes.Axes`; default: the current one.
      steps: [T]; default: 1, 2, ...

    Returns:
      The Axes, logarithmic in the rate, with a legend of the labels: beside the Axes
      where there are more than eight.

    Raises:
      ValueError: no label, or arrays of another shape.
      ImportError: see :func:`plot_memory`.

    Examples:
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import plot_rates
      >>> ax = plot_rates({"dense": [0.001, 0.01, 0.1]}, Figure().subplots())
      >>> ax.lines[0].get_xydata()[-1].tolist()
      [3.0, 0.1]
    """
    rates = _logged(rates)
    layers: Any = rates if isinstance(rates, Mapping) else {"memory": rates}
    if any(isinstance(values, Memory) for values in layers.values()):
        return plot_schedule(layers, ax)
    allowed = "be a mapping from at least one label to [T] or [T, 3], or a list of logs"
    hint = "plot_rates(get_memory(opt_state)) draws those of a state"
    require(isinstance(rates, Mapping) and rates, "rates", allowed, rates, hint)
    ax = _axes(ax)
    lines = []
    for (label, values), style in zip(layers.items(), itertools.cycle(_STYLES)):
        name, allowed = f"rates[{label!r}]", "have shape [T] or [T, 3]"
        array = _numbers(name, values, hint)
        fits = array.ndim and array.shape[1:] in ((), (1,), (3,))
        require(fits, name, allowed, array, hint)
        mean, *band = np.atleast_2d(array.T)
        x = np.arange(1, len(mean) + 1) if steps is None else _numbers("steps", steps)
        require(x.shape == mean.shape, "steps", f"have shape {mean.shape}", x)
        dash, color = style
        lines += ax.plot(x, mean, dash, color=color, label=label)
        if band:
            ax.fill_between(x, *band, color=color, alpha=0.2, linewidth=0)
    ax.set(yscale="log", xlabel="step", ylabel=_RATE)
    _draw_legend(ax, lines, layers)
    return ax


def _logged(rates: Any) -> Any:
    """Return label -> mean rates if this is a list of logs, else what came."""
    if not (isinstance(rates, Sequence) and rates and isinstance(rates[0], Mapping)):
        return rates
    names = [name for name in rates[0] if str(name).startswith(_LOGGED)]
    return {
        name.removeprefix(_LOGGED): [logs[name] for logs in rates] for name in names
    }


def plot_schedule(memories: Memory | Mapping[str, Memory], ax: Any = None) -> Any:
    """Draw the schedule that a run leaves: the rate of every layer by progress.

    Args:
      memories: label -> :class:`Memory` of a run with a learned schedule, as
        :func:`metalr_optax.get_memory` returns them, or a single one.
      ax: :class:`matplotlib.axes.Axes`; default: the current one.

    Returns:
      The Axes, logarithmic in steps and in rates, with a line per label as
      :func:`plot_rates` draws it: the mean rate at step 1, 2, 4 and so on, up to the
      last change of any rate.

    Raises:
      ValueError: no memory.
      ImportError: see :func:`plot_memory`.

    Examples:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import Memory, linspace_kernels, plot_schedule
      >>> falling = np.log(np.array([4.0, 2.0] + 18 * [1.0]))
      >>> memory = Memory(linspace_kernels(1.0, 1), np.array([0.1]), schedule=falling)
      >>> ax = plot_schedule({"dense": memory}, Figure().subplots())
      >>> [[round(float(x), 2) for x in point] for point in ax.lines[0].get_xydata()]
      [[1.0, 0.4], [2.0, 0.2], [4.0, 0.1]]
    """
    if isinstance(memories, Memory):
        memories = {"memory": memories}
    check_memories(memories, "memories")
    curves = {}
    for label, memory in memories.items():
        check_memory(f"memories[{label!r}]", memory, (0.0, np.inf))
        curves[label] = rates_by_step(memory)
    moved = np.any([np.diff(curve) != 0 for curve in curves.values()], axis=0)
    num = 2 + int(np.flatnonzero(moved).max(initial=0))
    curves = {label: curve[:num] for label, curve in curves.items()}
    ax = plot_rates(curves, ax, steps=MARKS[:num])
    ax.set_xscale("log", base=2)
    ax.set_xlabel("step")
    return ax


def _axes(ax: Any) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        message = "pictures need matplotlib: pip install 'metalr-optax[plots]'"
        raise ImportError(message) from error
    ax = pyplot.gca() if ax is None else ax
    hint = "plt.subplots() returns one"
    require(hasattr(ax, "plot"), "ax", "be a matplotlib.axes.Axes", ax, hint)
    return ax


def _draw_legend(ax: Any, lines: list[Any], labels: Iterable[str]) -> None:
    """Draw a legend of lines, beside the Axes if there are many of them."""
    beside = _BESIDE | {"ncols": -(-len(lines) // 16), "fontsize": "x-small"}
    # Explicit, because Matplotlib leaves out labels that begin with an underscore.
    ax.legend(lines, list(labels), **(beside if len(lines) > _MANY else {}))


def _finish_rates(ax: Any, rates: np.ndarray) -> None:
    """Label the axis of rates, and show at least a factor of two of it."""
    low, high = _range(rates)
    ax.set(yscale="log", ylabel=_RATE, ylim=(low / 1.2, high * 1.2))


def _range(rates: np.ndarray) -> tuple[float, float]:
    """Return limits of rates, wide enough that rounding does not fill the Axes."""
    shown = rates[rates > 0] if (rates > 0).any() else np.array([0.1, 1.0])
    wider = max(1.0, np.sqrt(2 * shown.min() / shown.max()))
    return shown.min() / wider, shown.max() * wider


def _prepare(ax: Any, axis_name: str, **memories: Memory) -> tuple[Any, np.ndarray]:
    """Return the Axes with an axis of kernel inputs, and inputs to draw memories at.

    Log-spaced kernels crowd around 0: a logarithmic axis separates their local models.
    """
    for name, memory in memories.items():
        check_memory(name, memory, (0.0, np.inf))
    labels = [_input_label(memory) for memory in memories.values()]
    alike = len(set(labels)) == 1
    require(alike, " and ".join(memories), "have the same normalize", labels)
    ax = _axes(ax)
    axis = getattr(ax, f"{axis_name}axis")
    axis.set_label_text(labels[-1])
    kernels = [in_use(memory.kernels) for memory in memories.values()]
    gaps = np.diff(np.asarray(kernels[-1].centers, np.float64))
    uneven = len(gaps) > 0 and gaps.max() >= _UNEVEN * gaps.min()
    if uneven:
        getattr(ax, f"set_{axis_name}scale")("symlog", linthresh=gaps.min())
    z = np.unique(np.concatenate([_grid(axis, pair) for pair in kernels]))
    if uneven:
        _set_decades(axis, gaps.min(), np.abs(z).max())
    getattr(ax, f"set_{axis_name}lim")(z[0], z[-1])
    return ax, z


def _set_decades(axis: Any, smallest: float, largest: float) -> None:
    """Set ticks at 0 and at two powers of ten on each side, with room for labels."""
    low, high = np.ceil(np.log10(smallest)), np.floor(np.log10(largest))
    middle = high - max(1, np.ceil((high - low) / 2))
    powers = 10.0 ** np.array([middle, high])
    axis.set_ticks([*-powers, 0, *powers])
    axis.set_ticks([], minor=True)


def _grid(axis: Any, kernels: Kernels) -> np.ndarray:
    """Return kernel inputs between neighbours, however unequal, and along the axis."""
    centers, widths = np.asarray(kernels, np.float64)
    margins = widths[[0, -1]] if len(centers) > 1 else np.full(2, 3.0)
    ends = centers[[0, -1]] + [-1, 1] * margins
    between = np.linspace(centers[:-1], centers[1:], 12)
    return np.append(between, _even(axis, ends, 301))


def _even(axis: Any, ends: np.ndarray, number: int) -> np.ndarray:
    """Return kernel inputs that are evenly spaced on the axis they are drawn on."""
    scale = axis.get_transform()
    first, last = scale.transform(ends)
    even = scale.inverted().transform(np.linspace(first, last, number))
    # Without rounding, so that inputs at the ends are counted.
    even[[0, -1]] = ends
    return even


def _landscape(memory: Memory, z: np.ndarray) -> np.ndarray:
    return np.asarray(_read(memory.kernels, memory.rates, z, memory.slopes))


def _local_models(memory: Memory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centres, rates and evidence of the local models in use."""
    centers = np.asarray(in_use(memory.kernels).centers)
    rates, weight = np.asarray(memory.rates, np.float64), memory.evidence_weight
    weight = np.ones(rates.shape) if weight is None else np.asarray(weight)
    return centers, rates[: len(centers)], weight[: len(centers)]


def _input_label(memory: Memory) -> str:
    if memory.history is not None:
        return "agreement of the last gradients"
    rms = memory.rms_normalized is not None and bool(np.all(memory.rms_normalized))
    return "direction / rms of its tensor" if rms else "direction"


def _draw_histogram(ax: Any, inputs: Any, edges: np.ndarray) -> None:
    values = np.ravel(_numbers("kernel_inputs", inputs))
    values = np.clip(values[np.isfinite(values)], edges[0], edges[-1])
    share = np.histogram(values, edges)[0] / max(len(values), 1)
    current = ax.figure.gca()
    below = ax.twinx()
    # `twinx` made its Axes the current one.
    ax.figure.sca(current)
    below.stairs(share, edges, fill=True, color=_GREY, alpha=0.4)
    # In the lower third, and behind the curve.
    top = max(float(share.max()), 1e-9)
    below.set(ylim=(0, 3 * top), yticks=[0, top], yticklabels=["0", f"{top:.0%}"])
    below.set_ylabel("share of gradients", loc="bottom")
    ax.set_zorder(below.get_zorder() + 1)
    ax.patch.set_visible(False)


def _numbers(name: str, values: Any, hint: str = "") -> np.ndarray:
    """Return values as an array; raise ValueError unless they are numbers."""
    try:
        array = np.asarray(values)
    except ValueError:  # parts of unequal length
        array = np.asarray(None)
    fits = jax.dtypes.issubdtype(array.dtype, np.number)
    require(fits, name, "be an array of numbers", values, hint)
    return array
