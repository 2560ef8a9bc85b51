"""One default from five base rates, beside tuned baselines, on eleven tasks."""

import pathlib
from collections.abc import Callable, Sequence

from benchmarks.harness.costs import measure_costs, write_costs
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import Trainer, in_threads, run_sweep
from benchmarks.methods import BASELINES, LABELS, METHODS, OURS, VARIANTS, Variant
from benchmarks.problems.tasks import SUITE

PEERS = ("prodigy", "dowg", "mechanize", "schedule_free", "paper_sgd", "paper_adam")
STEM = "suite"


def run(
    out: pathlib.Path,
    names: Sequence[str],
    seeds: int,
    trials: int,
    say: Callable[[str], None],
) -> None:
    """Run what is missing in `suite.csv`, and time all optimizers."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    tuned = [METHODS[name] for name in BASELINES]
    peers = [
        Variant(METHODS[name], LABELS[name], tuple(METHODS[name].default.values())[:1])
        for name in PEERS
    ]
    untuned = (*OURS, *VARIANTS, *peers)
    costs, tell = [], counted(say, len(names))
    for name in names:
        problem = SUITE[name]()
        run_sweep(problem, store, tuned, seeds, trials, say)

        def run_one(one: Variant, problem=problem) -> None:
            settings = [{**one.method.default, "rate": rate} for rate in one.rates]
            jobs = [(setting, seed) for setting in settings for seed in range(seeds)]
            Trainer(problem, one.method, store, min(seeds, 5)).run(jobs)

        in_threads(run_one, untuned, store)
        costs += measure_costs(problem, [*tuned, *(one.method for one in untuned)])
        tell(f"{name}: all base rates are done")
    write_costs(costs, out / f"{STEM}_cost.csv")
