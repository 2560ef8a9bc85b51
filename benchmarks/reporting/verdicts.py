"""What holds and what does not, in plain words from the raw rows."""

import numpy as np

from benchmarks.methods import BASELINES, LABELS
from benchmarks.reporting.paper_tables import (
    START_LABELS,
    format_measure,
    format_number,
    format_paired,
)
from benchmarks.reporting.statistics import (
    SIGNIFICANT,
    Comparison,
    Outcome,
    best_of,
    fixed,
    median,
    most_tuned,
    sign_test,
    transferred,
)

PAPERS = ("paper_sgd", "paper_adam")


def _judge(one: Outcome, other: Outcome, winner: str, rival: str) -> str:
    """Return in words which of two needs fewer updates, by a paired sign test."""
    a, b = median(one.updates), median(other.updates)
    ratio = f", {a / b:.2f} times" if np.isfinite(a) and np.isfinite(b) else ""
    test = sign_test(one, other)
    counts = f"{test.wins} seeds better, {test.losses} worse, {test.ties} equal"
    if test.p >= SIGNIFICANT:
        verdict = "no clear difference"
    else:
        verdict = f"**{winner if test.wins > test.losses else rival} is faster**"
    return (
        f"{format_number(a)} updates against {format_number(b)}{ratio}: {verdict} "
        f"({counts}; p = {test.p:.2g})"
    )


def say_all(comparison: Comparison, paper: float | None = None) -> list[str]:
    """Return all sentences on a problem; `paper` is the paper's ratio, untuned."""
    return [
        *_on_the_paper(comparison, paper),
        *_on_baselines(comparison),
        *_on_models(comparison),
        *_on_transfer(comparison),
    ]


def _on_the_paper(comparison: Comparison, paper: float | None) -> list[str]:
    """Say what an untuned memory does beside an untuned Adam."""
    ours, adam = fixed(comparison, "paper_sgd"), fixed(comparison, "adam")
    if ours is None or adam is None:
        return []
    said = f" (the paper: {paper:g} times)" if paper else ""
    judged = _judge(ours, adam, "the memory", "Adam")
    return [f"Nothing tuned, paper_sgd beside Adam at 0.001{said}: {judged}."]


def _on_baselines(comparison: Comparison) -> list[str]:
    """Say what memories do beside the best tuned one of SGD, momentum and Adam."""
    if not all(most_tuned(comparison, name) for name in BASELINES):
        return []
    baseline = best_of(comparison, BASELINES)
    rival = most_tuned(comparison, baseline)
    sentences = []
    for name in PAPERS:
        for kind, found in (
            ("its fixed setting", fixed(comparison, name)),
            ("its best trial", most_tuned(comparison, name)),
        ):
            if found and rival:
                judged = _judge(found, rival, name, LABELS[baseline])
                sentences.append(
                    f"{name} at {kind} beside the best tuned baseline "
                    f"({LABELS[baseline]}, {rival.setting}): {judged}; "
                    f"end {format_measure(median(found.finals))} against "
                    f"{format_measure(median(rival.finals))}."
                )
    return sentences


def _on_models(comparison: Comparison) -> list[str]:
    """Say whether M=20 beats M=1."""
    sentences = []
    for name in PAPERS:
        one = f"{name}_m1"
        for kind, many, single in (
            ("fixed", fixed(comparison, name), fixed(comparison, one)),
            ("tuned", most_tuned(comparison, name), most_tuned(comparison, one)),
            (
                "reloaded",
                transferred(comparison, name, "reloaded"),
                transferred(comparison, one, "reloaded"),
            ),
        ):
            if many and single:
                judged = _judge(many, single, "M=20", "M=1")
                sentences.append(f"M=20 beside M=1, {name}, {kind}: {judged}.")
    return sentences


def _on_transfer(comparison: Comparison) -> list[str]:
    """Say what a reloaded memory is worth beside a new one and beside controls.

    Like beside like: what learns on beside what does, what does not beside what does
    not.
    """
    sentences = []
    for name in PAPERS:
        ours = transferred(comparison, name, "reloaded")
        still = transferred(comparison, name, "frozen")
        single = transferred(comparison, f"{name}_m1", "frozen")
        pairs = [("a new one", ours, fixed(comparison, name))] + [
            (START_LABELS[start], ours, transferred(comparison, name, start))
            for start in ("shuffled", "unrelated")
        ]
        pairs += [
            ("one rate a layer, neither learning on", still, single),
            (
                START_LABELS["constant"],
                still,
                transferred(comparison, name, "constant"),
            ),
        ]
        for label, one, other in pairs:
            if one and other:
                judged = _judge(one, other, "the reloaded one", "the other")
                kind = "reloaded" if one is ours else "reloaded, not learning on,"
                sentences.append(f"{name}, {kind} beside {label}: {judged}.")
    return sentences


def _cell(one: Outcome | None, other: Outcome | None) -> str:
    if one is None or other is None:
        return ""
    return format_paired(one.updates, other.updates)


def _rivals(comparison: Comparison, name: str) -> list[tuple]:
    """Return the four pairs of the summary."""
    plain = fixed(comparison, name)
    return [
        (plain, fixed(comparison, "adam")),
        (
            most_tuned(comparison, name),
            most_tuned(comparison, best_of(comparison, BASELINES)),
        ),
        (plain, fixed(comparison, f"{name}_m1")),
        (transferred(comparison, name, "reloaded"), plain),
    ]


def summary(comparison: Comparison, name: str) -> list[str]:
    """Return the four cells of a method in the table of answers."""
    return [_cell(*pair) for pair in _rivals(comparison, name)]


def format_answers(comparisons: list[Comparison]) -> str:
    """Return the table that answers the page's questions."""
    lines = [
        "| problem | untuned, beside Adam at 0.001 | tuned, beside the best tuned "
        "baseline | M=20 beside M=1, untuned | reloaded beside new |",
        "|---|---|---|---|---|",
    ]
    for comparison in comparisons:
        for name in PAPERS:
            cells = " | ".join(summary(comparison, name))
            lines.append(f"| {comparison.problem.name}, {name} | {cells} |")
    return "\n".join(lines)


def count(comparisons: list[Comparison]) -> list[str]:
    """Return the answers to the page's questions, counted over problems and bases."""
    questions = (
        "Does an untuned memory beat an untuned Adam?",
        "Does a tuned memory beat the best tuned baseline?",
        "Does M=20 beat M=1, untuned?",
        "Does a reloaded memory beat a new one?",
    )
    tally = [[0, 0, 0] for _ in questions]
    for comparison in comparisons:
        for name in PAPERS:
            for row, (one, other) in zip(tally, _rivals(comparison, name), strict=True):
                if one is None or other is None:
                    continue
                test = sign_test(one, other)
                clear = test.p < SIGNIFICANT
                row[(0 if test.wins > test.losses else 1) if clear else 2] += 1
    return [
        f"**{question}** Clearly in {wins}, clearly not in {losses}, no clear "
        f"difference in {neither} of {wins + losses + neither} comparisons."
        for question, (wins, losses, neither) in zip(questions, tally, strict=True)
    ]
