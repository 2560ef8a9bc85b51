"""Run an experiment: `python -m benchmarks mnist`."""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from benchmarks.experiments import (
    kernel_inputs,
    layer_rates,
    local_models,
    long,
    next_task,
    noise_floor,
    paper,
    sampling,
    search,
    sequence,
    speed,
    suite,
    transfer,
)
from benchmarks.harness import costs, sweep
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.methods import BASELINES, METHODS, WITH_MEMORY
from benchmarks.problems.digits import load_digits
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting import (
    input_tables,
    landscapes,
    library_figures,
    library_tables,
    long_runs,
    next_tasks,
    page,
    paper_figures,
    paper_tables,
)
from benchmarks.reporting.statistics import load_comparisons

# What a comparison tries unless it is asked for more.
FEW_TRIALS, FEW_METHODS = 5, [*BASELINES, *WITH_MEMORY, "prodigy"]


class Parser(argparse.ArgumentParser):
    """A parser that reports what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and end with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help tells more)\n")


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def make_parser() -> Parser:
    """Return the parser of all experiments."""
    parser = Parser(
        prog="python -m benchmarks", description=__doc__, allow_abbrev=False
    )
    experiments = parser.add_subparsers(dest="experiment", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        one = experiments.add_parser(
            name,
            help=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        if name != "report":
            one.add_argument(
                "--out",
                type=pathlib.Path,
                default="results",
                help="folder for rows and pictures",
            )
        return one

    _add_mnist(add("mnist", "a CNN learns pairs of digits with a memory that moves on"))
    _add_comparison(add("rnn", "an LSTM learns the dynamics of a real arm"))
    _add_comparison(add("gan", "BEGAN learns to draw digits"))
    _add_comparison(add("rosenbrock", "two numbers go down a curved valley"))
    _add_suite(add("suite", "one default from five base rates, eleven tasks"))
    _add_seeds(add("transfer", "a memory of a small network starts a larger one"))
    _add_next(add("next-task", "a memory of a whole run starts a run on another task"))
    _add_seeds(add("sampling", "evidence from a sample beside that from everything"))
    _add_seeds(add("search", "variants of the rule on six tasks of both lengths"))
    _add_seeds(add("kernel-inputs", "what else a memory could see: size, history"))
    add("noise-floor", "why rates fall near a noise floor: one dimension, seconds")
    _add_seeds(add("local-models", "local models that are added, widen or tilt"), 5)
    add("layer-rates", "the rate of every layer over long runs, on three tasks")
    add("targets", "what tuned baselines reach: the targets of the comparisons")
    add("report", "make benchmarks/README.md from benchmarks/results")
    _add_speed(add("speed", "what an update costs, beside Adam and others"))
    return parser


def _add_seeds(parser: argparse.ArgumentParser, seeds: int = 3) -> None:
    parser.add_argument("--seeds", type=positive, default=seeds, help="paired runs")


def _add_next(parser: argparse.ArgumentParser) -> None:
    _add_seeds(parser)
    parser.add_argument(
        "--tasks", nargs="+", choices=list(next_task.MOVES), help="which; default: all"
    )


def _add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[10**4, 10**5, 10**6, 10**7, 10**8],
        help="parameters of the model",
    )


def _add_mnist(parser: argparse.ArgumentParser) -> None:
    _add_comparison(parser, seeds=10, where=", with --compare")
    parser.add_argument(
        "--horizon", type=positive, default=25, help="updates in each of three tasks"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=64, help="images in such an update"
    )
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        help="folder with the four MNIST files instead of the bundled subset",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="then tune and compare methods on the last task",
    )


def _add_comparison(
    parser: argparse.ArgumentParser, seeds: int = 3, where: str = ""
) -> None:
    _add_seeds(parser, seeds)
    parser.add_argument(
        "--trials",
        type=int,
        choices=sweep.BUDGETS,
        default=FEW_TRIALS,
        help=f"settings that are tried to tune a method{where}",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=FEW_METHODS,
        help=f"what to compare{where}",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="the published comparison: 10 seeds, 20 trials, all methods",
    )


def _add_suite(parser: argparse.ArgumentParser) -> None:
    _add_seeds(parser)
    parser.add_argument(
        "--trials",
        type=int,
        choices=sweep.BUDGETS,
        default=FEW_TRIALS,
        help="rates that are tried to tune a baseline",
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=[*SUITE, *LONG], help="which; default: all"
    )
    parser.add_argument(
        "--long", action="store_true", help="8 to 10 times the updates, more tasks"
    )
    parser.add_argument(
        "--baselines", action="store_true", help="tune those of --long: hours"
    )
    parser.add_argument(
        "--costs", action="store_true", help="only time an update of each of --long"
    )


def say(text: str) -> None:
    """Print a line at once, so that progress is seen where output is buffered."""
    print(text, flush=True)


def make_clock() -> Callable[[str], None]:
    """Return a `say` that puts the seconds since now before every line."""
    start = time.perf_counter()
    return lambda text: say(f"[{time.perf_counter() - start:5.0f} s] {text}")


def compare(arguments: argparse.Namespace) -> None:
    """Tune and compare methods; report every one as it is done."""
    experiment, out = paper.EXPERIMENTS[arguments.experiment], arguments.out
    methods = [METHODS[name] for name in METHODS if name in arguments.methods]
    say(
        f"{len(methods)} methods, {arguments.seeds} seeds, {arguments.trials} trials; "
        f"what is done stays in {out}: stop when you like, the same command goes on"
    )
    problems = experiment.load(getattr(arguments, "data_dir", None))
    paper.run(
        experiment,
        out,
        problems,
        methods,
        arguments.seeds,
        arguments.trials,
        make_clock(),
    )
    rows = out / f"{experiment.stem}.csv"
    comparisons = load_comparisons(rows, problems)
    page.draw_experiment(arguments.experiment, comparisons, out)
    known = costs.read_costs(paper.cost_path(experiment, out))
    for text in page.describe(experiment, comparisons, known):
        say(f"\n{text}")
    say(f"\nWrote {rows} and pictures in {out}.")


def find_targets(arguments: argparse.Namespace) -> None:
    """Tune the baselines; print the targets beside the committed ones."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    committed = sweep.load_targets()
    problems = [
        (experiment.stem, problem)
        for experiment in paper.EXPERIMENTS.values()
        for problem in experiment.load(None)
    ]
    known = {problem.name for _, problem in problems}
    problems += [(suite.STEM, SUITE[name]()) for name in SUITE if name not in known]
    problems += [(transfer.STEM, one.large) for one in transfer.load_growths()]
    problems += [(next_task.STEM, one) for one in next_task.load_new()]
    tell = counted(say, len(problems))
    for stem, problem in problems:
        store = Store(arguments.out / f"{stem}.csv")
        target, source = sweep.baseline_target(problem, store)
        tell(
            f"{problem.name}: tuned baselines reach {target:.4g} ({source}); "
            f"committed: {committed.get(problem.name, np.nan):.4g}"
        )


def choose_tasks(
    arguments: argparse.Namespace, tasks: dict[str, Callable[[], Problem]]
) -> list[str]:
    """Return the tasks that are asked for, or all; raises ValueError for others."""
    names = arguments.tasks or list(tasks)
    unknown = sorted(set(names) - set(tasks))
    if unknown:
        raise ValueError(f"--tasks must be of {list(tasks)}, got {unknown}")
    return names


def run_long(arguments: argparse.Namespace) -> None:
    """Run the suite at practical length, or what it is compared with."""
    names = choose_tasks(arguments, LONG)
    if arguments.baselines:
        long.run_baselines(arguments.out, names, say)
    elif arguments.costs:
        long.measure(arguments.out, names, say)
    else:
        long.run(arguments.out, names, arguments.seeds, say)
        runs = long_runs.load_beside(page.RESULTS, arguments.out)
        say(f"\n{long_runs.describe(runs)}")


def run_suite(arguments: argparse.Namespace) -> None:
    """Run the suite; print a table per task."""
    if arguments.long or arguments.baselines or arguments.costs:
        run_long(arguments)
        return
    out, names = arguments.out, choose_tasks(arguments, SUITE)
    suite.run(out, names, arguments.seeds, arguments.trials, say)
    known = costs.read_costs(out / f"{suite.STEM}_cost.csv")
    problems = [SUITE[name]() for name in names]
    for comparison in load_comparisons(out / f"{suite.STEM}.csv", problems):
        say(f"\n{library_tables.format_task(comparison, known)}")


def run_transfer(arguments: argparse.Namespace) -> None:
    """Give memories to larger networks; print the table."""
    transfer.run(arguments.out, arguments.seeds, max(sweep.BUDGETS), say)
    comparisons = library_tables.load_transfer(arguments.out)
    say(f"\n{library_tables.format_transfer(comparisons)}")


def run_next_task(arguments: argparse.Namespace) -> None:
    """Give memories of whole runs to other tasks; print the tables."""
    names = arguments.tasks or list(next_task.MOVES)
    next_task.run(arguments.out, names, arguments.seeds, say)
    say(f"\n{next_tasks.format_all(next_tasks.load(arguments.out))}")


def run_sampling(arguments: argparse.Namespace) -> None:
    """Take evidence from samples and from everything; print the table."""
    sampling.run(arguments.out, arguments.seeds, say)
    say(f"\n{library_tables.format_sampling(arguments.out)}")


def run_kernel_inputs(arguments: argparse.Namespace) -> None:
    """Run memories that see something else; print how they end beside one rate."""
    kernel_inputs.run(arguments.out, arguments.seeds, make_clock())
    say(f"\n{input_tables.format_inputs(arguments.out)}")


def run_search(arguments: argparse.Namespace) -> None:
    """Run variants of the rule; print how they end beside the default."""
    search.run(arguments.out, arguments.seeds, make_clock())
    say(f"\n{long_runs.format_search(arguments.out)}")


def run_noise_floor(arguments: argparse.Namespace) -> None:
    """Follow two rules to a noise floor; print the tables, write rows and picture."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = noise_floor.measure()
    rows, picture = (
        arguments.out / f"{noise_floor.STEM}{suffix}" for suffix in (".csv", ".png")
    )
    noise_floor.write_rows(found, rows)
    library_figures.draw_noise_floor(found, picture)
    table = library_tables.format_noise_floor(found)
    say(f"{table}\n\nWrote {rows} and {picture}.")


def run_layer_rates(arguments: argparse.Namespace) -> None:
    """Follow the rates of all layers; write rows and picture."""
    rows = layer_rates.run(arguments.out, make_clock())
    picture = arguments.out / f"{layer_rates.STEM}.png"
    library_figures.draw_layer_rates(rows, picture)
    say(f"Lowest rate over its highest: {long_runs.say_lowest(rows)}.")
    say(f"Wrote {picture} and the rows beside it.")


def run_local_models(arguments: argparse.Namespace) -> None:
    """Learn a known function and train on two tasks; print tables, draw a picture."""
    out, clock = arguments.out, make_clock()
    rows = local_models.run_function(out, clock)
    picture = out / f"{local_models.STEM}.png"
    landscapes.draw(rows, picture)
    say(f"\n{landscapes.format_errors(rows)}\n\nWrote {picture}.\n")
    local_models.run_tasks(out, arguments.seeds, clock)
    say(f"\n{landscapes.format_tasks(out)}")


def make_report(arguments: argparse.Namespace) -> None:
    """Write the page and its pictures."""
    del arguments
    page.draw_all()
    page.PAGE.write_text(page.make_page())
    say(f"Wrote {page.PAGE} and pictures in {page.RESULTS}.")


def run_mnist(arguments: argparse.Namespace) -> None:
    """Run the paper's three tasks with a memory that moves on; compare if asked to."""
    asked = arguments.trials, arguments.methods
    if not arguments.compare and asked != (FEW_TRIALS, FEW_METHODS):
        raise ValueError("--trials and --methods say how to compare: add --compare")
    digits = load_digits(arguments.data_dir)
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(sequence.TASKS)} tasks, {arguments.seeds} seeds, {arguments.horizon} "
        f"updates of {arguments.batch_size} images each; the first runs compile"
    )
    runs, tell = [], counted(make_clock(), sequence.RUNS)
    for run in sequence.run_all(
        digits, arguments.seeds, arguments.horizon, arguments.batch_size
    ):
        runs.append(run)
        meta_rate = "" if run.meta_rate is None else f"{run.meta_rate:g}"
        tell(
            f"{run.task}  {run.method:<14}{meta_rate:>6}  accuracy at the end "
            f"{run.accuracies[:, -1].mean():.3f}"
        )
    rows, picture = arguments.out / "mnist.csv", arguments.out / "mnist.png"
    sequence.write_rows(runs, rows)
    paper_figures.draw_sequence(runs, picture)
    say(f"\n{paper_tables.format_sequence(runs)}\n\nWrote {rows} and {picture}.")
    if arguments.compare:
        say("")
        compare(arguments)


def run_speed(arguments: argparse.Namespace) -> None:
    """Time the updates; print every row as it is measured, write rows and picture."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(
        "Whole updates in turns, medians. x Adam: time over that of optax.adam;\n"
        "% step: share of a training step; state and temp: bytes per parameter.\n\n"
        f"{library_tables.SPEED_HEADER}"
    )
    measurements, cases = [], list(speed.make_cases(arguments.sizes))
    tell = counted(say, len(cases))
    for case in cases:
        for one in speed.run_case(case):
            measurements.append(one)
            say(library_tables.format_timing(one))
        tell("")
    rows, picture = arguments.out / "speed.csv", arguments.out / "speed.png"
    speed.write_rows(measurements, rows)
    library_figures.draw_speed(measurements, picture)
    say(f"\nWrote {rows} and {picture}.")


def main(command_line: list[str] | None = None) -> None:
    """Run the experiment that the command line names."""
    parser = make_parser()
    arguments = parser.parse_args(command_line)
    if getattr(arguments, "full", False):
        arguments.seeds, arguments.trials = 10, max(sweep.BUDGETS)
        arguments.methods, arguments.compare = list(METHODS), True
    try:
        commands = {
            "mnist": run_mnist,
            "speed": run_speed,
            "targets": find_targets,
            "suite": run_suite,
            "transfer": run_transfer,
            "next-task": run_next_task,
            "noise-floor": run_noise_floor,
            "layer-rates": run_layer_rates,
            "local-models": run_local_models,
            "sampling": run_sampling,
            "search": run_search,
            "kernel-inputs": run_kernel_inputs,
            "report": make_report,
        }
        commands.get(arguments.experiment, compare)(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog} {arguments.experiment}: {error}")


if __name__ == "__main__":
    main()
