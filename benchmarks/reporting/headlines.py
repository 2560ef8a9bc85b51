"""The README's two tables of results, from the raw rows."""

from collections.abc import Sequence

import numpy as np

from benchmarks.experiments.speed import Measurement
from benchmarks.methods import BASE_RATES, OURS, OURS_BY_NAME
from benchmarks.reporting.library_tables import (
    SCORES,
    count_ruined,
    count_within,
    from_rate,
    from_rates,
    over_fresh,
)
from benchmarks.reporting.statistics import SIGNIFICANT, Comparison, paired_test

_LANDSCAPES = (("memory_sgd_m21", "memory_sgd"), ("memory_adam_m21", "memory_adam"))


def format_headlines(tasks: Sequence[Comparison]) -> str:
    """Return on how many tasks a default does as well as what is tuned per task."""
    adam, sgd = SCORES
    heads = " | ".join(f"{rate:g}" for rate in BASE_RATES)
    lines = [f"| from a rate of | {heads} |", "|---|" + "---|" * len(BASE_RATES)]
    for score, bound, said in (
        (
            adam,
            1.0,
            "`memory_adam` reaches the target as soon as tuned Adam, or sooner",
        ),
        (adam, 1.5, "`memory_adam` reaches it within 1.5 times those updates"),
        (sgd, 1.0, "`memory_sgd` ends as low as tuned SGD, or lower"),
        (sgd, 1.05, "`memory_sgd` ends within 5 % of it, or lower"),
    ):
        cells = count_within(tasks, score, bound)
        cells += ["refused"] * (len(BASE_RATES) - len(cells))
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_facts(
    tasks: Sequence[Comparison],
    transfers: Sequence[Comparison],
    speeds: Sequence[Measurement],
) -> str:
    """Return the other facts, a line each."""
    runs, diverged, lost = _failures(tasks)
    given = {
        learner: ", ".join(
            f"{over_fresh(one, learner, 'end')} on the {one.problem.name}"
            for one in transfers
        )
        for learner in ("memory_sgd", "memory_adam")
    }
    times = {
        one.method: f"{one.clipped_ratio:.2f}"
        for one in speeds
        if (one.case, one.size, one.leaves) == ("update", 10**6, 1)
        and (one.method, one.kernels)
        in (("memory_sgd", 1), ("memory_adam", 1), ("paper_sgd", 20))
    }
    facts = {
        "runs of the two defaults that diverged": f"{diverged} of {runs}",
        "that ended above ten times tuned SGD": lost,
        "a memory from the end of a run of a small network: updates to the target / "
        "those of a fresh memory (seeds better : worse)": _list(given),
        "a landscape instead of one rate per layer": _landscapes(tasks),
        "time of an update of a million parameters over that of the same base behind "
        "a clip": _list(times),
    }
    lines = [f"| {what} | {measured} |" for what, measured in facts.items()]
    return "\n".join(["| | measured |", "|---|---|", *lines])


def _list(values: dict[str, str]) -> str:
    return "; ".join(f"`{name}` {value}" for name, value in values.items())


def _failures(tasks: Sequence[Comparison]) -> tuple[int, int, str]:
    """Return all runs of the defaults, those that diverged, and where others failed."""
    runs = diverged = 0
    lost: dict[str, int] = {}
    for comparison in tasks:
        name = comparison.problem.name
        for one in OURS:
            lost_here, number = count_ruined(comparison, one)
            runs += number
            if lost_here:
                lost[name] = lost.get(name, 0) + lost_here
            for found in from_rates(comparison, one) or ():
                diverged += int((~np.isfinite(found.curves)).any(axis=1).sum())
    return runs, diverged, ", ".join(f"{n} on {name}" for name, n in lost.items())


def _landscapes(tasks: Sequence[Comparison]) -> str:
    """Say on how many tasks twenty-one local models end lower or higher than one."""
    counted = {}
    for many, single in _LANDSCAPES:
        lower = higher = compared = 0
        for comparison in tasks:
            one, other = (
                from_rate(comparison, OURS_BY_NAME[name], 1e-3)
                for name in (many, single)
            )
            if one is None or other is None:
                continue
            test = paired_test(one.finals, other.finals)
            compared += 1
            lower += test.p < SIGNIFICANT and test.wins > test.losses
            higher += test.p < SIGNIFICANT and test.wins < test.losses
        counted[single] = (
            f"ends clearly lower on {lower}, higher on {higher} of {compared} tasks"
        )
    return _list(counted)
