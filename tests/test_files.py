"""Files of memories: nothing is lost, nothing is run, no damage passes."""

import functools
import hashlib
import json
import os
import pathlib
import resource
import signal
import stat
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import metalr_optax
from metalr_optax import (
    Kernels,
    Memory,
    get_memory,
    linspace_kernels,
    load_memory,
    load_metadata,
    logspace_kernels,
    memory_adam,
    memory_sgd,
    paper_sgd,
    save_memory,
)

VERSION_1 = pathlib.Path(__file__).parent / "data" / "memory_v1.safetensors"
PARAMS = {"a": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "c": jnp.ones(2)}
FIELDS = "centers", "widths", "rates", "counts", "relative", "schedule", "fan_in"
SGD = memory_sgd()
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@functools.cache
def learned(optimizer, steps=4):
    state, update = jax.jit(optimizer.init)(PARAMS), jax.jit(optimizer.update)
    for step in range(steps):
        grads = jax.tree.map(lambda x, s=step: x * (1.0 + 0.1 * s), PARAMS)
        _, state = update(grads, state, PARAMS)
    return get_memory(state)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.safetensors"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A small file, as bytes."""
    file = tmp_path_factory.mktemp("files") / "small"
    save_memory(file, learned(paper_sgd(kernels=linspace_kernels(2.0, 3))))
    return file.read_bytes()


# What is saved comes back


@pytest.mark.parametrize(
    "optimizer",
    [SGD, memory_adam(kernels=logspace_kernels(8.0, 20, smallest=0.02)), paper_sgd()],
    ids=["memory_sgd", "memory_adam", "paper_sgd"],
)
def test_what_was_learned_comes_back_and_goes_on(path, optimizer):
    memory = learned(optimizer)
    assert all(one.evidence_weight.sum() > 0 for one in memory.values())
    save_memory(path, memory)
    loaded = load_memory(path)
    chex.assert_trees_all_equal(loaded, memory)
    chex.assert_trees_all_equal_dtypes(loaded, memory)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    save_memory(path, loaded)
    chex.assert_trees_all_equal(load_memory(path), memory)


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(STRINGS, min_size=1, max_size=3, unique=True),
    metadata=st.dictionaries(STRINGS, STRINGS, max_size=3),
    double=st.booleans(),
    num=st.integers(1, 5),
    known=st.sampled_from(["", "schedule", "fan_in"]),
)
def test_any_label_and_string_comes_back(
    tmp_path_factory, labels, metadata, double, num, known
):
    path = tmp_path_factory.mktemp("any") / "file"
    dtype = np.float64 if double else np.float32
    kernels = Kernels(*(one.astype(dtype) for one in linspace_kernels(1.0, num)))
    rates = np.geomspace(1e-9, 10.0, num).astype(dtype)
    one = Memory(kernels, rates)
    if known == "schedule":
        schedule = np.linspace(-9.0, 9.0, 20).astype(dtype)
        one = Memory(kernels, rates, rates, np.bool_(True), schedule)
    if known == "fan_in":
        one = one._replace(fan_in=dtype(64.0))
    memory = dict.fromkeys(labels, one)
    save_memory(path, memory, metadata=metadata)
    loaded = load_memory(path)
    assert list(loaded) == sorted(labels)
    for label in labels:
        chex.assert_trees_all_equal(loaded[label], one)
        chex.assert_trees_all_equal_dtypes(loaded[label], one)
    # What older releases can read.
    version = {"": "1", "schedule": "2", "fan_in": "3"}[known]
    own = {"format_version": version, "library_version": metalr_optax.__version__}
    assert load_metadata(path) == metadata | own


@pytest.mark.parametrize("string", ["0" * 64, '"sha256":"' + "0" * 64 + '"', "sha256"])
def test_strings_that_look_like_a_digest_are_strings(path, string):
    save_memory(path, learned(SGD), metadata={"a": string, string + "!": string})
    assert load_metadata(path)["a"] == string
    load_memory(path)


def test_other_tools_can_look_inside(path):
    memory = learned(paper_sgd())
    save_memory(path, memory, metadata={"task": "1 vs 2"})
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["task"] == "1 vs 2"
        assert file.metadata()["format_version"] == "3"
        assert file.get_tensor("a/fan_in") == 2.0
        np.testing.assert_array_equal(file.get_tensor("a/rates"), memory["a"].rates)
        assert set(file.keys()) == {
            f"{label}/{field}" for label in ("a", "c") for field in FIELDS
        }


def test_a_file_of_version_1_stays_readable():
    memory = load_memory(VERSION_1)
    assert load_metadata(VERSION_1)["task"] == "a committed file"
    assert list(memory) == ["params/Dense_0", "params/Dense_1"]
    first, second = memory.values()
    np.testing.assert_array_equal(first.kernels.centers, float32(-1.0, 0.0, 1.0))
    np.testing.assert_array_equal(first.kernels.widths, np.full(3, 0.5, np.float32))
    np.testing.assert_array_equal(first.rates, float32(0.1, 0.2, 0.3))
    np.testing.assert_array_equal(first.evidence_weight, float32(1.0, 2.0, 3.0))
    assert first.rms_normalized == np.bool_(True)
    assert second.evidence_weight is None
    assert second.rms_normalized is None
    assert second.rates.dtype == np.float64


def test_a_file_of_version_2_stays_readable(path):
    fields = {"schedule": np.full(20, 0.5, np.float32), "history": np.array(True)}
    path.write_bytes(sign(hostile(**fields), version="2"))
    memory = load_memory(path)["a"]
    np.testing.assert_array_equal(memory.schedule, fields["schedule"])
    assert memory.history
    assert memory.fan_in is None
    # And written as it was: an older release reads it.
    save_memory(path, {"a": memory})
    assert load_metadata(path)["format_version"] == "2"


# Damage


def refused(path, match=None):
    for load in (load_memory, load_metadata):
        with pytest.raises(ValueError, match=match) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_no_flipped_bit_passes(path, content):
    """All of the eight bytes that say how long the header is, then one a byte."""
    for position in range(len(content)):
        for bit in range(8) if position < 8 else [position % 8]:
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="cannot be trusted"):
                load_memory(path)


def test_no_part_of_a_file_passes(path, content):
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cannot be trusted"):
            load_memory(path)


class Bomb:
    """A pickle, and whether anything has read it: its opcodes call `explode`."""

    ran = False
    content = f"c{__name__}\nexplode\n)R.".encode()


def explode():
    Bomb.ran = True


def damage(rng, content):
    """Return one of many kinds of damage."""
    kind, data = rng.integers(8), bytearray(content)
    place = int(rng.integers(len(data)))
    if kind == 0:
        return bytes(rng.bytes(int(rng.integers(2000))))
    if kind == 1:
        return Bomb.content * int(rng.integers(1, 9)) + data[:place]
    if kind == 2:
        data[place:place] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 3:
        del data[place : place + int(rng.integers(1, 99))]
    elif kind == 4:
        data += rng.bytes(int(rng.integers(1, 99)))
    elif kind == 5:
        for _ in range(int(rng.integers(1, 9))):
            at = int(rng.integers(len(data)))
            data[at] = (data[at] + int(rng.integers(1, 256))) % 256
    elif kind == 6:
        data[:8] = int(rng.integers(2**63)).to_bytes(8, "little")
    else:
        size = int.from_bytes(data[:8], "little")
        header = bytearray(b"[" * size if place % 2 else b'{"a":' * (size // 5 + 1))
        data[8 : 8 + size] = header[:size]
    return bytes(data)


def test_a_thousand_damaged_files_lose_and_run_nothing(path, content):
    seed = np.random.SeedSequence().entropy
    print(f"seed of the damage: {seed}")
    rng = np.random.default_rng(seed)
    good = path.with_name("good")
    good.write_bytes(content)
    before = load_memory(good)
    for _ in range(1000):
        data = damage(rng, content)
        if data != content:
            path.write_bytes(data)
            refused(path)
            assert path.read_bytes() == data
    assert not Bomb.ran
    chex.assert_trees_all_equal(load_memory(good), before)


# Hostile files: everything fits but what they say


def float32(*values):
    return np.array(values, np.float32)


def sign(arrays, strings=(), version="1"):
    """A file as save_memory writes it, whatever it holds."""
    zeros = "0" * 64
    strings = dict(strings) | {"format_version": version, "sha256": zeros}
    blank = safetensors.numpy.save(arrays, strings)
    digest = hashlib.sha256(blank).hexdigest()
    return blank.replace(zeros.encode(), digest.encode())


def hostile(**changes):
    fields = {
        "centers": float32(-1.0, 1.0),
        "widths": float32(0.5, 0.5),
        "rates": float32(0.1, 0.2),
        "counts": float32(1.0, 0.0),
        "relative": np.array(False),
    } | changes
    return {f"a/{key}": one for key, one in fields.items() if one is not None}


def test_the_hostile_file_is_fine_but_for_its_change(path):
    path.write_bytes(sign(hostile()))
    assert load_memory(path)["a"].rates.tolist() == float32(0.1, 0.2).tolist()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rates": float32(0.1, np.nan)}, "rates within"),
        ({"rates": float32(0.1, np.inf)}, "rates within"),
        ({"rates": float32(0.1, -0.2)}, "rates within"),
        ({"rates": float32(0.1, 0.0)}, "rates within"),
        ({"rates": float32(0.1, 1e38)}, "rates within"),
        ({"rates": float32(0.1)}, r"rates within .* shape \(2,\)"),
        ({"rates": float32([0.1, 0.2])}, r"rates within .* shape \(2,\)"),
        ({"rates": None}, "must have rates within .* got None"),
        ({"rates": np.array([1, 2])}, "float32 or float64"),
        ({"rates": np.array([0.1, 0.2], np.float16)}, "float32 or float64"),
        ({"rates": np.array([0.1, 0.2])}, "float32 or float64"),
        ({"centers": float32(1.0, -1.0)}, "centers that increase"),
        ({"centers": float32(1.0, np.nan)}, "centers within"),
        ({"centers": np.array(1.0, np.float32)}, r"shape \[M\]"),
        ({"widths": float32(0.0, 0.5)}, "widths within"),
        ({"widths": float32(0.0, 0.0)}, "widths within"),
        (
            {"widths": float32(0.5, 0.0), "centers": float32(0.0, np.nan)},
            "have centers within",
        ),
        ({"slopes": float32(0.1)}, r"slopes within \[-0.45, 0.45\]"),
        ({"slopes": float32(0.1, 0.6)}, r"slopes within \[-0.45, 0.45\]"),
        ({"slopes": float32(0.1, np.nan)}, r"slopes within \[-0.45, 0.45\]"),
        ({"widths": float32(0.5, np.nan)}, "widths within"),
        ({"counts": float32(1.0, -1.0)}, "evidence_weight"),
        ({"counts": float32(1.0, np.nan)}, "evidence_weight"),
        ({"counts": float32(1.0)}, "evidence_weight"),
        ({"relative": np.array([False])}, "bool"),
        ({"relative": np.array(0.0)}, "bool"),
        ({"schedule": np.zeros(19, np.float32)}, "schedule within"),
        ({"schedule": np.full(20, np.nan, np.float32)}, "schedule within"),
        ({"schedule": np.full(20, 200, np.float32)}, "schedule within"),
        ({"schedule": np.zeros(20)}, "float32 or float64"),
        ({"fan_in": np.array(-1.0, np.float32)}, "fan_in within"),
        ({"fan_in": np.array(np.inf, np.float32)}, "fan_in within"),
        ({"fan_in": float32(4.0)}, r"fan_in within .* shape \(\)"),
        ({"code": np.zeros(1)}, "no memory has"),
    ],
)
def test_what_no_memory_holds_is_refused(path, changes, match):
    path.write_bytes(sign(hostile(**changes)))
    with pytest.raises(ValueError, match=match) as caught:
        load_memory(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            sign(hostile(), version="4"),
            "format_version must .* got '4'; a newer release",
        ),
        (sign(hostile(), version="1" * 5000), "newer release"),
        (sign(hostile(), version="0"), "format_version must .* got '0'"),
        (sign(hostile(), version="one"), "format_version must .* got 'one'"),
        (safetensors.numpy.save(hostile()), "no strings"),
        (safetensors.numpy.save(hostile(), {"format_version": "1"}), "sha256"),
        (b"", "cut off"),
        ((9).to_bytes(8, "little") + b'{"__metad', "cannot be trusted"),
        ((2).to_bytes(8, "little") + b"[]", "no strings"),
        (Bomb.content, "cut off"),
    ],
)
def test_other_files_are_refused(path, data, match):
    path.write_bytes(data)
    refused(path, match)
    assert not Bomb.ran


def test_an_empty_memory_is_none(path):
    path.write_bytes(sign({}))
    with pytest.raises(ValueError, match="at least one"):
        load_memory(path)


@pytest.mark.parametrize("single", ["centers", "rates", "counts"])
def test_no_precision_is_lost(path, single):
    fields = {
        "centers": np.linspace(0.1, 0.7, 3),
        "widths": np.full(3, 0.3),
        "rates": np.full(3, 0.1),
        "counts": np.full(3, 1 / 3),
    }
    fields[single] = fields[single].astype(np.float32)
    centers, widths, rates, counts = fields.values()
    memory = {"a": Memory(Kernels(centers, widths), rates, counts)}
    save_memory(path, memory)
    chex.assert_trees_all_equal(load_memory(path), memory)


def test_a_memory_without_values_is_not_written(path):
    shapes = jax.eval_shape(memory_sgd().init, PARAMS)
    with pytest.raises(ValueError, match="must have values"):
        save_memory(path, get_memory(shapes))


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a file")


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load_memory(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        load_memory(tmp_path)
    with pytest.raises(ValueError, match="/dev/zero cannot be trusted"):
        load_memory("/dev/zero")


# Saving


def as_given(value) -> Any:
    """What no type checker lets pass."""
    return value


@pytest.mark.parametrize(
    ("memory", "metadata", "match"),
    [
        ({}, None, "at least one"),
        (Memory(linspace_kernels(1.0, 2), np.ones(2)), None, "mapping from label"),
        ({"a": np.ones(3)}, None, "must be a metalr_optax.Memory"),
        ({1: Memory(linspace_kernels(1.0, 1), np.ones(1))}, None, "labels"),
        ({"\ud800": Memory(linspace_kernels(1.0, 1), np.ones(1))}, None, "labels"),
        ({"a": Memory(linspace_kernels(1.0, 1), np.zeros(1))}, None, "rates within"),
        (
            {"a": Memory(linspace_kernels(1.0, 2), np.ones((3, 2)))},
            None,
            "rates within",
        ),
        ({"a": Memory(linspace_kernels(1.0, 1), np.array([0.1 + 5j]))}, None, "real"),
        ({"a": Memory(linspace_kernels(1.0, 1), np.array([True]))}, None, "real"),
        ({"a": Memory(linspace_kernels(1.0, 1), np.array(["0.5"]))}, None, "real"),
        (
            {"a": Memory(linspace_kernels(1.0, 1), as_given([1.0]), as_given([1j]))},
            None,
            "evidence_weight",
        ),
        (
            {"a": Memory(Kernels(as_given(0.0), as_given(1.0)), as_given(0.1))},
            None,
            r"shape \[M\]",
        ),
        (None, {'x"sha256': "0" * 64}, "look like a digest"),
        (None, {"sha256": "mine"}, "metadata must be strings with other names"),
        (None, {"task": 3}, "metadata must be strings"),
    ],
)
def test_what_cannot_be_read_again_is_not_written(path, memory, metadata, match):
    path.write_bytes(b"old")
    fine = {"a": Memory(linspace_kernels(1.0, 1), np.ones(1))}
    with pytest.raises(ValueError, match=match):
        save_memory(path, fine if memory is None else memory, metadata=metadata)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_traced_memory_is_not_written(path):
    @jax.jit
    def step(state):
        save_memory(path, get_memory(state))
        return state

    with pytest.raises(ValueError, match="outside of jit"):
        step(memory_sgd().init(PARAMS))
    assert not path.exists()


def test_a_full_disk_leaves_the_old_file_whole(path, content):
    path.write_bytes(content)
    old = load_memory(path)
    new = {"a": Memory(linspace_kernels(1.0, 2000), np.full(2000, 0.1))}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="was not saved") as caught:
            save_memory(path, new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.filename == str(path)
    chex.assert_trees_all_equal(load_memory(path), old)
    assert list(path.parent.iterdir()) == [path]
    save_memory(path, new)
    assert list(load_memory(path)) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_that_breaks_off_leaves_the_old_file_whole(
    path, content, monkeypatch, step
):
    path.write_bytes(content)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left on device, and the memory was"):
        save_memory(path, learned(SGD))
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_where_nothing_can_be_saved(tmp_path):
    memory = learned(SGD)
    with pytest.raises(FileNotFoundError, match="missing"):
        save_memory(tmp_path / "missing" / "file", memory)
    with pytest.raises(IsADirectoryError):
        save_memory(tmp_path, memory)
    file = tmp_path.with_name("file")
    file.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"was not saved.*file/memory"):
        save_memory(file / "memory", memory)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_and_permissions_are_those_of_new_files(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for _ in range(2):
        save_memory(tmp_path / "link", learned(SGD))
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == usual
    assert list(load_memory(str(tmp_path / "file"))) == ["a", "c"]


def test_a_loaded_memory_starts_the_next_task(path):
    save_memory(path, learned(memory_sgd(initial=1e-5), steps=20))
    optimizer = memory_sgd(initial=load_memory(path))
    state = jax.jit(optimizer.init)(PARAMS)
    memory = get_memory(state)
    chex.assert_trees_all_equal(memory, load_memory(path))
    assert memory["a"].rates[0] > 1e-4
    assert json.loads(json.dumps(load_metadata(path)))
    updates, _ = jax.jit(optimizer.update)(PARAMS, state)
    assert optax.tree.norm(updates) > 1e-3
