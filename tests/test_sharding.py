"""What devices say to each other, and that several processes learn as one."""

import math
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from train_sharded import train

from metalr_optax import (
    get_kernel_inputs,
    get_rates,
    memory_adam,
    paper_adam,
    paper_sgd,
    scale_by_memory,
    summarize_memory,
)

SPECS = {
    "both axes": (("x", "y"), (None, None, "y", "x")),
    "first": (("x",), (None, None, ("x", "y"))),
    "last": ((None, ("y", "x")), (None, None, None, "x")),
}
HISTOGRAM = 2**16  # bytes
SAMPLE = 2**12 * 4  # bytes; the tensors have eight and four times as many


def compile_update(optimizer, spec, kind=AxisType.Auto):
    """Compile an update of parameters that are sharded over a 4x2 mesh."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), (kind, kind))

    def struct(shape, spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    dense, convolution = SPECS[spec]
    params = {
        "dense": {
            "kernel": struct((256, 128), dense),
            "bias": struct((128,), dense[-1:]),
        },
        "convolution": {
            "kernel": struct((3, 3, 64, 32), convolution),
            "bias": struct((128,), ()),
        },
    }
    with jax.set_mesh(mesh):
        # Compiled, because only then it is known where the state of a sharded
        # model lies.
        zeros = jax.tree.map(
            lambda p: jax.device_put(jnp.zeros(p.shape), p.sharding), params
        )
        state = jax.jit(optimizer.init)(zeros)
        return zeros, jax.jit(optimizer.update).lower(zeros, state).compile()


def collectives(compiled):
    """Return (operation, bytes) of all that devices exchange."""
    found = re.findall(
        r"= (.*?) (all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter)"
        r"(?:-start)?\(",
        compiled.as_text(),
    )
    sizes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
    return [
        (
            operation,
            sum(
                sizes[dtype] * math.prod(int(n) for n in shape.split(",") if n)
                for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
            ),
        )
        for result, operation in found
    ]


@pytest.mark.parametrize(
    ("spec", "make", "kind"),
    [(spec, paper_sgd, AxisType.Auto) for spec in SPECS]
    + [
        ("both axes", paper_sgd, AxisType.Explicit),
        ("last", paper_adam, AxisType.Auto),
    ],
)
def test_devices_exchange_histograms_and_no_tensor(spec, make, kind):
    params, compiled = compile_update(make(), spec, kind)
    exchanged = collectives(compiled)
    # Sums, and what logs need: samples.
    assert {operation for operation, _ in exchanged} <= {"all-reduce", "all-gather"}
    gathered = [size for operation, size in exchanged if operation == "all-gather"]
    assert max(gathered, default=0) <= SAMPLE
    # Two memories; the axes of a mesh are summed over one after the other.
    assert max(size for _, size in exchanged) <= 2 * HISTOGRAM
    updates, state = compiled.output_shardings
    last = [state[1].last_direction]
    if make is paper_adam:
        last += [state[1].base_state.mu, state[1].base_state.nu]
    for out in (updates, *last):
        for sharding, leaf in zip(
            jax.tree.leaves(out), jax.tree.leaves(params), strict=True
        ):
            assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize("make", [paper_sgd, memory_adam])
def test_devices_exchange_samples_and_no_tensor(make):
    optimizer = make(evidence_sample=2**12)
    _, compiled = compile_update(optimizer, "both axes")
    assert max(size for _, size in collectives(compiled)) <= SAMPLE


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_logs_and_rates_of_sharded_parameters_are_those_of_one_device(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), (kind, kind))
    optimizer = paper_sgd()

    def look(state):
        return summarize_memory(state), get_rates(state), get_kernel_inputs(state)

    # 1000 numbers on 4 devices: no stride that leaves few divides them.
    params = {"w": jax.random.normal(jax.random.key(0), (1000, 40))}

    def find(params):
        state = jax.jit(optimizer.init)(params)
        _, state = jax.jit(optimizer.update)(params, state)
        return jax.jit(look)(state), state

    expected, _ = find(params)
    for spec in (("x", "y"), (("x", "y"),)):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        with jax.set_mesh(mesh):
            inside, state = find(jax.device_put(params, sharding))
            # Without jit once: every operation is compiled on its own.
            found = look(state) if spec == ("x", "y") else inside
        assert found[1]["w"].sharding.is_equivalent_to(sharding, 2)
        for one, other in zip(
            jax.tree.leaves((found, inside)),
            jax.tree.leaves((expected, expected)),
            strict=True,
        ):
            np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        memory_adam(optax.linear_schedule(1.0, 0.0, 10), weight_decay=0.1),
        scale_by_memory(base_optimizer=optax.scale_by_adam()),
    ],
    ids=["memory_adam", "scale_by_memory"],
)
def test_devices_of_a_shard_map_may_learn_each_from_its_own_gradients(optimizer):
    def two_steps(gradients):
        params = jnp.ones(gradients.shape[1:])
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    mesh = jax.make_mesh((4,), ("z",), (AxisType.Auto,))
    spec = PartitionSpec(None, "z")
    apart = jax.shard_map(
        two_steps, mesh=mesh, in_specs=spec, out_specs=PartitionSpec("z")
    )
    gradients = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    alone = jax.jit(jax.vmap(two_steps, in_axes=1))
    expected = alone(gradients.reshape(2, 4, 2))
    found = jax.jit(apart)(gradients)
    np.testing.assert_allclose(found, expected.ravel(), rtol=1e-6)


def test_two_processes_learn_what_one_learns(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = pathlib.Path(__file__).with_name("train_sharded.py")
    files = [tmp_path / f"{index}.npy" for index in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, "2", str(index), file],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, file in enumerate(files)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    expected = train(np.array(jax.devices()[:1]).reshape(1, 1))
    assert np.ptp(expected) > 1e-3
    for file in files:
        np.testing.assert_allclose(np.load(file), expected, rtol=1e-3)
