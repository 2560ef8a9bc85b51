"""Tables and the picture of what a step costs."""

import pathlib

import pandas as pd

from benchmarks.harness.store import Frame
from benchmarks.methods import COLORS
from benchmarks.reporting import draw
from benchmarks.reporting.rows import table, write_cells

USUAL = {"memory_sgd": 1, "memory_adam": 1, "paper_sgd": 20}
_DRAWN = ("adam", "momentum", "prodigy", "memory_adam", "memory_sgd", "paper_sgd")
_SIZES = {"size": "parameters", "leaves": "tensors"}


def clip_of(method: str) -> str:
    """Return the baseline that clips and has the base of a method."""
    if "lion" in method:
        return "clip + lion"
    is_sgd = "sgd" in method or "momentum" in method
    return "clip + momentum" if is_sgd else "clip + adam"


def load(folder: pathlib.Path) -> Frame:
    """Return a row a case and method."""
    return pd.read_csv(folder / "speed.csv")


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the picture."""
    rows = load(folder)
    draw_speed(rows, folder / "speed.png")
    return {
        "headlines": table([times(rows)]),
        "sizes": sizes_table(rows),
        "cases": cases_table(rows),
        "compiled": compiled_table(rows),
        "progress": progress_table(rows),
    }


def times(rows: Frame) -> dict[str, str]:
    """Return the time of a million parameters over a clip and the base, by method."""
    single = in_one_tensor(rows).set_index(["method", "kernels", "size"])
    ratios = single["clipped_ratio"].reindex([(*key, 10**6) for key in USUAL.items()])
    return dict(zip(USUAL, ratios.map("{:.2f}".format), strict=True))


def in_one_tensor(rows: Frame) -> Frame:
    """Return the updates of one tensor; of what is there twice the later."""
    single = rows[(rows["case"] == "update") & (rows["leaves"] == 1)]
    return single.drop_duplicates(["method", "kernels", "size"], keep="last")


def sizes_table(rows: Frame) -> str:
    """Return ratios by number of parameters, bytes of state and time to compile."""
    single, keys = in_one_tensor(rows), ["method", "kernels"]
    ratios = single.pivot_table("clipped_ratio", keys, "size", sort=False)
    cells = write_cells(ratios.sort_index(axis=1)).rename(columns="{:,}".format)
    usual = single[single["size"] <= 10**7].sort_values("size").groupby(keys).last()
    cells["state"] = usual["state_bytes"].map("{:.2f}".format)
    cells["compile"] = usual["compile_seconds"].map("{:.2f} s".format)
    cells = cells.reset_index(names=["method", "M"])
    return table(cells.assign(M=cells["M"].replace(0, "").astype(str)))


def cases_table(rows: Frame) -> str:
    """Return ratios by number of tensors, and in training."""
    found = rows[(rows["leaves"] > 1) & ~rows["case"].str.startswith("compile")]
    cells = _describe(found).assign(method=found["method"])
    cells.insert(0, "case", found["case"])
    cells["ratio"] = found["clipped_ratio"].map("{:.2f}".format)
    cells["% of a step"] = (
        (100 * found["share"]).map("{:.1f}".format).replace("0.0", "")
    )
    cells["compile"] = found["compile_seconds"].map("{:.2f} s".format)
    return table(cells)


def _describe(found: Frame) -> Frame:
    return found[list(_SIZES)].map("{:,}".format).rename(columns=_SIZES)


def compiled_table(rows: Frame) -> str:
    """Return tracing and compiling, over that of clip + adam, and of the own base."""
    found = rows[rows["case"].str.startswith("compile")]
    keys = ["case", "leaves", "method"]
    seconds = found.set_index(keys)["compile_seconds"]
    cells = _describe(found).assign(method=found["method"])
    cells["seconds"] = found["compile_seconds"].map("{:.2f}".format)
    own = found["method"].map(clip_of)
    for head, bases in {"/ clip + adam": "clip + adam", "/ clip and base": own}.items():
        below = seconds.loc[pd.MultiIndex.from_frame(found.assign(method=bases)[keys])]
        ratios = found["compile_seconds"] / below.to_numpy()
        cells[head] = ratios.map("{:.2f}".format)
    cells["state"] = found["state_bytes"].map("{:.3f}".format)
    cells["temporary"] = found["temporary_bytes"].map("{:.2f}".format)
    return table(cells)


def progress_table(rows: Frame) -> str:
    """Return what a schedule adds to the time of an update with a rate for a layer."""
    found = rows[rows["case"] == "progress"]
    times = found.pivot_table("milliseconds", list(_SIZES), "method").reset_index()
    ratios = times["by progress"] / times["one rate"]
    over = {"by progress / one rate": ratios.map("{:.2f}".format)}
    return table(_describe(times).assign(**over))


def draw_speed(rows: Frame, path: pathlib.Path) -> None:
    """Draw the ratio to a clip and the base by size, and the bytes of state."""
    figure, ((sizes, state),) = draw.panels(1, 2, (5.4, 4.2))
    single = in_one_tensor(rows).sort_values("size").set_index(["method", "kernels"])
    for name in _DRAWN:
        found = single[single.index == (name, USUAL.get(name, 0))]
        color, largest = COLORS[name], found[found["size"] <= 10**7].tail(1)
        sizes.plot(found["size"], found["clipped_ratio"], "o-", color=color, label=name)
        bar = state.barh([name] * len(largest), largest["state_bytes"], color=color)
        state.bar_label(bar, fmt="%.2g", padding=3)
    sizes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    sizes.set(xscale="log", xlabel="parameters")
    sizes.set_ylabel("time of a step / clip and base")
    sizes.set_yscale("log", base=2)
    sizes.yaxis.set_major_formatter("{x:g}")
    state.set(xlim=(0, 19), xlabel="bytes of state per parameter")
    state.invert_yaxis()
    draw.save(figure, path, legend=3)
