"""What a step costs: raw rows, a table and a picture."""

import csv
import pathlib

import matplotlib.figure

from benchmarks.experiments.speed import VARIANTS, Measurement
from benchmarks.harness.rows import write_csv

# Okabe and Ito's palette, brown for its yellow: told apart by colour-blind readers too.
COLORS = {
    "sgd": "#999999",
    "momentum": "#000000",
    "adam": "#0072B2",
    "dowg": "#56B4E9",
    "prodigy": "#8C6D31",
    "schedule_free_adamw": "#CC79A7",
    "memory_sgd": "#009E73",
    "memory_adam": "#E69F00",
    "paper_sgd": "#117733",
    "paper_adam": "#D55E00",
}
HEADER = (
    f"{'case':<28}{'parameters':>11}{'leaves':>7}  {'method':<23}{'M':>5}{'ms':>9}"
    f"{'x Adam':>8}{'x clip':>8}{'% step':>8}{'state':>7}{'leaves':>7}{'temp':>7}"
    f"{'compile':>9}"
)


def write_rows(measurements: list[Measurement], path: pathlib.Path) -> None:
    """Write one row per case and method."""
    write_csv(
        path,
        Measurement._fields,
        (
            [f"{value:.4g}" if isinstance(value, float) else value for value in one]
            for one in measurements
        ),
    )


def read_rows(path: pathlib.Path) -> list[Measurement]:
    """Read back what `write_rows` wrote."""
    types = Measurement.__annotations__
    with open(path, newline="") as file:
        return [
            Measurement(**{key: types[key](value) for key, value in row.items()})
            for row in csv.DictReader(file)
        ]


def logging_shares(measurements: list[Measurement]) -> dict[str, float]:
    """Return which part of a training step of the CNN logging takes, by method."""
    cnn = (one for one in measurements if one.case.startswith("MNIST CNN"))
    trained = {one.method: one for one in cnn}
    shares = {}
    for method, logged in trained.items():
        name = method.removesuffix(", logged")
        if name != method:
            plain = trained[name]
            step = plain.milliseconds / plain.share
            shares[name] = (logged.milliseconds - plain.milliseconds) / step
    return shares


def format_row(one: Measurement) -> str:
    """Return one line of the table."""
    kernels = one.kernels or ""
    share = f"{100 * one.share:.1f}" if one.share else ""
    line = (
        f"{one.case:<28}{one.size:>11,}{one.leaves:>7}  {one.method:<23}{kernels:>5}"
        f"{one.milliseconds:>9.2f}{one.ratio:>8.2f}{one.clipped_ratio:>8.2f}{share:>8}"
        f"{one.state_bytes:>7.2f}{one.state_leaves:>7}{one.temporary_bytes:>7.1f}"
        f"{one.compile_seconds:>7.2f} s"
    )
    return line.rstrip()


def format_table(measurements: list[Measurement]) -> str:
    """Return the table of the README: ratios by size, by leaves and in training."""
    single = [one for one in measurements if one.case == "update" and one.leaves == 1]
    sizes = sorted({one.size for one in single})
    lines = [
        "Time of a whole update by number of parameters, over that of the same base",
        "behind optax.clip_by_global_norm: Adam, or momentum for *_sgd and momentum",
        f"{'method':<24}{'M':>5}"
        + "".join(f"{size:>12,}" for size in sizes)
        + f"{'state':>8}{'compile':>9}",
    ]
    for method, num in dict.fromkeys((one.method, one.kernels) for one in single):
        # A case may be there twice: the later is beside other M.
        ours = {o.size: o for o in single if (o.method, o.kernels) == (method, num)}
        ratios = [
            f"{ours[size].clipped_ratio:.2f}" if size in ours else "" for size in sizes
        ]
        one = ours.get(10**7) or ours[max(ours)]
        lines.append(
            f"{method:<24}{num or '':>5}"
            + "".join(f"{ratio:>12}" for ratio in ratios)
            + f"{one.state_bytes:>8.2f}{one.compile_seconds:>7.2f} s"
        )
    lines += [
        "",
        f"{'case':<28}{'parameters':>11}{'leaves':>7}  {'method':<23}{'ratio':>6}"
        f"{'% step':>8}{'compile':>9}",
    ]
    for one in measurements:
        if one.leaves > 1:
            share = f"{100 * one.share:.1f}" if one.share else ""
            lines.append(
                f"{one.case:<28}{one.size:>11,}{one.leaves:>7}  {one.method:<23}"
                f"{one.clipped_ratio:>6.2f}{share:>8}{one.compile_seconds:>7.2f} s"
            )
    return "\n".join(line.rstrip() for line in lines)


def draw(measurements: list[Measurement], path: pathlib.Path) -> None:
    """Draw the ratio to Adam by size and by M, and the bytes of state."""
    figure = matplotlib.figure.Figure(figsize=(13, 4), layout="constrained")
    by_size, by_kernels, state = figure.subplots(1, 3)
    single = [one for one in measurements if one.case == "update" and one.leaves == 1]
    usual = dict(VARIANTS)
    for method, color in COLORS.items():
        num = usual.get(method, 0)
        ours = [one for one in single if (one.method, one.kernels) == (method, num)]
        points = {one.size: one for one in ours}
        sizes = sorted(points)
        by_size.plot(
            sizes,
            [points[size].clipped_ratio for size in sizes],
            "o-",
            color=color,
            label=method,
        )
        if points:
            largest = points[max((s for s in sizes if s <= 10**7), default=sizes[0])]
            bar = state.barh(method, largest.state_bytes, color=color)
            state.bar_label(bar, fmt="%.2g", padding=3)
    for size, style in ((10**6, "o-"), (10**7, "s--")):
        points = {
            one.kernels: one.clipped_ratio
            for one in single
            if one.size == size and one.method == "paper_sgd"
        }
        by_kernels.plot(
            sorted(points),
            [points[num] for num in sorted(points)],
            style,
            color=COLORS["paper_sgd"],
            label=f"paper_sgd, {size:,} parameters",
        )
    by_size.set_yscale("log", base=2)
    by_size.yaxis.set_major_formatter("{x:g}")
    by_kernels.set_xlim(0.8, 1250)  # also where nothing was measured
    by_kernels.set_ylim(0, None)
    state.set_xlim(0, 18)
    for axis in (by_size, by_kernels):
        axis.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.set_ylabel("time of an update / clip and base")
    by_size.set_xlabel("parameters (memory_: M = 1, paper_: M = 20)")
    by_kernels.set_xlabel("local models in the memory, M")
    by_kernels.legend(frameon=False)
    state.set_xlabel("bytes of state per parameter")
    state.invert_yaxis()
    figure.legend(
        *by_size.get_legend_handles_labels(), loc="outside lower center", ncols=5
    )
    figure.savefig(path, dpi=110, facecolor="white")
