"""How memories look: landscapes, their history, what a transfer changes, rates.

Functions take numbers and an Axes of matplotlib and return it. Colours are told apart
by colour-blind readers, on white and on black.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from metalr_optax.memory import Memory, check_memory, read

# From Okabe and Ito's palette: those that are seen on white and on black.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_GREY = "#888888"
_DASHES = ("-", "--", "-.", ":")
# With gaps that differ more than this, kernels are drawn on a logarithmic axis.
_UNEVEN = 10.0
_RATE = "learning rate"
_BARS = 40
# With more labels than this the legend stands beside the picture.
_MANY = 8

_read = jax.jit(read)


def plot_memory(memory: Memory, ax: Any = None, *, addresses: Any = None) -> Any:
    r"""Draw the landscape of a memory: the rate :math:`\eta(z)` for every address.

    Dots are the rates of the local models, as large as the evidence they have had; the
    landscape between them is their weighted mean. Bars below are a histogram of where
    gradients fell (their share per bar, on the right axis).

    Args:
      memory: M local models, as :func:`metalr_optax.get_memory` returns them by label.
      ax: :class:`matplotlib.axes.Axes`; default: the current one.
      addresses: [n], where the memory was looked up, as
        :func:`metalr_optax.get_addresses` returns it by label. Those outside of the
        local models are counted in the outermost bars, those that are not finite in
        none.

    Returns:
      The Axes, logarithmic in the rate.

    Raises:
      ValueError: not a memory, or addresses that are no numbers.
      ImportError: matplotlib is missing: ``pip install 'metalr-optax[plots]'``.

    Examples:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import Memory, linspace_kernels, plot_memory
      >>> memory = Memory(linspace_kernels(2.0, 5), np.array([.1, .2, .4, .2, .1]))
      >>> ax = plot_memory(memory, Figure().subplots(), addresses=np.array([-1., 0.5]))
      >>> curve = ax.lines[0].get_ydata()
      >>> bool(0.35 < curve.max() < 0.4), ax.get_yscale()
      (True, 'log')

    .. seealso:: :func:`plot_transfer` for two of them.
    """
    check_memory("memory", memory, (0.0, np.inf))
    ax = _axes(ax)
    z, centers = _grid(memory), np.asarray(memory.kernels.centers)
    rates = np.asarray(memory.rates, np.float64)
    ax.plot(z, _landscape(memory, z), color=_COLORS[0], label="landscape")
    counts = np.ones(len(rates)) if memory.counts is None else np.array(memory.counts)
    share = counts / max(float(counts.max()), 1e-30)
    ax.scatter(
        centers,
        rates,
        s=6 + 60 * share,
        color=_COLORS[0],
        label="local models, by evidence",
        zorder=3,
    )
    _finish_addresses(ax.xaxis, memory, z)
    _finish_rates(ax, rates)
    if addresses is not None:
        _draw_histogram(ax, addresses, _even(memory, z[0], z[-1], _BARS + 1))
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
    if not memories:
        raise ValueError("memories must hold at least one step, got none")
    steps = sorted(memories)
    first = memories[steps[0]]
    for step in steps:
        check_memory(f"memories[{step}]", memories[step], (0.0, np.inf))
        if not _same_kernels(memories[step], first):
            raise ValueError(
                f"memories must have the same kernels, got others at {step}"
            )
    ax = _axes(ax)
    ax.set_xlabel("step")
    if len(first.rates) == 1:
        rates = np.array([float(memories[step].rates[0]) for step in steps])
        ax.plot(steps, rates, color=_COLORS[0])
        _finish_rates(ax, rates)
        return ax
    from matplotlib.colors import LogNorm

    z = _grid(first)
    columns = np.stack([_landscape(memories[step], z) for step in steps], axis=1)
    image = ax.pcolormesh(
        steps,
        z,
        columns,
        norm=LogNorm(*_range(columns)),
        cmap="cividis",
        shading="nearest",
        rasterized=True,
    )
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label=_RATE)
    _finish_addresses(ax.yaxis, first, z)
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
      ValueError: not two memories, or of two kinds of address.
      ImportError: see :func:`plot_memory`.

    Examples:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import Memory, linspace_kernels, plot_transfer
      >>> kernels = linspace_kernels(2.0, 5)
      >>> one, other = (Memory(kernels, np.full(5, rate)) for rate in (0.1, 0.2))
      >>> ax = plot_transfer(one, other, Figure().subplots())
      >>> [line.get_label() for line in ax.lines]
      ['before', 'after']
    """
    named = {"before": before, "after": after}
    for name, memory in named.items():
        check_memory(name, memory, (0.0, np.inf))
    ax = _axes(ax)
    if _address_label(before) != _address_label(after):
        raise ValueError(
            f"before and after must have the same kind of address, got "
            f"{_address_label(before)!r} and {_address_label(after)!r}"
        )
    z = np.union1d(_grid(before), _grid(after))
    styles = ((_GREY, "--"), (_COLORS[0], "-"))
    for (name, memory), (color, dash) in zip(named.items(), styles, strict=True):
        ax.plot(z, _landscape(memory, z), color=color, linestyle=dash, label=name)
    _finish_addresses(ax.xaxis, after, z)
    _finish_rates(ax, np.concatenate([line.get_ydata() for line in ax.lines[-2:]]))
    ax.legend()
    return ax


def plot_rates(rates: Mapping[str, Any], ax: Any = None, *, steps: Any = None) -> Any:
    """Draw the effective rate of every layer over time.

    Args:
      rates: label -> [T], or [T, 3] with mean, smallest and largest, which are drawn
        as a band: what :func:`metalr_optax.summarize_memory` logs as ``rate_mean/``,
        ``rate_min/`` and ``rate_max/``.
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
    if not rates:
        raise ValueError("rates must hold at least one label, got none")
    ax = _axes(ax)
    lines = []
    for number, (label, values) in enumerate(rates.items()):
        values = np.asarray(values)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] not in (1, 3):
            raise ValueError(
                f"rates[{label!r}] must have shape [T] or [T, 3], got {values.shape}"
            )
        x = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
        color = _COLORS[number % len(_COLORS)]
        dash = _DASHES[number // len(_COLORS) % len(_DASHES)]
        lines += ax.plot(x, values[:, 0], color=color, linestyle=dash, label=label)
        if values.shape[1] == 3:
            ax.fill_between(x, *values.T[1:], color=color, alpha=0.2, linewidth=0)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel(_RATE)
    beside = {
        "loc": "upper left",
        "bbox_to_anchor": (1.0, 1.0),
        "ncols": -(-len(rates) // 16),
        "fontsize": "x-small",
        "frameon": False,
    }
    # By hand, or labels that begin with an underscore would be left out.
    ax.legend(lines, list(rates), **(beside if len(rates) > _MANY else {}))
    return ax


def _axes(ax: Any) -> Any:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'metalr-optax[plots]'"
        ) from error
    return matplotlib.pyplot.gca() if ax is None else ax


def _finish_rates(ax: Any, rates: np.ndarray) -> None:
    """Label the axis of rates, and show at least a factor of two of it."""
    ax.set_yscale("log")
    ax.set_ylabel(_RATE)
    low, high = _range(rates)
    ax.set_ylim(low / 1.2, high * 1.2)


def _range(rates: np.ndarray) -> tuple[float, float]:
    """Return the limits of rates, wide enough that rounding does not fill a picture."""
    positive = rates[rates > 0]
    if len(positive) == 0:
        return 0.1, 1.0
    low, high = float(positive.min()), float(positive.max())
    wider = max(1.0, np.sqrt(2 * low / high))
    return low / wider, high * wider


def _same_kernels(one: Memory, other: Memory) -> bool:
    """Return whether kernels are the same but for the precision they are held in."""
    if np.shape(one.rates) != np.shape(other.rates):
        return False
    arrays = [np.asarray(a, np.float64) for a in (*one.kernels, *other.kernels)]
    centers, widths, other_centers, other_widths = arrays
    return bool(
        np.all(np.abs(centers - other_centers) <= 1e-3 * widths)
        and np.allclose(widths, other_widths, rtol=1e-3)
    )


def _grid(memory: Memory) -> np.ndarray:
    """Return the addresses at which a landscape is drawn: all local models and more."""
    centers = np.asarray(memory.kernels.centers, np.float64)
    widths = np.asarray(memory.kernels.widths, np.float64)
    if len(centers) == 1:
        return centers[0] + np.linspace(-3.0, 3.0, 301)
    ends = centers[0] - widths[0], centers[-1] + widths[-1]
    # Between neighbours, however unequal they are, and evenly on the axis.
    parts = np.linspace(centers[:-1], centers[1:], 12).ravel()
    return np.unique(np.concatenate([parts, _even(memory, *ends, 301)]))


def _even(memory: Memory, first: float, last: float, number: int) -> np.ndarray:
    """Return addresses that are evenly spaced on the axis they are drawn on."""
    linear = _linear_part(memory)
    if linear is None:
        return np.linspace(first, last, number)
    from matplotlib.scale import SymmetricalLogTransform

    axis = SymmetricalLogTransform(10, linear, 1)
    start, end = np.asarray(axis.transform(np.array([first, last])))
    even = np.asarray(axis.inverted().transform(np.linspace(start, end, number)))
    # Not off by a rounding: what lies at the ends is counted.
    even[[0, -1]] = first, last
    return even


def _landscape(memory: Memory, z: np.ndarray) -> np.ndarray:
    dtype = np.result_type(np.asarray(memory.rates), np.float32)
    rates = np.asarray(memory.rates, dtype)
    return np.asarray(_read(memory._replace(rates=rates), z.astype(dtype)))


def _address_label(memory: Memory) -> str:
    relative = memory.relative is not None and bool(np.all(memory.relative))
    return "direction / rms of its tensor" if relative else "direction"


def _linear_part(memory: Memory) -> float | None:
    """Return up to which address a logarithmic axis is linear, None for a linear one.

    Log-spaced kernels, which is what has very unequal gaps, crowd around 0.
    """
    gaps = np.diff(np.asarray(memory.kernels.centers, np.float64))
    if len(gaps) == 0 or gaps.max() < _UNEVEN * gaps.min():
        return None
    return float(gaps.min())


def _finish_addresses(axis: Any, memory: Memory, z: np.ndarray) -> None:
    """Label an axis of addresses, and scale it so that local models are told apart."""
    axis.set_label_text(_address_label(memory))
    linear = _linear_part(memory)
    if linear is not None:
        getattr(axis.axes, f"set_{axis.axis_name}scale")("symlog", linthresh=linear)
        largest = float(np.abs(z).max())
        exponents = np.arange(np.ceil(np.log10(linear)), np.log10(largest))
        # At most three on each side and none next to 0, so that labels have room.
        exponents = exponents[len(exponents) > 3 :]
        powers = exponents[:: -max(1, -(-len(exponents) // 3))]
        ticks = {0.0: "0"}
        for power in powers:
            text = f"{10.0**power:g}" if abs(power) < 3 else f"$10^{{{power:g}}}$"
            ticks |= {10.0**power: text, -(10.0**power): f"-{text}"}
        axis.set_ticks(list(ticks), list(ticks.values()))
        axis.set_ticks([], minor=True)
    getattr(axis.axes, f"set_{axis.axis_name}lim")(z[0], z[-1])


def _draw_histogram(ax: Any, addresses: Any, edges: np.ndarray) -> None:
    values = np.ravel(np.asarray(addresses))
    if not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"addresses must be an array of numbers, got {addresses!r}")
    values = values[np.isfinite(values)]
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    share = counts / max(len(values), 1)
    current = ax.figure.gca()
    below = ax.twinx()
    # Which made itself the current one.
    ax.figure.sca(current)
    below.stairs(share, edges, fill=True, color=_GREY, alpha=0.4)
    # In the lower third, and behind the curve.
    highest = max(float(share.max()), 1e-9)
    below.set_ylim(0, 3 * highest)
    below.set_yticks([0, highest], ["0", f"{highest:.0%}"])
    below.set_ylabel("share of gradients", loc="bottom")
    ax.set_zorder(below.get_zorder() + 1)
    ax.patch.set_visible(False)
