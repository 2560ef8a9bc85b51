"""`benchmarks/README.md`, made from the raw rows, and its pictures."""

import pathlib

from benchmarks.experiments import sampling, sequence, suite, transfer
from benchmarks.experiments.paper import (
    EXPERIMENTS,
    describe,
    load_comparisons,
    load_costs,
)
from benchmarks.harness.costs import read_costs
from benchmarks.harness.sweep import TARGETS
from benchmarks.reporting import (
    findings,
    library_figures,
    library_tables,
    paper_figures,
    paper_tables,
    sequence_report,
    speed_report,
    verdicts,
)
from benchmarks.reporting.statistics import Comparison

FOLDER = pathlib.Path(__file__).parents[1]
RESULTS = FOLDER / "results"
PAGE = FOLDER / "README.md"


def _suite_section() -> str:
    """Return the section on one default from five base rates."""
    comparisons = suite.load_suite(RESULTS)
    costs = read_costs(RESULTS / f"{suite.STEM}_cost.csv")
    _, _, text = str(suite.__doc__).partition("\n\n")
    tables = "\n\n".join(library_tables.format_suite(one, costs) for one in comparisons)
    return "\n\n".join(
        [
            "## One default, nothing tuned",
            text.strip(),
            "```bash\npython -m benchmarks suite --seeds 10 --trials 20\n```",
            "A ruined run ends above ten times the end of tuned SGD, or nowhere;\n"
            "one that never reaches the target is infinite in every median.",
            "![What every task ends at, over the rate it was started with]"
            "(results/suite_starts.png)",
            "Above: ends over the rate at the start, as multiples of the best end on "
            "that\ntask. Ours: median and quartiles of the seeds; Adam and momentum: "
            "one run, a\ntrial, at each of 20 rates.",
            library_tables.format_starts(comparisons),
            "![On which share of tasks a method is within a factor of the best]"
            "(results/suite.png)",
            findings.SUITE_FOUND,
            "Ends from .001, seed by seed; bold: two-sided sign test, p < .05. The two "
            "columns to the right judge a sample instead of all coordinates.",
            library_tables.format_pairs(comparisons),
            f"<details><summary>All methods on all tasks</summary>\n\n{tables}\n\n"
            "</details>",
        ]
    )


def _transfer_section() -> str:
    """Return the section on memories that start larger networks."""
    title, _, text = str(transfer.__doc__).partition("\n\n")
    table = transfer.format_transfer(transfer.load_transfer(RESULTS))
    return "\n\n".join(
        [
            f"## {title.rstrip('.')}",
            text.strip(),
            "```bash\npython -m benchmarks transfer --seeds 10\n```",
            "Updates to the target, median and quartiles; beside them over those of a "
            "fresh memory from .001, with seeds better : worse, bold where p < .05.",
            table,
            findings.TRANSFER_FOUND,
        ]
    )


def format_answers(comparisons: list[Comparison]) -> str:
    """Return the table that answers the page's questions."""
    lines = [
        "| problem | untuned, beside Adam at 0.001 | tuned, beside the best tuned "
        "baseline | M=20 beside M=1, untuned | reloaded beside new |",
        "|---|---|---|---|---|",
    ]
    for comparison in comparisons:
        for name in verdicts.OURS:
            cells = verdicts.summary(comparison, name)
            lines.append(f"| {comparison.problem.name}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _section(name: str, comparisons: list[Comparison]) -> str:
    experiment = EXPERIMENTS[name]
    title, _, text = experiment.about.partition("\n\n")
    parts = [f"## {title.rstrip('.')}", text.strip()]
    parts.append(f"![{title}](results/{experiment.stem}.png)")
    if experiment.own_picture:
        parts.append(f"![{title}: what was made](results/{experiment.own_picture})")
    parts.append(f"```bash\npython -m benchmarks {name} --full\n```")
    costs = load_costs(experiment, RESULTS)
    texts = describe(experiment, comparisons, costs)
    for comparison, text in zip(comparisons, texts, strict=True):
        parts.append(text)
        parts.append(
            "<details><summary>Spaces and settings</summary>\n\n"
            f"{paper_tables.format_settings(comparison)}\n\n</details>"
        )
    return "\n\n".join(parts)


def _pairs() -> str:
    """Return the section on the paper's figure 1."""
    title, _, text = str(sequence.__doc__).partition("\n\n")
    runs = sequence_report.read_rows(RESULTS / "mnist.csv")
    return "\n\n".join(
        [
            f"## {title.rstrip('.')} (the paper's figure 1)",
            text.strip(),
            "![Test accuracy on three tasks, updates to 98 %](results/mnist.png)",
            "```bash\npython -m benchmarks mnist\n```",
            f"```text\n{sequence_report.format_table(runs)}\n```",
            findings.MNIST_FOUND.strip(),
        ]
    )


def _sampling_section() -> str:
    """Return the section on evidence from samples."""
    title, _, text = str(sampling.__doc__).partition("\n\n")
    return "\n\n".join(
        [
            f"## {title.rstrip('.')}",
            text.strip(),
            "```bash\npython -m benchmarks sampling --seeds 10\n```",
            sampling.format_sampling(RESULTS),
        ]
    )


def _speed_section() -> str:
    """Return the section on what a step costs."""
    rows = speed_report.read_rows(RESULTS / "speed.csv")
    return "\n\n".join(
        [
            "## What a step costs",
            findings.SPEED.strip(),
            f"```text\n{speed_report.format_table(rows)}\n```",
            "![Time of a whole update over that of Adam by number of parameters and by "
            "number of local models, and bytes of state per parameter.]"
            "(results/speed.png)",
            "```bash\npython -m benchmarks speed --out benchmarks/results\n```",
            findings.SPEED_FOUND.strip(),
        ]
    )


def load_all() -> dict[str, list[Comparison]]:
    """Return the comparisons of every experiment in `benchmarks/results`."""
    return {
        name: load_comparisons(experiment, RESULTS, experiment.load(None))
        for name, experiment in EXPERIMENTS.items()
    }


def make_page() -> str:
    """Return the page, from the rows in `benchmarks/results`."""
    loaded = load_all()
    everything = [one for comparisons in loaded.values() for one in comparisons]
    sections = [_section(name, comparisons) for name, comparisons in loaded.items()]
    targets = TARGETS.read_text().splitlines()
    rows = "\n".join(f"| {line.replace(',', ' | ')} |" for line in targets[1:])
    return (
        "\n\n".join(
            [
                findings.INTRODUCTION.strip(),
                f"| problem | target | from |\n|---|---|---|\n{rows}",
                _suite_section(),
                _transfer_section(),
                _speed_section(),
                _sampling_section(),
                "## Answers",
                verdicts.LEGEND,
                format_answers(everything),
                *verdicts.count(everything),
                findings.ANSWERS_FOUND.strip(),
                _pairs(),
                *sections,
            ]
        )
        + "\n"
    )


def draw_all() -> None:
    """Draw the pictures of all comparisons again."""
    for name, comparisons in load_all().items():
        experiment = EXPERIMENTS[name]
        paper_figures.draw(
            comparisons, experiment.measured, RESULTS / f"{experiment.stem}.png"
        )
        if experiment.own_picture:
            experiment.draw(comparisons, RESULTS / experiment.own_picture)
    tasks = suite.load_suite(RESULTS)
    library_tables.draw_profile(tasks, RESULTS / "suite.png")
    library_figures.draw_starts(tasks, RESULTS / "suite_starts.png")
    sequence_report.draw(
        sequence_report.read_rows(RESULTS / "mnist.csv"), RESULTS / "mnist.png"
    )
