"""`benchmarks/README.md`, made from the raw rows and the prose beside this file."""

import pathlib
from collections.abc import Sequence

from benchmarks.experiments import (
    layer_rates,
    local_models,
    long,
    next_task,
    noise_floor,
    sampling,
    sequence,
    speed,
    suite,
)
from benchmarks.experiments.paper import EXPERIMENTS, Experiment, cost_path, descend
from benchmarks.harness.costs import Cost, read_costs
from benchmarks.harness.sweep import TARGETS
from benchmarks.reporting import (
    input_tables,
    landscapes,
    library_figures,
    library_tables,
    long_runs,
    next_tasks,
    paper_figures,
    paper_tables,
    verdicts,
)
from benchmarks.reporting.statistics import Comparison, load_comparisons, lowest_end

FOLDER = pathlib.Path(__file__).parents[1]
RESULTS = FOLDER / "results"
PAGE = FOLDER / "README.md"
_PROSE = pathlib.Path(__file__).parent / "prose"


def fill(name: str, **tables: str) -> str:
    """Return a section's prose with its tables where it names them."""
    return (_PROSE / f"{name}.md").read_text().strip().format(**tables)


def make_page() -> str:
    """Return the page, from the rows in `benchmarks/results`."""
    loaded = load_all()
    sections = [
        fill("introduction", targets=_format_targets()),
        _fill_suite(),
        _fill_long(),
        _fill_noise_floor(),
        _fill_local_models(),
        fill("kernel_inputs", table=input_tables.format_inputs(RESULTS)),
        fill(
            "transfer",
            table=library_tables.format_transfer(library_tables.load_transfer(RESULTS)),
        ),
        *_fill_next_task(),
        fill(
            "speed",
            table=library_tables.format_speed(speed.read_rows(RESULTS / "speed.csv")),
        ),
        *_fill_sampling(),
        _fill_answers([one for comparisons in loaded.values() for one in comparisons]),
        _fill_sequence(),
        *(_fill_experiment(name, comparisons) for name, comparisons in loaded.items()),
    ]
    return "\n\n".join(sections) + "\n"


def load_all() -> dict[str, list[Comparison]]:
    """Return the comparisons of every experiment in `benchmarks/results`."""
    return {
        name: load_comparisons(
            RESULTS / f"{experiment.stem}.csv", experiment.load(None)
        )
        for name, experiment in EXPERIMENTS.items()
    }


def _format_targets() -> str:
    lines = TARGETS.read_text().splitlines()[1:]
    rows = (f"| {line.replace(',', ' | ')} |" for line in lines)
    return "\n".join(["| problem | target | from |", "|---|---|---|", *rows])


def _fill_suite() -> str:
    comparisons = library_tables.load_suite(RESULTS)
    costs = read_costs(RESULTS / f"{suite.STEM}_cost.csv")
    tasks = [library_tables.format_task(one, costs) for one in comparisons]
    return fill(
        "suite",
        base_rates=library_tables.format_base_rates(comparisons),
        variants=library_tables.format_variants(comparisons),
        tasks="\n\n".join(tasks),
    )


def _fill_long() -> str:
    runs = long_runs.load(RESULTS)
    solved = ", ".join(
        f"{name.removesuffix(', long')} {end:g}"
        for name, end in long_runs.SOLVED.items()
    )
    return fill(
        "long",
        constant=long_runs.format_ends(runs, long_runs.CONSTANT),
        decayed=long_runs.format_ends(runs, long_runs.DECAYED),
        solved=solved,
        starts=long_runs.format_starts(runs),
        costs=long_runs.format_costs(read_costs(RESULTS / f"{long.STEM}_cost.csv")),
        search=long_runs.format_search(RESULTS),
        lowest=long_runs.say_lowest(layer_rates.read_rows(RESULTS)),
        sentences=long_runs.say_all(runs),
    )


def _fill_noise_floor() -> str:
    rows = noise_floor.read_rows(RESULTS / f"{noise_floor.STEM}.csv")
    return fill("noise_floor", table=library_tables.format_noise_floor(rows))


def _fill_local_models() -> str:
    return fill(
        "local_models",
        errors=landscapes.format_errors(local_models.read_rows(RESULTS)),
        tasks=landscapes.format_tasks(RESULTS),
    )


def _fill_next_task() -> list[str]:
    if not (RESULTS / f"{next_task.STEM}.csv").exists():
        return []
    return [fill("next_task", tables=next_tasks.format_all(next_tasks.load(RESULTS)))]


def _fill_sampling() -> list[str]:
    if not (RESULTS / f"{sampling.STEM}.csv").exists():
        return []
    return [fill("sampling", table=library_tables.format_sampling(RESULTS))]


def _fill_answers(comparisons: list[Comparison]) -> str:
    return fill(
        "answers",
        answers=verdicts.format_answers(comparisons),
        counts="\n\n".join(verdicts.count(comparisons)),
    )


def _fill_sequence() -> str:
    runs = sequence.read_rows(RESULTS / "mnist.csv")
    return fill(
        "sequence",
        rules=paper_tables.format_rules(runs),
        table=paper_tables.format_sequence(runs),
    )


def _fill_experiment(name: str, comparisons: list[Comparison]) -> str:
    experiment = EXPERIMENTS[name]
    costs = read_costs(cost_path(experiment, RESULTS))
    parts = []
    described = describe(experiment, comparisons, costs)
    for comparison, text in zip(comparisons, described, strict=True):
        settings = paper_tables.format_settings(comparison)
        parts.append(
            f"{text}\n\n<details><summary>Spaces and settings</summary>\n\n"
            f"{settings}\n\n</details>"
        )
    return fill(name, problems="\n\n".join(parts))


def describe(
    experiment: Experiment, comparisons: Sequence[Comparison], costs: Sequence[Cost]
) -> list[str]:
    """Return all tables and verdicts of every problem as Markdown."""
    return [
        _describe(experiment, comparison, paper, costs)
        for comparison, paper in zip(comparisons, experiment.published, strict=True)
    ]


def _describe(
    experiment: Experiment,
    comparison: Comparison,
    paper: float | None,
    costs: Sequence[Cost],
) -> str:
    problem = comparison.problem
    count = len(comparison.seeds())
    parts = [
        f"### {problem.name}",
        f"Updates to a target of {comparison.target:.4g} or less within "
        f"{problem.horizon}, measured every {problem.every}; {count} seeds: median "
        "[quartiles], runs that missed.",
        paper_tables.format_comparison(comparison, costs),
    ]
    scores = experiment.yardsticks(problem)
    if scores:
        text = ", ".join(f"{name} {score:.2g}" for name, score in scores.items())
        parts.append(
            f"The same measure without a network: {text}. The lowest median end of any "
            f"network above: {lowest_end(comparison):.2g}."
        )
    if problem.related is not None:
        parts += [
            "With a memory learned on the related task, at the fixed setting:",
            paper_tables.format_reloaded(comparison),
        ]
    sentences = verdicts.say_all(comparison, paper)
    parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    return "\n\n".join(parts)


def draw_experiment(
    name: str, comparisons: Sequence[Comparison], out: pathlib.Path
) -> None:
    """Draw the pictures of one experiment."""
    experiment = EXPERIMENTS[name]
    paper_figures.draw_comparisons(
        comparisons, experiment.measured, out / f"{experiment.stem}.png"
    )
    if name == "gan":
        paper_figures.draw_digits(comparisons[0], out / "gan_digits.png")
    if name == "rosenbrock":
        paper_figures.draw_descent(descend(), out / "rosenbrock_path.png")


def draw_all() -> None:
    """Draw all pictures again, but that of speed."""
    for name, comparisons in load_all().items():
        draw_experiment(name, comparisons, RESULTS)
    tasks = library_tables.load_suite(RESULTS)
    library_figures.draw_profile(tasks, RESULTS / "suite.png")
    library_figures.draw_base_rates(tasks, RESULTS / "suite_starts.png")
    long_runs.draw(long_runs.load(RESULTS), RESULTS / "long.png")
    rates = layer_rates.read_rows(RESULTS)
    library_figures.draw_layer_rates(rates, RESULTS / f"{layer_rates.STEM}.png")
    rows = noise_floor.read_rows(RESULTS / f"{noise_floor.STEM}.csv")
    library_figures.draw_noise_floor(rows, RESULTS / f"{noise_floor.STEM}.png")
    landscapes.draw(
        local_models.read_rows(RESULTS), RESULTS / f"{local_models.STEM}.png"
    )
    next_tasks.draw(next_tasks.load(RESULTS), RESULTS / f"{next_task.STEM}.png")
    runs = sequence.read_rows(RESULTS / "mnist.csv")
    paper_figures.draw_sequence(runs, RESULTS / "mnist.png")
