"""What a step costs: whole updates beside Adam's, and their share of a training step.

Every case alternates between all methods, round after round, so that a slow moment of
the machine falls on all of them; what counts are medians and ratios.
"""

import functools
import math
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
from benchmarks.harness.command import Arguments, Parser, Say, positive
from benchmarks.harness.costs import time_in_turns
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Frame, write_frame
from benchmarks.problems.digits import BATCHES, load_pair
from benchmarks.problems.networks import Transformer
from benchmarks.problems.problem import Problem, cross_entropy, supervised
from benchmarks.problems.tasks import next_bytes
from benchmarks.reporting import speed
from metalr_optax import (
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

TIME = "20 minutes, alone on the machine"
Make = Callable[[int], optax.GradientTransformation]


class Case(NamedTuple):
    """Optimizers beside each other on one tree of parameters."""

    name: str
    params: Any
    methods: list[tuple[str, int]]  # name and M
    rounds: int  # 0 to compile only
    gradient: Callable[[Any], Any] | None = None  # of a model, jitted


def of_kernels(make: Callable[..., Any], bound: float, **options: Any) -> Make:
    """Return how an optimizer is made with so many local models."""
    return lambda num: make(kernels=linspace_kernels(bound, num), **options)


def one_by_one(num: int) -> optax.GradientTransformation:
    """Return a `paper_sgd` that evaluates every local model, as the authors do."""
    kernels = linspace_kernels(2.0, num)

    def make() -> Any:
        # Of traced kernels nobody knows whether a table would do.
        return paper_sgd(kernels=jax.lax.optimization_barrier(kernels))

    return optax.GradientTransformation(
        lambda params: make().init(params),
        lambda updates, state, params=None: make().update(updates, state, params),
    )


def one_rate(progress: bool) -> Make:
    """Return how Adam is made with a rate for each layer, and a schedule or none."""
    return of_kernels(
        *(scale_by_memory, 1.0),
        base_optimizer=optax.scale_by_adam(),
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


_ALL, _SAMPLE = {"evidence_sample": 10**9}, {"evidence_sample": 2**16}
_CLIP = optax.clip_by_global_norm(1.0)
_ADAM = of_kernels(memory_adam, 1.0, clip_norm=1.0)
_OTHERS: dict[str, Make] = {
    "adam": lambda _: optax.adam(1e-3),
    "sgd": lambda _: optax.sgd(1e-3),
    "momentum": lambda _: optax.sgd(1e-3, momentum=0.9),
    "clip + adam": lambda _: optax.chain(_CLIP, optax.adam(1e-3)),
    "clip + momentum": lambda _: optax.chain(_CLIP, optax.sgd(1e-3, momentum=0.9)),
    "clip + lion": lambda _: optax.chain(_CLIP, optax.lion(1e-3)),
    "dowg": lambda _: contrib.dowg(),
    "prodigy": lambda _: contrib.prodigy(),
    "schedule_free_adamw": lambda _: contrib.schedule_free_adamw(),
}
OPTIMIZERS = _OTHERS | {
    "memory_sgd": of_kernels(memory_sgd, 1.0),
    "memory_adam": _ADAM,
    "memory_adam, averaged": lambda num: optax.chain(_ADAM(num), average_weights()),
    "memory_adam, all": of_kernels(memory_adam, 1.0, clip_norm=1.0, **_ALL),
    "learn_rates, lion": lambda _: learn_rates(optax.lion(1.0), clip_norm=1.0),
    "one rate": one_rate(progress=False),
    "by progress": one_rate(progress=True),
    "paper_sgd": of_kernels(paper_sgd, 2.0),
    "paper_sgd, sampled": of_kernels(paper_sgd, 2.0, **_SAMPLE),
    "paper_sgd, one by one": one_by_one,
    "paper_adam": of_kernels(paper_adam, 2.0),
    "paper_adam, sampled": of_kernels(paper_adam, 2.0, **_SAMPLE),
}
EXACT, ADAM = ("paper_sgd", 20), ("adam", 0)
CLIPPED = [(name, 0) for name in _OTHERS if name.startswith("clip")]
BY_PROGRESS = ("one rate", 1), ("by progress", 1)
OTHERS = [(name, 0) for name in _OTHERS]
MEMORIES = [(name, 1) for name in OPTIMIZERS if name.startswith(("memory", "learn"))]
MEMORIES += [(name, 20) for name in OPTIMIZERS if name.startswith("paper")]
MEMORIES.remove(("paper_sgd, one by one", 20))
_SHORT = ("memory_sgd", "memory_adam", "learn_rates, lion", "memory_adam, averaged")
_OURS = [ADAM, *CLIPPED, *((name, 1) for name in _SHORT)]
_LOGGED = [("memory_sgd", 1), ("memory_adam", 1), EXACT]
OPTIMIZERS |= {
    f"{name}, logged": lambda num, name=name: logged(OPTIMIZERS[name](num))
    for name, _ in _LOGGED
}


def make_cases(sizes: list[int]) -> Iterator[Case]:
    """Yield the cases: by size, by M, by number of leaves, and in training."""
    for size in sizes:
        rounds = 31 if size <= 10**6 else 9 if size <= 10**7 else 5
        methods, params = [*OTHERS, *MEMORIES], make_leaves(size, 1)
        if size <= 10**6:
            methods.append(("paper_sgd, one by one", 20))
        if size > 10**7:
            methods = [*_OURS, EXACT, ("paper_sgd, sampled", 20)]
        yield Case("update", params, methods, rounds)
        if size in (10**6, 10**7):
            more = [("paper_sgd", num) for num in (1, 20, 100, 500, 1000)]
            yield Case("update", params, [ADAM, *CLIPPED, *more], rounds)
    for leaves in (10, 100, 300, 1000):
        params = make_leaves(4 * 10**6, leaves)
        papers = [EXACT, ("paper_adam", 20)] if leaves <= 100 else []
        if leaves < 1000:
            yield Case("update", params, [*_OURS, *papers], 9)
        yield Case("compile", params, _OURS[1:], 0)
    yield Case("compile, decoder", decoder(), _OURS[1:], 0)
    squares = {f"layer {i}": {"kernel": jnp.zeros((200, 200))} for i in range(100)}
    yield Case("100 tensors of 40,000", squares, _OURS, 15)
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
        f"layer {i}": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)}
        for i in range(count // 2)
    }


def decoder() -> Any:
    """Return the shapes of a decoder of 12 layers and 124 million parameters."""

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    width = 768
    norm = {"scale": leaf(width), "bias": leaf(width)}
    tree = {"wte": {"wte": leaf(50257, width)}, "wpe": {"wpe": leaf(1024, width)}}
    tree["norm"] = norm
    dense = {"attention": (1, 3), "projection": (1, 1), "up": (1, 4), "down": (4, 1)}
    for layer in range(12):
        tree |= {f"{layer}/norm_1": norm, f"{layer}/norm_2": norm}
        for name, (rows, columns) in dense.items():
            kernel, bias = leaf(rows * width, columns * width), leaf(columns * width)
            tree[f"{layer}/{name}"] = {"kernel": kernel, "bias": bias}
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
    """Return a row a method: compiled, then timed in turns if there are rounds.

    Milliseconds are the median of a whole update, ratios medians over rounds: over
    `optax.adam`, and over the baseline that clips, with the method's base. A share is
    update / (gradient + update). Bytes are per parameter, temporary ones at most at a
    time. What is only compiled is not timed, and its seconds are a median.
    """
    leaves, steps = len(jax.tree.leaves(case.params)), {}
    compiled: dict[Any, list[dict]] = {method: [] for method in case.methods}
    for _ in range(3 if case.rounds == 0 and leaves <= 300 else 1):
        for method in case.methods:
            steps[method], facts = compile_update(method, case.params)
            compiled[method].append(facts)
    times, nothing = time_updates(case, steps), np.full(1, np.nan)
    rows = []
    for (name, num), facts in compiled.items():

        def over(base: Any, method: Any = (name, num)) -> float:
            ratios = times.get(method, nothing) / times.get(base, nothing)
            return float(np.median(ratios))

        rows.append(
            {
                "case": case.name,
                "platform": jax.default_backend(),
                "size": optax.tree.size(case.params),
                "leaves": leaves,
                "method": name,
                "kernels": num,  # 0 where there is none
                "milliseconds": 1e3 * float(np.median(times.get((name, num), np.nan))),
                "ratio": over(ADAM),
                "clipped_ratio": over((speed.clip_of(name), 0)),
                "share": over(None) / (1.0 + over(None)) if case.gradient else 0.0,
                **facts[-1],
                "compile_seconds": np.median([one["compile_seconds"] for one in facts]),
                "version": metalr_optax.__version__,
            }
        )
    return pd.DataFrame(rows)


def compile_update(method: tuple[str, int], params: Any) -> tuple[Any, dict]:
    """Return a compiled update, its state donated, and what XLA says of it."""
    optimizer = OPTIMIZERS[method[0]](method[1])
    state = jax.eval_shape(optimizer.init, params)
    jax.clear_caches()
    start = time.perf_counter()
    update = jax.jit(optimizer.update, donate_argnums=1)
    step = update.lower(params, state, params).compile()
    seconds = time.perf_counter() - start
    analysis: Any = step.memory_analysis()
    leaves, size = jax.tree.leaves(state), optax.tree.size(params)
    return step, {
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / size,
        "state_leaves": len(leaves),
        "temporary_bytes": analysis.temp_size_in_bytes / size,
        "compile_seconds": seconds,
    }


def time_updates(case: Case, steps: dict[Any, Any]) -> dict[Any, np.ndarray]:
    """Return the seconds of every method, round after round; None is the gradient."""
    if case.rounds == 0:
        return {}
    drawn = optax.tree.random_like(jax.random.key(0), case.params)
    gradients = optax.tree.scale(0.5, drawn)
    states = {
        (name, num): jax.jit(OPTIMIZERS[name](num).init)(case.params)
        for name, num in steps
    }
    # What takes a moment is called more than once.
    repeats = max(1, min(5, 10**6 // optax.tree.size(case.params)))

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


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    sizes, text = [10**n for n in range(4, 9)], "parameters of the model"
    parser.add_argument("--sizes", type=positive, nargs="+", default=sizes, help=text)


def run(arguments: Arguments, say: Say) -> None:
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
    found = pd.concat(frames)
    numbers = found.select_dtypes("float").map(lambda x: float(f"{x:.4g}"))
    write_frame(found.assign(**numbers), arguments.out / "speed.csv")


report = speed.report
