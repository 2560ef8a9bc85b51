"""The table of what memories could see beside the value of a direction."""

import pathlib

from benchmarks.experiments import kernel_inputs
from benchmarks.harness.store import write_setting
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting.paper_tables import format_number
from benchmarks.reporting.statistics import (
    SIGNIFICANT,
    Comparison,
    Outcome,
    find_outcome,
    load_comparisons,
    median,
    paired_test,
)


def format_inputs(folder: pathlib.Path) -> str:
    """Return the table: updates to the target, and ends beside those of one rate."""
    problems = [SUITE[name]() for name in kernel_inputs.PROBLEMS]
    path = folder / f"{kernel_inputs.STEM}.csv"
    comparisons = load_comparisons(path, problems)
    lines = [
        "| base | task | " + " | ".join(kernel_inputs.SEEN) + " |",
        "|---|---|" + "---|" * len(kernel_inputs.SEEN),
    ]
    for base in kernel_inputs.BASES:
        for one in comparisons:
            cells = [_cell(one, base, seen) for seen in kernel_inputs.SEEN]
            if any(cells):
                lines.append(f"| {base} | {one.problem.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(comparison: Comparison, base: str, seen: str) -> str:
    found, single = (
        _outcome(comparison, base, one) for one in (seen, kernel_inputs.SEEN[0])
    )
    if found is None or single is None:
        return ""
    updates, end = format_number(median(found.updates)), median(found.finals)
    if seen == kernel_inputs.SEEN[0]:
        return f"{updates}, ends at {end:.3g}"
    test = paired_test(found.finals, single.finals)
    ratio = f"{end / median(single.finals):.2f}"
    ratio = f"**{ratio}**" if test.p < SIGNIFICANT else ratio
    return f"{updates}, {ratio} ({test.wins} : {test.losses})"


def _outcome(comparison: Comparison, base: str, seen: str) -> Outcome | None:
    method = kernel_inputs.method_of(base, seen)
    return find_outcome(comparison, method, "fresh", write_setting(method.default))
