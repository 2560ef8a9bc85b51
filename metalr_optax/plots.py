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


def plot_memory(memory: Memory, ax: Any = None, *, addresses: Any = None) -> Any:
    r"""Draw the landscape of a memory: the rate :math:`\eta(z)` for every address.

    Dots are the local models, as large as the evidence they have had. Bars below are a
    histogram of where gradients fell (their share per bar, on the right axis).

    Args:
      memory: M local models, as :func:`metalr_optax.get_memory` returns them by label.
      ax: :class:`matplotlib.axes.Axes`; default: the current one.
      addresses: [n], where the memory was looked up, as
        :func:`metalr_optax.get_addresses` returns it by label. Those outside of the
        local models are counted in the outermost bars.

    Returns:
      The Axes, logarithmic in the rate.

    Raises:
      ValueError: not a memory.
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
    kernels, rates = memory.kernels, np.asarray(memory.rates)
    z = _grid(memory)
    (line,) = ax.plot(z, _landscape(memory, z), color=_COLORS[0], label="$\\eta(z)$")
    counts = np.ones(len(rates)) if memory.counts is None else np.array(memory.counts)
    share = counts / max(float(counts.max()), 1e-30)
    ax.scatter(
        np.asarray(kernels.centers),
        _landscape(memory, np.asarray(kernels.centers)),
        s=6 + 60 * share,
        color=line.get_color(),
        label="local model, by evidence",
        zorder=3,
    )
    if addresses is not None:
        _draw_histogram(ax, np.ravel(addresses), _bins(memory, z))
    _scale_addresses(ax.xaxis, memory)
    ax.set(xlim=(z[0], z[-1]), xlabel=_address_label(memory), ylabel=_RATE)
    ax.set_yscale("log")
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
        if not all(map(np.array_equal, memories[step].kernels, first.kernels)):
            raise ValueError(
                f"memories must have the same kernels, got others at {step}"
            )
    ax = _axes(ax)
    ax.set_xlabel("step")
    if len(first.rates) == 1:
        rates = [float(memories[step].rates[0]) for step in steps]
        ax.plot(steps, rates, color=_COLORS[0])
        ax.set_yscale("log")
        ax.set_ylabel(_RATE)
        return ax
    from matplotlib.colors import LogNorm

    z = _grid(first)
    columns = np.stack([_landscape(memories[step], z) for step in steps], axis=1)
    image = ax.pcolormesh(
        steps,
        z,
        columns,
        norm=LogNorm(),
        cmap="cividis",
        shading="nearest",
        rasterized=True,
    )
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label=_RATE)
    _scale_addresses(ax.yaxis, first)
    ax.set_ylabel(_address_label(first))
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
      ValueError: not two memories.
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
    ax = _axes(ax)
    named = {"before": before, "after": after}
    for name, memory in named.items():
        check_memory(name, memory, (0.0, np.inf))
    grids = [_grid(memory) for memory in named.values()]
    z = np.union1d(*grids)
    styles = ((_GREY, "--"), (_COLORS[0], "-"))
    for (name, memory), (color, dash) in zip(named.items(), styles, strict=True):
        ax.plot(z, _landscape(memory, z), color=color, linestyle=dash, label=name)
    _scale_addresses(ax.xaxis, after)
    ax.set(xlim=(z[0], z[-1]), xlabel=_address_label(after), ylabel=_RATE)
    ax.set_yscale("log")
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
      The Axes, logarithmic in the rate, with a legend of the labels.

    Raises:
      ValueError: arrays of another shape.
      ImportError: see :func:`plot_memory`.

    Examples:
      >>> from matplotlib.figure import Figure
      >>> from metalr_optax import plot_rates
      >>> ax = plot_rates({"dense": [0.001, 0.01, 0.1]}, Figure().subplots())
      >>> ax.lines[0].get_xydata()[-1].tolist()
      [3.0, 0.1]
    """
    ax = _axes(ax)
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
        ax.plot(x, values[:, 0], color=color, linestyle=dash, label=label)
        if values.shape[1] == 3:
            ax.fill_between(x, *values.T[1:], color=color, alpha=0.2, linewidth=0)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel(_RATE)
    ax.legend()
    return ax


def _axes(ax: Any) -> Any:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'metalr-optax[plots]'"
        ) from error
    return matplotlib.pyplot.gca() if ax is None else ax


def _grid(memory: Memory) -> np.ndarray:
    """Return the addresses at which a landscape is drawn: all local models and more."""
    centers = np.asarray(memory.kernels.centers, np.float64)
    widths = np.asarray(memory.kernels.widths, np.float64)
    if len(centers) == 1:
        return centers[0] + np.linspace(-3.0, 3.0, 301)
    ends = centers[0] - widths[0], centers[-1] + widths[-1]
    # Between neighbours, however unequal they are.
    parts = np.linspace(centers[:-1], centers[1:], 12).ravel()
    return np.unique(np.concatenate([ends, parts]))


def _landscape(memory: Memory, z: np.ndarray) -> np.ndarray:
    dtype = np.asarray(memory.rates).dtype
    return np.asarray(jax.jit(read)(memory, z.astype(dtype)))


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


def _scale_addresses(axis: Any, memory: Memory) -> None:
    linear = _linear_part(memory)
    if linear is None:
        return
    set_scale = getattr(axis.axes, f"set_{axis.axis_name}scale")
    set_scale("symlog", linthresh=linear)
    centers = np.asarray(memory.kernels.centers)
    decades = np.arange(
        np.ceil(np.log10(linear)), np.log10(np.abs(centers).max()) + 0.1
    )
    # At most three on each side, so that labels have room.
    ticks = 10.0 ** decades[:: -max(1, round(len(decades) / 3))]
    ticks = np.concatenate([-ticks, [0.0], ticks])
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _bins(memory: Memory, z: np.ndarray) -> np.ndarray:
    """Return the edges of bars that look equally wide."""
    linear = _linear_part(memory)
    if linear is None:
        return np.linspace(z[0], z[-1], 41)
    positive = np.geomspace(linear, max(-z[0], z[-1]), 20)
    return np.concatenate([-positive[::-1], [0.0], positive])


def _draw_histogram(ax: Any, addresses: np.ndarray, edges: np.ndarray) -> None:
    counts, _ = np.histogram(np.clip(addresses, edges[0], edges[-1]), edges)
    share = counts / max(len(addresses), 1)
    highest = max(float(share.max()), 1e-30)
    below = ax.twinx()
    below.stairs(share, edges, fill=True, color=_GREY, alpha=0.4)
    # In the lower third, and behind the curve.
    below.set_ylim(0, 3 * highest)
    below.set_yticks([0, highest], ["0", f"{highest:.0%}"])
    below.set_ylabel("share of gradients", loc="bottom")
    ax.set_zorder(below.get_zorder() + 1)
    ax.patch.set_visible(False)
