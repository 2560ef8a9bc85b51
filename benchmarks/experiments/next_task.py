"""A memory from the end of a run on one task starts the next.

Thirteen pairs of tasks as people have them, in four classes that were named beforehand:
the same task with another seed; another task of its kind (turned images, other digits,
the next recording of a robot, another half of a text); more noise; a larger network.
The first run has another seed than the second, so that nothing goes along but the
memory. Recordings come in turn: each run starts with the memory of the one before. The
third is not judged: no tuned baseline predicts there better than no change does.

Starts: *schedule*, the memory as it is, rates that follow the progress of the run; and
fresh ones from four base rates. Controls: *one rate*, the last of the first run;
*mean*, each layer at the geometric mean of its own schedule; *shuffled*, each layer's
schedule in a random order; *frozen*, the schedule without any evidence; *unrelated*, a
memory of noise or of labels that belong to other inputs.
"""

import functools
from typing import Any

import numpy as np
import optax

from benchmarks.experiments.transfer import fresh_state
from benchmarks.harness import choose
from benchmarks.harness.command import Arguments, Parser, Say, add_tasks
from benchmarks.harness.progress import counted
from benchmarks.harness.store import TUNING_SEED, Store, read_setting
from benchmarks.harness.sweep import Memories, Trainer, from_rates, seeds_of, tune
from benchmarks.methods import LIBRARY, METHODS, OURS, Method, sample_settings
from benchmarks.problems.next_tasks import MOVES, Move
from benchmarks.reporting import next_task
from benchmarks.reporting.next_task import FRESH, ONE_RATE, SCHEDULE, STARTS
from metalr_optax import Memory, adapt_memory, memory_adam, memory_sgd
from metalr_optax.progress import MARKS

TIME = "1 hour; with --seeds 10 as published, 3 hours"
LEARNERS = [LIBRARY[name]._replace(has_memory=True) for name in OURS]


def control(start: str, memory: dict[str, Memory], seen: np.ndarray) -> dict:
    """Return the memory that a start begins with; `seen` are parts of schedules."""
    rng, changed = np.random.default_rng(0), {}
    for label, one in memory.items():
        rates, schedule = one.rates, np.array(one.schedule)
        if start == "shuffled":
            schedule[seen] = rng.permutation(schedule[seen])
        elif start == "mean":
            rates = rates * np.exp(np.mean(schedule[seen]))
        if start in (ONE_RATE, "mean"):
            # Zeros instead of None: the same compiled program.
            schedule = np.zeros_like(schedule)
        changed[label] = one._replace(rates=rates, schedule=schedule)
    return changed


def freeze(method: Method) -> Method:
    """Return the method with memories that follow their schedules and learn nothing."""
    make: Any = {"memory_adam": memory_adam, "memory_sgd": memory_sgd}[method.name]
    still = optax.set_to_zero()
    return method._replace(make=lambda rate: make(initial=rate, memory_optimizer=still))


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    add_tasks(parser, MOVES)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `next_task.csv.gz`."""
    store = Store(arguments.out / "next_task.csv.gz")
    tell = counted(say, len(arguments.tasks))
    for name in arguments.tasks:
        move = MOVES[name]()
        some = min(arguments.seeds, move.seeds)
        run_baselines(move, store, some)
        for method in LEARNERS:
            run_starts(move, method, store, some)
        tell(f"{move.label}: all starts are done")


def run_baselines(move: Move, store: Store, seeds: int) -> None:
    """Run Adam on the second task: the best of its trials there, and on the first."""
    adam, first = METHODS["adam"], move.first[-1]
    jobs = [(one, TUNING_SEED) for one in sample_settings(adam, choose.TRIALS)]
    Trainer(first, adam, store).run(jobs)
    tried = choose.judge(store.rows(first.name))
    there = choose.lowest_trial(tried, adam, choose.TRIALS)
    trainer = Trainer(move.second, adam, store)
    tune(trainer, seeds, choose.TRIALS, budgets=(choose.TRIALS,))
    trainer.run(seeds_of(read_setting(there), seeds))


def run_starts(move: Move, method: Method, store: Store, seeds: int) -> None:
    """Run a memory on the second task: fresh ones, those from before, and controls."""
    trainer = Trainer(move.second, method, store)
    trainer.run(from_rates(FRESH, seeds))
    still = Trainer(move.second, freeze(method), store)
    state = fresh_state(move.second, method)
    learned = functools.cache(lambda: learn(move, method, store, seeds))
    # Local models of the schedule that the last first run went by.
    seen = np.less_equal(MARKS, move.first[-1].horizon)

    def begin(start: str) -> Memories:
        # On the same network fitting changes nothing.
        return [
            adapt_memory(control(start, memory, seen), state)
            for memory in learned()[start == "unrelated"]
        ]

    # Fewer if it takes long.
    for start in STARTS if move.unrelated is not None else (SCHEDULE, ONE_RATE):
        runner = still if start == "frozen" else trainer
        jobs = seeds_of(method.default, seeds)
        runner.run(jobs, start, functools.partial(begin, start))


def learn(move: Move, method: Method, store: Store, seeds: int) -> Any:
    """Return memories of the first tasks in turn, and of the unrelated."""
    trainers = [Trainer(problem, method, store) for problem in move.first]
    learned: Memories = ()
    for trainer in trainers:
        learned = trainer.learn(trainer.problem.data, seeds, learned)
    if move.unrelated is None:
        return learned, []
    return learned, trainers[0].learn(move.unrelated, seeds)


report = next_task.report
