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
            single = runs["one rate"]
            if len(single):
                cells = {seen: _cell(one, single) for seen, one in runs.items()}
                lines.append({"base": base, "task": task, **cells})
    versions = ", ".join(sorted(set(found["version"])))
    return {"table": raw.table(lines), "versions": versions}


def _cell(found: Frame, single: Frame) -> str:
    if found.empty:
        return ""
    updates, end = raw.format_number(median(found["updates"])), median(found["end"])
    if found is single:
        return f"{updates}, ends at {end:.3g}"
    test = raw.paired_test(found["end"], single["end"])
    ratio = raw.bold_if(f"{end / median(single['end']):.2f}", test)
    return f"{updates}, {ratio} ({test.wins} : {test.losses})"
