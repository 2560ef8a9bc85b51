"""The table of what memories could see beside the value of a direction."""

import pathlib

from benchmarks.harness.store import Frame
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import from_rate, median

TASKS = (
    *("classes", "residual", "teacher", "noisy teacher", "unequal inputs"),
    *("quadratic", "rosenbrock"),
)
SEEN = ("one rate", "value", "size", "history", "smoothed")


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return updates to the target, and ends beside those of one rate."""
    found, lines = raw.load(folder / "kernel_inputs.csv.gz"), []
    for base in ("momentum", "Adam"):
        for task in TASKS:
            rows = found[found["problem"] == task]
            runs = {seen: from_rate(rows, f"{base}, {seen}", 1e-3) for seen in SEEN}
            cells = {seen: _cell(one, runs["one rate"]) for seen, one in runs.items()}
            lines.append({"base": base, "task": task, **cells})
    return {"table": raw.table(lines)}


def _cell(found: Frame, single: Frame) -> str:
    if found.empty or single.empty:
        return ""
    updates = raw.format_number(median(found["updates"]))
    if found is single:
        return f"{updates}, ends at {median(found['end']):.3g}"
    return f"{updates}, {raw.paired(found, single, 'end')}"
