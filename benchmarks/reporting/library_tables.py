"""Tables of what the library's own optimizers do: suite, transfer, samples, speed."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.experiments import noise_floor, sampling, suite, transfer
from benchmarks.experiments.speed import Measurement, clip_of
from benchmarks.harness.costs import Cost
from benchmarks.harness.store import final, find, read_runs, write_setting
from benchmarks.harness.sweep import trials_done
from benchmarks.methods import (
    BASELINES,
    LABELS,
    METHODS,
    OURS,
    OURS_BY_NAME,
    VARIANTS,
    Variant,
    plain,
)
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting.paper_tables import (
    format_measure,
    format_paired,
    format_updates,
    ratio,
)
from benchmarks.reporting.statistics import (
    Comparison,
    Outcome,
    compare_ends,
    find_outcome,
    fixed,
    load_comparisons,
    median,
    most_tuned,
)

_USUAL = transfer.FRESH[-1]  # the base rate that all is beside
# What changes one thing, and what it is changed from.
_PAIRS = (
    ("memory_sgd_m21", "memory_sgd"),
    ("memory_adam_m21", "memory_adam"),
    ("memory_sgd_m21_sampled", "memory_sgd_m21"),
    ("memory_adam_sampled", "memory_adam"),
)
SPEED_HEADER = (
    f"{'case':<28}{'parameters':>11}{'leaves':>7}  {'method':<23}{'M':>5}{'ms':>9}"
    f"{'x Adam':>8}{'x clip':>8}{'% step':>8}{'state':>7}{'leaves':>7}{'temp':>7}"
    f"{'compile':>9}"
)


class Row(NamedTuple):
    """How one base rate, or one method, did on a problem."""

    label: str
    method: str
    found: Outcome


def load_suite(folder: pathlib.Path) -> list[Comparison]:
    """Return what `suite.csv` in a folder knows of every task."""
    path = folder / f"{suite.STEM}.csv"
    return load_comparisons(path, [load() for load in SUITE.values()])


def load_transfer(folder: pathlib.Path) -> list[Comparison]:
    """Return what `transfer.csv` in a folder knows of every larger network."""
    path = folder / f"{transfer.STEM}.csv"
    return load_comparisons(path, [one.large for one in transfer.load_growths()])


def format_task(comparison: Comparison, costs: Sequence[Cost]) -> str:
    """Return the table of one problem."""
    adam, sgd = (most_tuned(comparison, name) for name in ("adam", "sgd"))
    cost = {one.method: one for one in costs if one.problem == comparison.problem.name}
    lines = [
        f"**{comparison.problem.name}**: target {comparison.target:.4g}, "
        f"{len(comparison.seeds())} seeds, {comparison.problem.horizon} updates\n",
        "| method | updates to the target | over tuned Adam | end | over tuned SGD "
        "| ruined | ms an update | bytes a parameter |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, name, found in rows_of(comparison):
        updates = adam and ratio(median(found.updates), median(adam.updates))
        end = median(found.finals)
        ends = sgd and ratio(end, median(sgd.finals))
        paid = cost.get(name)
        lines.append(
            f"| {label} | {format_updates(found)} | {updates or ''} "
            f"| {format_measure(end)} | {ends or ''} "
            f"| {(sgd and ruined(found, sgd)) or ''} "
            + (
                f"| {paid.milliseconds:.3g} | {paid.state_bytes:.3g} |"
                if paid
                else "| | |"
            )
        )
    return "\n".join(lines)


def ruined(found: Outcome, tuned: Outcome) -> int:
    """Return how many runs end above ten times the end of a tuned one, or nowhere."""
    ends = found.finals
    return int((~np.isfinite(ends) | (ends > 10.0 * median(tuned.finals))).sum())


class Score(NamedTuple):
    """What one of our optimizers is measured by, over a baseline tuned per task."""

    one: Variant
    what: str
    baseline: str
    value: Callable[[Outcome], float]
    bounds: tuple[float, float]  # on how many tasks is it at most that?


SCORES = (
    Score(
        OURS[0],
        "updates to the target, over tuned Adam",
        "adam",
        lambda found: median(found.updates),
        (1.0, 1.5),
    ),
    Score(
        OURS[1],
        "end, over tuned SGD",
        "sgd",
        lambda found: median(found.finals),
        (1.0, 1.05),
    ),
)


def format_base_rates(comparisons: Sequence[Comparison]) -> str:
    """Return both optimizers from every base rate, over the tuned baseline."""
    return "\n\n".join(_format_score(comparisons, score) for score in SCORES)


def _format_score(comparisons: Sequence[Comparison], score: Score) -> str:
    one, value = score.one, score.value
    heads = " | ".join(f"from {rate:g}" for rate in one.rates)
    lines = [f"| {one.label}: {score.what} | {heads} | ruined |"]
    lines.append("|---|" + "---|" * (len(one.rates) + 1))
    for comparison in comparisons:
        tuned = most_tuned(comparison, score.baseline)
        found = from_rates(comparison, one)
        if tuned is None or found is None:
            continue
        cells = " | ".join(ratio(value(mine), value(tuned)) for mine in found)
        lost, runs = count_ruined(comparison, one)
        lines.append(f"| {comparison.problem.name} | {cells} | {lost} of {runs} |")
    for bound in score.bounds:
        cells = " | ".join(count_within(comparisons, score, bound))
        lines.append(f"| *tasks of at most {bound:g}* | {cells} | |")
    return "\n".join(lines)


def count_within(
    comparisons: Sequence[Comparison], score: Score, bound: float
) -> list[str]:
    """Return from every base rate on how many tasks the score is at most a bound."""
    over = []
    for comparison in comparisons:
        tuned = most_tuned(comparison, score.baseline)
        found = from_rates(comparison, score.one)
        if tuned is not None and found is not None:
            best = score.value(tuned)
            # Never where tuned never gets there either is no success.
            values = [score.value(mine) for mine in found]
            over.append([v / best if np.isfinite(v) else np.inf for v in values])
    counts = (np.array(over).reshape(-1, len(score.one.rates)) <= bound).sum(axis=0)
    return [f"{count} of {len(over)}" for count in counts]


def count_ruined(comparison: Comparison, one: Variant) -> tuple[int, int]:
    """Return how many runs are ruined, of how many, from all base rates."""
    sgd, found = most_tuned(comparison, "sgd"), from_rates(comparison, one)
    if sgd is None or found is None:
        return 0, 0
    return sum(ruined(mine, sgd) for mine in found), sum(len(m.finals) for m in found)


def from_rates(comparison: Comparison, one: Variant) -> list[Outcome] | None:
    """Return the runs from every base rate, or None unless all are there."""
    found = [from_rate(comparison, one, rate) for rate in one.rates]
    known = [runs for runs in found if runs is not None]
    return known if len(known) == len(found) else None


def format_variants(comparisons: Sequence[Comparison]) -> str:
    """Return the ends of what differs in one thing, seed by seed, from 0.001."""
    labels = {name: plain(one.label) for name, one in OURS_BY_NAME.items()}
    heads = [f"{labels[a]} : {labels[b]}" for a, b in _PAIRS]
    lines = [
        f"| end, ratio of medians (lower : higher) | {' | '.join(heads)} |",
        "|---|" + "---|" * len(_PAIRS),
    ]
    for comparison in comparisons:
        cells = []
        for names in _PAIRS:
            pair = [from_rate(comparison, OURS_BY_NAME[name], 1e-3) for name in names]
            known = [found for found in pair if found is not None]
            ends = [found.finals for found in known]
            cells.append(format_paired(*ends) if len(ends) == len(pair) else "")
        lines.append(f"| {comparison.problem.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def from_rate(comparison: Comparison, one: Variant, rate: float) -> Outcome | None:
    """Return the paired runs of one of ours from a base rate."""
    setting = write_setting({"rate": rate})
    return find_outcome(comparison, one.method, "fresh", setting)


def rows_of(comparison: Comparison) -> list[Row]:
    """Return every base rate of ours, every tuned baseline, variant and peer."""
    rows: list[tuple[str, str, Outcome | None]] = [
        (
            f"{one.label} from {rate:g}",
            one.method.name,
            from_rate(comparison, one, rate),
        )
        for one in OURS
        for rate in one.rates
    ]
    for name in BASELINES:
        found = most_tuned(comparison, name)
        done = trials_done(comparison.runs, comparison.problem, METHODS[name])
        rate = "" if found is None else f", {found.setting}"
        rows.append((f"{LABELS[name]}, best of {done}{rate}", name, found))
    rows += [
        (f"{one.label} from 0.001", one.method.name, from_rate(comparison, one, 1e-3))
        for one in VARIANTS
    ]
    rows += [(LABELS[name], name, fixed(comparison, name)) for name in suite.PEERS]
    return [Row(label, name, found) for label, name, found in rows if found is not None]


def format_transfer(comparisons: Sequence[Comparison]) -> str:
    """Return the updates to the target of every start, beside a fresh memory."""
    names = [comparison.problem.name for comparison in comparisons]
    rows: dict[str, list[tuple[Outcome | None, Outcome | None]]] = {}
    for name in BASELINES:
        tuned = [most_tuned(comparison, name) for comparison in comparisons]
        rows[f"{LABELS[name]}, best of 20"] = [(found, None) for found in tuned]
    for learner in transfer.LEARNERS:
        label = plain(learner.label)
        for start in (*transfer.FRESH, *transfer.STARTS):
            rows[f"{label}, {_name(start)}"] = [
                (
                    _found(one, learner, start),
                    None if start == _USUAL else _found(one, learner, _USUAL),
                )
                for one in comparisons
            ]
    heads = " | ".join(f"{name} | beside fresh" for name in names)
    lines = [f"| start | {heads} |", "|---|" + "---|---|" * len(names)]
    for label, found in rows.items():
        if any(one is not None for one, _ in found):
            cells = " | ".join(_cell(*one) for one in found)
            lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def _name(start: float | str) -> str:
    return start if isinstance(start, str) else f"fresh from {start:g}"


def _found(comparison: Comparison, one: Variant, start: float | str) -> Outcome | None:
    rate = start if isinstance(start, float) else _USUAL
    name = "fresh" if isinstance(start, float) else start
    return find_outcome(comparison, one.method, name, write_setting({"rate": rate}))


def _cell(found: Outcome | None, fresh: Outcome | None) -> str:
    """Return updates, and over those of a fresh memory with seeds better : worse."""
    if found is None:
        return " | "
    if fresh is None:
        return f"{format_updates(found)} | "
    return f"{format_updates(found)} | {format_paired(found.updates, fresh.updates)}"


def over_fresh(comparison: Comparison, name: str, start: str) -> str:
    """Return updates from a start over those of a fresh memory; '' if not known."""
    (learner,) = (one for one in transfer.LEARNERS if one.method.name == name)
    found, fresh = (_found(comparison, learner, at) for at in (start, _USUAL))
    return (
        ""
        if found is None or fresh is None
        else format_paired(found.updates, fresh.updates)
    )


def format_sampling(folder: pathlib.Path) -> str:
    """Return the table of all pairs whose runs are in `sampling.csv`."""
    runs = read_runs(folder / f"{sampling.STEM}.csv")
    lines = [
        "| problem | method | end over that of all | interval of 95 % | seeds |",
        "|---|---|---|---|---|",
    ]
    for name in sampling.PROBLEMS:
        for contrast in sampling.contrasts_of(name):
            found = [
                find(runs, name, one.name, "fresh", write_setting(one.default))
                for one in contrast
            ]
            ends = [np.array([final(one) for one in some.values()]) for some in found]
            if len(ends[0]) != len(ends[1]) or len(ends[0]) < 2:
                continue
            low, mean, high = compare_ends(*ends)
            sign = "" if (np.stack(ends) > 0).all() else "+"
            lines.append(
                f"| {name} | {contrast.sampled.name} | {mean:{sign}.3f} "
                f"| {low:{sign}.3f} to {high:{sign}.3f} | {len(ends[0])} |"
            )
    return "\n".join(lines)


def format_noise_floor(rows: list[noise_floor.Row]) -> str:
    """Return the agreement at fixed rates, then rates and distances over updates."""
    still = [one for one in rows if one.what == noise_floor.AGREEMENT]
    lines = [
        "| rate times curvature | agreement measured | predicted |",
        "|---|---|---|",
        *(f"| {one.at:g} | {one.value:.4f} | {-one.at / 2:.4f} |" for one in still),
        "",
        "| rule | " + " | ".join(f"{at:,} updates" for at in noise_floor.SHOWN) + " |",
        "|---|" + "---|" * len(noise_floor.SHOWN),
    ]
    for name in noise_floor.GAINS:
        found = {one.at: one for one in rows if one.what == name}
        cells = [
            f"{found[at].value:.2g}, {found[at].distance:.2g}"
            for at in noise_floor.SHOWN
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def format_timing(one: Measurement) -> str:
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


def format_speed(measurements: list[Measurement]) -> str:
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
        if one.leaves > 1 and not one.case.startswith("compile"):
            share = f"{100 * one.share:.1f}" if one.share else ""
            lines.append(
                f"{one.case:<28}{one.size:>11,}{one.leaves:>7}  {one.method:<23}"
                f"{one.clipped_ratio:>6.2f}{share:>8}{one.compile_seconds:>7.2f} s"
            )
    for more in (_compile_lines(measurements), _say_progress(measurements)):
        lines += ["", *more] if more else []
    return "\n".join(line.rstrip() for line in lines)


def _compile_lines(measurements: list[Measurement]) -> list[str]:
    """Return what is only compiled: over the clip with the same base, and with Adam."""
    lines = [
        "Tracing and compiling, over that of clip + adam, and of a clip and the base",
        f"{'tensors':>8}{'parameters':>13}  {'method':<20}{'seconds':>8}{'/ adam':>8}"
        f"{'/ base':>8}{'state':>8}{'temp':>8}",
    ]
    rows = [one for one in measurements if one.case.startswith("compile")]
    seconds = {(o.case, o.leaves, o.method): o.compile_seconds for o in rows}
    for one in rows:
        own = seconds[one.case, one.leaves, clip_of(one.method)[0]]
        adam = seconds[one.case, one.leaves, "clip + adam"]
        lines.append(
            f"{one.leaves:>8,}{one.size:>13,}  {one.method:<20}"
            f"{one.compile_seconds:>8.2f}{one.compile_seconds / adam:>8.2f}"
            f"{one.compile_seconds / own:>8.2f}{one.state_bytes:>8.3f}"
            f"{one.temporary_bytes:>8.2f}"
        )
    return lines if rows else []


def _say_progress(measurements: list[Measurement]) -> list[str]:
    """Return what a schedule adds to the time of an update with a rate for a layer."""
    times = {
        name: {
            (o.size, o.leaves): o.milliseconds for o in measurements if o.method == name
        }
        for name in ("one rate", "by progress")
    }
    return [
        f"By progress over one rate, {size:,} parameters in {leaves}: "
        f"{milliseconds / times['one rate'][size, leaves]:.2f}"
        for (size, leaves), milliseconds in times["by progress"].items()
    ]
