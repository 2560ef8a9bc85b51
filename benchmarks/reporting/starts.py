"""The picture of the README: the test loss over steps, from five rates."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.harness.store import Frame, write_setting
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw

PROBLEM = "starts"
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
METHODS = {
    "adam": "Adam",
    "memory_adam": "**memory_adam**",
    "adam, decay": "Adam, linear decay",
    "memory_adam, averaged": "**memory_adam**, averaged",
}
_PANELS = {
    "adam": "Adam keeps\nthe rate it is given",
    "memory_adam": "memory_adam\nlearns its rates",
}


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the table; draw the picture."""
    rows = raw.load(folder / "starts.csv.gz")
    draw_starts(rows, folder / "starts.png")
    cells = raw.write_cells(ends(rows), "{:.3g}", "not finite").rename(columns=METHODS)
    return {"table": raw.table(cells.reset_index(names="from a rate of"))}


def ends(rows: Frame) -> Frame:
    """Return the median ends [rates, methods]."""
    found = rows.pivot_table("end", "setting", "method", aggfunc="median")
    found = found.loc[[write_setting({"rate": rate}) for rate in RATES], list(METHODS)]
    return found.set_axis([_short(rate) for rate in RATES])


def draw_starts(rows: Frame, path: pathlib.Path) -> None:
    """Draw both optimizers from every rate: medians and quartiles of the seeds."""
    figure, (panels,) = draw.panels(1, 2, (2.8, 3.9), sharex=True, sharey=True)
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(RATES)))
    for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
        for rate, color in zip(RATES, colors, strict=True):
            style = {"color": color, "linewidth": 2.5, "label": _short(rate)}
            draw.draw_runs(axes, raw.from_rate(rows, name, rate), **style)
        axes.set(title=title, yscale="log", xticks=[0, 200, 400])
        axes.grid(alpha=0.3)
    draw.use_numbers(panels[0].yaxis, [0.1, 0.2, 0.5, 1, 2])
    panels[0].set_ylabel("test loss")
    figure.supxlabel("steps")
    spaces = {"columnspacing": 1.0, "handlelength": 0.8, "handletextpad": 0.3}
    # A phone shows it at 360 pixels: 10 points there are 15 here.
    title = "learning rate at the start"
    draw.save(figure, path, legend=len(RATES), dpi=160, title=title, **spaces)


def _short(rate: float) -> str:
    """Return a power of ten such as 1e-5."""
    return f"{rate:.0e}".replace("e-0", "e-")
