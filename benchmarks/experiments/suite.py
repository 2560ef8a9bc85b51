"""One default from five base rates, beside tuned baselines, on eleven tasks."""

from benchmarks.harness.command import Arguments, Parser, Say, add_tasks, add_trials
from benchmarks.harness.costs import add_costs
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import from_rates, run_methods, run_sweep, seeds_of
from benchmarks.methods import BASELINES, LIBRARY, METHODS, OURS, PEERS
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting import suite

TIME = "1 hour; with --seeds 10 --trials 20 as published, 4 hours"


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    add_tasks(parser, SUITE)
    add_trials(parser)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `suite.csv.gz`, and time all optimizers."""
    seeds, out = arguments.seeds, arguments.out
    store = Store(out / "suite.csv.gz")
    tuned = [METHODS[name] for name in BASELINES]
    untuned = [*LIBRARY.values(), *(METHODS[name] for name in PEERS)]
    starts = {name: from_rates(rates, seeds) for name, rates in OURS.items()}
    tell = counted(say, len(arguments.tasks))
    for name in arguments.tasks:
        problem = SUITE[name]()
        run_sweep(problem, store, tuned, seeds, arguments.trials, say)
        usual = [(one, seeds_of(one.default, seeds)) for one in untuned]
        run_methods(problem, store, [(x, starts.get(x.name, y)) for x, y in usual])
        add_costs(out, "suite", problem, [*tuned, *untuned])
        tell(f"{name}: all base rates are done")


report = suite.report
