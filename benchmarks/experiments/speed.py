"""What a step costs: whole updates beside Adam's, and their share of a training step.

Every case alternates between all methods, round after round, so that a slow moment of
the machine falls on all of them; what counts are medians and ratios.
"""

import argparse
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from optax import contrib

import metalr_optax
from benchmarks.harness.arguments import positive
from benchmarks.harness.costs import time_in_turns
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Frame, write_frame
from benchmarks.problems.digits import BATCHES, load_pair
from benchmarks.problems.networks import Transformer
from benchmarks.problems.problem import Problem, cross_entropy, supervised
from benchmarks.problems.tasks import next_bytes
from benchmarks.reporting import speed
from benchmarks.reporting.speed import clip_of
from metalr_optax import (
    Kernels,
    agreement_steps,
    average_weights,
    learn_rates,
    linspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    raw_product,
    scale_by_memory,
    summarize_memory,
)

SAMPLE, ALL = 2**16, 10**9
TIME = "20 minutes, alone on the machine"
Make = Callable[[int], optax.GradientTransformation]


COLUMNS = [
    "case",  # "update", "compile", or the model whose training step is meant
    "platform",
    "size",  # parameters
    "leaves",
    "method",
    "kernels",  # M, 0 where there is none
    "milliseconds",  # median of a whole update; nan where it is only compiled
    "ratio",  # median over rounds: this update over optax.adam's
    "clipped_ratio",  # the same over the baseline that clips, with its base
    "share",  # update / (gradient + update); 0 where there is no gradient
    "state_bytes",  # per parameter
    "state_leaves",
    "temporary_bytes",  # per parameter, at most at a time, from XLA
    "compile_seconds",  # of tracing and compiling, a median where only that is done
    "version",
]


class Case(NamedTuple):
    """Optimizers beside each other on one tree of parameters."""

    name: str
    params: Any
    methods: list[tuple[str, int]]  # name and M
    rounds: int  # 0 to compile only
    gradient: Callable[[Any], Any] | None = None  # of a model, jitted


def one_by_one(kernels: Kernels) -> optax.GradientTransformation:
    """Return a `paper_sgd` that evaluates every local model, as the authors do."""

    def make() -> optax.GradientTransformation:
        # Of traced kernels nobody knows whether a table would do.
        return paper_sgd(kernels=Kernels(*jax.lax.optimization_barrier(kernels)))

    return optax.GradientTransformation(
        lambda params: make().init(params),
        lambda updates, state, params=None: make().update(updates, state, params),
    )


def one_rate(progress: bool) -> optax.GradientTransformation:
    """Return Adam with a rate for each layer, with or without a schedule."""
    return scale_by_memory(
        base_optimizer=optax.scale_by_adam(),
        kernels=linspace_kernels(1.0, 1),
        signal=raw_product,
        memory_optimizer=agreement_steps(),
        progress=progress,
    )


def logged(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer that returns beside updates what there is to log."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = optimizer.update(updates, state, params)
        return (updates, summarize_memory(state)), state

    return optax.GradientTransformation(optimizer.init, update)


_CLIP = optax.clip_by_global_norm(1.0)
OPTIMIZERS: dict[str, Make] = {
    "adam": lambda _: optax.adam(1e-3),
    "sgd": lambda _: optax.sgd(1e-3),
    "momentum": lambda _: optax.sgd(1e-3, momentum=0.9),
    "clip + adam": lambda _: optax.chain(_CLIP, optax.adam(1e-3)),
    "clip + momentum": lambda _: optax.chain(_CLIP, optax.sgd(1e-3, momentum=0.9)),
    "clip + lion": lambda _: optax.chain(_CLIP, optax.lion(1e-3)),
    "dowg": lambda _: contrib.dowg(),
    "prodigy": lambda _: contrib.prodigy(),
    "schedule_free_adamw": lambda _: contrib.schedule_free_adamw(),
    "memory_sgd": lambda num: memory_sgd(kernels=linspace_kernels(1.0, num)),
    "memory_adam": lambda num: memory_adam(
        kernels=linspace_kernels(1.0, num), clip_norm=1.0
    ),
    "memory_adam, averaged": lambda num: optax.chain(
        memory_adam(kernels=linspace_kernels(1.0, num), clip_norm=1.0),
        average_weights(),
    ),
    "learn_rates, lion": lambda _: learn_rates(optax.lion(1.0), clip_norm=1.0),
    "memory_adam, all": lambda num: memory_adam(
        clip_norm=1.0, kernels=linspace_kernels(1.0, num), evidence_sample=ALL
    ),
    "one rate": lambda _: one_rate(progress=False),
    "by progress": lambda _: one_rate(progress=True),
    "paper_sgd": lambda num: paper_sgd(kernels=linspace_kernels(2.0, num)),
    "paper_sgd, sampled": lambda num: paper_sgd(
        kernels=linspace_kernels(2.0, num), evidence_sample=SAMPLE
    ),
    "paper_sgd, one by one": lambda num: one_by_one(linspace_kernels(2.0, num)),
    "paper_adam": lambda num: paper_adam(kernels=linspace_kernels(2.0, num)),
    "paper_adam, sampled": lambda num: paper_adam(
        kernels=linspace_kernels(2.0, num), evidence_sample=SAMPLE
    ),
}
EXACT, ADAM = ("paper_sgd", 20), ("adam", 0)
CLIPPED = ("clip + adam", 0), ("clip + momentum", 0), ("clip + lion", 0)
LION, AVERAGED = ("learn_rates, lion", 1), ("memory_adam, averaged", 1)
_NEW = [(name, 1) for name in OPTIMIZERS if name.startswith("memory")] + [LION]
_PAPERS = [
    (name, 20)
    for name in OPTIMIZERS
    if name.startswith("paper") and "one by" not in name
]
MEMORIES = [*_NEW, *_PAPERS]
BY_PROGRESS = ("one rate", 1), ("by progress", 1)
_OURS = ("memory", "paper", "learn_rates", *dict(BY_PROGRESS))
OTHERS = [(name, 0) for name in OPTIMIZERS if not name.startswith(_OURS)]
_LOGGED = [("memory_sgd", 1), ("memory_adam", 1), ("paper_sgd", 20)]
OPTIMIZERS |= {
    f"{name}, logged": lambda num, name=name: logged(OPTIMIZERS[name](num))
    for name, _ in _LOGGED
}


def make_cases(sizes: list[int]) -> Iterator[Case]:
    """Yield the cases: by size, by M, by number of leaves, and in training."""
    for size in sizes:
        methods = [*OTHERS, *MEMORIES]
        if size <= 10**6:
            methods.append(("paper_sgd, one by one", 20))
        if size > 10**7:
            methods = [
                ADAM,
                *CLIPPED,
                ("memory_sgd", 1),
                ("memory_adam", 1),
                LION,
                AVERAGED,
                EXACT,
            ]
            methods.append(("paper_sgd, sampled", 20))
        rounds = 31 if size <= 10**6 else 9 if size <= 10**7 else 5
        yield Case("update", make_leaves(size, 1), methods, rounds)
        if size in (10**6, 10**7):
            more = [("paper_sgd", num) for num in (1, 20, 100, 500, 1000)]
            yield Case("update", make_leaves(size, 1), [ADAM, *CLIPPED, *more], rounds)
    ours = [ADAM, *CLIPPED, ("memory_sgd", 1), ("memory_adam", 1), LION, AVERAGED]
    for leaves in (10, 100, 300, 1000):
        methods = [*ours, EXACT, ("paper_adam", 20)] if leaves <= 100 else ours
        if leaves < 1000:
            yield Case("update", make_leaves(4 * 10**6, leaves), methods, 9)
        yield Case("compile", make_leaves(4 * 10**6, leaves), ours[1:], 0)
    yield Case("compile, decoder", decoder(), ours[1:], 0)
    squares = {f"layer {i}": {"kernel": jnp.zeros((200, 200))} for i in range(100)}
    yield Case("100 tensors of 40,000", squares, ours, 15)
    for params in (make_leaves(10**4, 1), make_leaves(10**6, 1), squares):
        yield Case("progress", params, [ADAM, *CLIPPED, *BY_PROGRESS], 301)
    yield training_case("MNIST CNN, batch 64", load_pair(BATCHES), rounds=201)
    network, rows = Transformer(width=128, layers=4), next_bytes(128, stride=24)
    text = supervised("text", network, rows, cross_entropy, 32, 1, 1)
    yield training_case("transformer, 32 x 128 bytes", text, rounds=31)


def make_leaves(size: int, count: int) -> Any:
    """Make a tree of about as many parameters: layers of a kernel and a bias."""
    if count == 1:
        rows = 10 ** (round(math.log10(size)) // 2)
        return {"kernel": jnp.zeros((rows, size // rows))}
    width = 8 * round(math.sqrt(2 * size / count) / 8)
    return {
        f"layer {index}": {
            "kernel": jnp.zeros((width, width)),
            "bias": jnp.zeros(width),
        }
        for index in range(count // 2)
    }


def decoder() -> Any:
    """Return the shapes of a decoder of 12 layers and 124 million parameters."""
    width = 768
    shapes: dict[str, tuple[int, ...]] = {"wte": (50257, width), "wpe": (1024, width)}
    dense = {"attention": (1, 3), "projection": (1, 1), "up": (1, 4), "down": (4, 1)}
    for layer in range(12):
        for name in ("norm_1", "norm_2"):
            shapes |= {f"{layer}/{name}/{part}": (width,) for part in ("scale", "bias")}
        for name, (rows, columns) in dense.items():
            shapes[f"{layer}/{name}/kernel"] = (rows * width, columns * width)
            shapes[f"{layer}/{name}/bias"] = (columns * width,)
    shapes |= {f"norm/{part}": (width,) for part in ("scale", "bias")}
    tree: dict[str, dict[str, Any]] = {}
    for name, shape in shapes.items():
        layer, _, part = name.rpartition("/")
        leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
        tree.setdefault(layer or name, {})[part or name] = leaf
    return tree


def training_case(name: str, problem: Problem, rounds: int) -> Case:
    """Return the case of a problem, whose gradient is timed along with the updates."""
    params, extra = problem.start(problem.data, jax.random.key(0))
    gradient = jax.jit(problem.gradients)
    also_logged = [(f"{method}, logged", num) for method, num in _LOGGED]
    return Case(
        *(name, params, [ADAM, *CLIPPED, *MEMORIES, *also_logged], rounds),
        lambda params: gradient(problem.data, params, extra, 0),
    )


def run_case(case: Case) -> Frame:
    """Return a row a method: compiled, then timed in turns if there are rounds."""
    leaves, facts, steps = jax.tree.leaves(case.params), [], {}
    for _ in range(3 if case.rounds == 0 and len(leaves) <= 100 else 1):
        for method in case.methods:
            steps[method], found = compile_update(method, case.params)
            facts.append({"method": method[0], "kernels": method[1], **found})
    keys = ["method", "kernels"]
    rows = pd.DataFrame(facts).groupby(keys, sort=False).median().reset_index()
    times = time_updates(case, steps) if case.rounds else {}

    def over(base: Any) -> list[float]:
        nothing = np.full(1, np.nan)
        pairs = [(times.get(x, nothing), times.get(base(x), nothing)) for x in steps]
        return [float(np.median(one / other)) for one, other in pairs]

    gradient = over(lambda method: None)
    return rows.assign(
        case=case.name,
        platform=jax.default_backend(),
        size=sum(leaf.size for leaf in leaves),
        leaves=len(leaves),
        milliseconds=[1e3 * float(np.median(times.get(x, np.nan))) for x in steps],
        ratio=over(lambda method: ADAM),
        clipped_ratio=over(lambda method: (clip_of(method[0]), 0)),
        share=[0.0 if np.isnan(x) else x / (1.0 + x) for x in gradient],
        version=metalr_optax.__version__,
    )[COLUMNS]


def compile_update(method: tuple[str, int], params: Any) -> tuple[Any, dict]:
    """Return a compiled update, its state donated, and what XLA says of it."""
    optimizer = OPTIMIZERS[method[0]](method[1])
    state = jax.eval_shape(optimizer.init, params)
    jax.clear_caches()
    start = time.perf_counter()
    update = jax.jit(optimizer.update, donate_argnums=1)
    step = update.lower(params, state, params).compile()
    seconds = time.perf_counter() - start
    analysis, leaves = step.memory_analysis(), jax.tree.leaves(state)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return step, {
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / size,
        "state_leaves": len(leaves),
        "temporary_bytes": analysis.temp_size_in_bytes / size if analysis else np.nan,
        "compile_seconds": seconds,
    }


def time_updates(case: Case, steps: dict[Any, Any]) -> dict[Any, np.ndarray]:
    """Return the seconds of every method, round after round; None is the gradient."""
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(case.params))))
    gradients = jax.tree.map(
        lambda leaf: 0.5 * jax.random.normal(next(keys), leaf.shape), case.params
    )
    states = {
        (name, num): jax.jit(OPTIMIZERS[name](num).init)(case.params)
        for name, num in steps
    }

    size = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    repeats = max(1, min(5, 10**6 // size))

    def update(method: Any) -> Any:
        updates = None
        for _ in range(repeats):
            step = steps[method](gradients, states[method], case.params)
            updates, states[method] = step
        return updates, states[method]

    calls = {method: functools.partial(update, method) for method in steps}
    if case.gradient is not None:
        calls[None] = functools.partial(case.gradient, case.params)
    times = time_in_turns(calls, case.rounds)
    return {key: x / (repeats if key else 1) for key, x in times.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what may be asked."""
    parser.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[10**4, 10**5, 10**6, 10**7, 10**8],
        help="parameters of the model",
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Time the updates of all cases, and write `speed.csv`."""
    frames, cases = [], list(make_cases(arguments.sizes))
    tell = counted(say, len(cases))
    for case in cases:
        rows = run_case(case)
        frames.append(rows)
        for one in rows.itertuples():
            say(
                f"{one.method}, M={one.kernels}: {one.milliseconds:.2f} ms, "
                f"{one.clipped_ratio:.2f} times a clip and its base; "
                f"compiled in {one.compile_seconds:.2f} s"
            )
        tell(f"{case.name}, {rows['size'][0]:,} parameters in {rows['leaves'][0]}")
    write_speed(pd.concat(frames), arguments.out / "speed.csv")


def write_speed(rows: Frame, path: pathlib.Path) -> None:
    """Write the rows, numbers with four digits."""
    numbers = rows.select_dtypes("float").map(lambda x: float(f"{x:.4g}"))
    write_frame(rows.assign(**numbers), path)


report = speed.report
