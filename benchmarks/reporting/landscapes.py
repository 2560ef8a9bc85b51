"""Tables and the picture of local models that are added, widen or tilt."""

import pathlib
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import numpy as np

from benchmarks.experiments import local_models
from benchmarks.experiments.local_models import FIXED, NUMS, OPTIONS, SHOWN, Row
from benchmarks.harness.store import write_setting
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting.paper_tables import format_measure, format_updates
from benchmarks.reporting.statistics import (
    compare_ends,
    find_outcome,
    load_comparisons,
    median,
)


def format_errors(rows: Sequence[Row]) -> str:
    """Return the median error of every option by the number of local models."""
    lines = [
        "| learned besides rates | " + " | ".join(f"M = {num}" for num in NUMS) + " |",
        "|---|" + "---|" * len(NUMS),
    ]
    for option in OPTIONS:
        cells = []
        for num in NUMS:
            errors = [one.value for one in rows if one[:3] == ("error", option, num)]
            cells.append(f"{np.median(errors):.3f}")
        lines.append(f"| {option} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_tasks(folder: pathlib.Path) -> str:
    """Return a table per task: updates to the target and ends."""
    path = folder / f"{local_models.TASKS_STEM}.csv"
    problems = [SUITE[name]() for name in local_models.TASKS]
    setting, parts = write_setting({"rate": local_models.RATE}), []
    for comparison in load_comparisons(path, problems):
        problem, target, _ = comparison
        lines = [
            f"**{problem.name}**: target {target:.4g}, {problem.horizon} updates, "
            f"{len(comparison.seeds())} seeds\n",
            "| local models | updates to the target | end | end over M = 1 "
            "| interval of 95 % |",
            "|---|---|---|---|---|",
        ]
        found = {
            name: find_outcome(
                comparison, local_models.method_of(name), "fresh", setting
            )
            for name in local_models.VARIANTS
        }
        first = found["M = 1"]
        for name, one in found.items():
            if one is None or first is None:
                continue
            low, mean, high = compare_ends(one.finals, first.finals)
            beside = (f"{mean:.3f}", f"{low:.3f} to {high:.3f}")
            lines.append(
                f"| {name} | {format_updates(one)} "
                f"| {format_measure(median(one.finals))} "
                f"| {' | '.join(('', '') if one is first else beside)} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draw the known function and what memories learned of it, a panel per option."""
    options = [one for one in OPTIONS if one != FIXED]
    figure = matplotlib.figure.Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, len(options), sharey=True)

    def points(what: str, option: str) -> tuple[list[float], list[float]]:
        some = [one for one in rows if one[:4] == (what, option, SHOWN, 0)]
        return [one.at for one in some], [one.value for one in some]

    known = local_models.wanted(local_models.Z)
    for axes, option in zip(panels, options, strict=True):
        axes.plot(
            local_models.Z, known, "--", color="black", label="the known function"
        )
        for name, color in ((FIXED, "#E69F00"), (option, "#0072B2")):
            label = name if name == FIXED else "with the option"
            axes.plot(*points("curve", name), color=color, label=label, linewidth=1.8)
            axes.plot(*points("model", name), "o", color=color, markersize=5)
        number = len(points("model", option)[0])
        axes.set_title(f"{option}: {number} local models", fontsize=10)
        axes.set_xlabel("kernel input")
    # Local models that nobody reads alone may be far below.
    panels[0].set(yscale="log", ylim=(5e-3, 0.6))
    panels[0].set_ylabel("learning rate")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, facecolor="white")
