"""Memories in files: safe to read, whatever is in them.

A file is in the `safetensors <https://github.com/huggingface/safetensors>`_ format,
which every tool of that format shows: arrays ``{label}/centers``, ``{label}/widths``,
``{label}/rates`` and, where known, ``{label}/counts`` (the evidence weight),
``{label}/relative`` (whether kernel inputs are rms-normalised), in version 2
``{label}/schedule``, ``{label}/slopes`` and ``{label}/history`` (true), and in version
3 ``{label}/fan_in`` (inputs of each unit of the layer); strings
``format_version``, ``library_version``, ``sha256`` and those of the user. The digest is
that of the whole file with zeros in its place. Nothing in a file is ever run.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from metalr_optax import __version__, checks
from metalr_optax.checks import require
from metalr_optax.memory import Kernels, Memory
from metalr_optax.memory_checks import check_memories, check_memory

# Version 1, which older releases read, has none of the later fields, and all of its
# local models are in use (a width of 0 is not). Version 2 has no fan_in.
_FORMAT_VERSIONS = ("1", "2", "3")
_LARGEST_FILE = 2**30
_NO_DIGEST = "0" * 64
_RESERVED = ("format_version", "library_version", "sha256")
# The format names the fields of a memory so, in their order.
_BOOLS = ("relative", "history")
_LATER = ("/schedule", "/slopes", "/history")
_FIELDS = ("centers", "widths", "rates", "counts", "relative")
_FIELDS += ("schedule", "slopes", "history", "fan_in")

Path = str | os.PathLike[str]


def save_memory(
    path: Path,
    memory: Mapping[str, Memory],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write memories to a file that :func:`load_memory` reads.

    The write is atomic: to a temporary file in the same folder, which is synced and
    renamed. If it fails, an older file does not change.

    Args:
      path: of the file, by custom ``.safetensors``. Its folder must exist. Of a
        symbolic link the target is replaced.
      memory: label -> :class:`Memory`, as :func:`get_memory` returns it; arrays [M].
      metadata: strings to keep with it, such as the task; other names than
        ``format_version``, ``library_version`` and ``sha256``.

    Raises:
      ValueError: a memory that no optimizer could start from, labels or metadata that
        are not strings. Nothing is written.
      OSError: the file could not be written.

    Examples:
      >>> import pathlib, tempfile, jax.numpy as jnp
      >>> from metalr_optax import get_memory, load_memory, load_metadata
      >>> from metalr_optax import memory_sgd, save_memory
      >>> memory = get_memory(memory_sgd(initial=0.25).init({"a": jnp.zeros(3)}))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...   path = pathlib.Path(folder, "memory.safetensors")
      ...   save_memory(path, memory, metadata={"task": "none yet"})
      ...   float(load_memory(path)["a"].rates[0]), load_metadata(path)["task"]
      (0.25, 'none yet')

    .. seealso:: :func:`load_memory`, :func:`load_metadata`.
    """
    _check_path(path)
    data = _pack(memory, {} if metadata is None else metadata)
    place = pathlib.Path(os.path.realpath(path))
    beside = place.with_name(f".memory-{os.urandom(8).hex()}")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    except OSError as error:
        reason = f"{error.strerror}, and the memory was not saved"
        raise OSError(error.errno, reason, str(place)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    # Sync the new name too, on systems that can.
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        folder = os.open(place.parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        os.fsync(folder)


def load_memory(path: Path) -> dict[str, Memory]:
    """Return the memories of a file, for ``initial=`` or :func:`set_memory`.

    Args:
      path: of a file that :func:`save_memory` wrote.

    Returns:
      label -> :class:`Memory` of NumPy arrays, float32 or float64 as they were.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not a memory, was changed in any bit, has a later version of the
        format or holds what :func:`save_memory` would not write. The message says
        which, with the path.

    Examples: see :func:`save_memory`.
    """
    return _load(path, _memories)


def load_metadata(path: Path) -> dict[str, str]:
    """Return the strings of a file.

    Args:
      path: of a file that :func:`save_memory` wrote.

    Returns:
      The ``metadata`` that it was saved with, and ``format_version`` and
      ``library_version``.

    Raises:
      OSError, ValueError: as :func:`load_memory`, but the arrays are not looked at.

    Examples: see :func:`save_memory`.
    """
    return _load(path, _strings)


def _pack(memory: Mapping[str, Memory], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a file."""
    check_memories(memory)
    strings: Any = dict(metadata) if isinstance(metadata, Mapping) else {None: None}
    is_text = all(map(checks.is_text, (*strings, *strings.values())))
    fits = is_text and not set(strings) & set(_RESERVED)
    allowed = f"be strings with other names than {_RESERVED}, in a mapping"
    require(fits, "metadata", allowed, metadata)
    arrays: dict[str, np.ndarray] = {}
    for label in memory:
        arrays |= _arrays(label, memory[label])
    is_later = any(
        name.endswith(_LATER) or (name.endswith("/widths") and not array.all())
        for name, array in arrays.items()
    )
    has_fan_in = any(name.endswith("/fan_in") for name in arrays)
    version = "3" if has_fan_in else _FORMAT_VERSIONS[is_later]
    strings = strings | {"format_version": version, "library_version": __version__}
    blank = safetensors.numpy.save(arrays, strings | {"sha256": _NO_DIGEST})
    digest = hashlib.sha256(blank).hexdigest()
    data = blank.replace(_entry(_NO_DIGEST), _entry(digest))
    # A file that cannot be read again does not replace another.
    fits = _memories(data) and _strings(data) == strings
    require(fits, "metadata", "not look like a digest", strings)
    return data


def _arrays(label: str, memory: Memory) -> dict[str, np.ndarray]:
    """Return the arrays of a memory by the names they have in a file."""
    name, leaves = f"memory[{label!r}]", jax.tree.leaves(memory)
    check_memory(name, memory)
    fits = all(map(checks.is_concrete, leaves))
    require(fits, name, "have values: save it outside of jit", memory)
    dtype = np.result_type(np.float32, *map(np.asarray, leaves))
    require(dtype in (np.float32, np.float64), name, "fit into float64", dtype.name)
    return {
        f"{label}/{field}": np.array(x, bool if field in _BOOLS else dtype, order="C")
        for field, x in zip(_FIELDS, (*memory.kernels, *memory[1:]), strict=True)
        if x is not None
    }


def _memory(label: str, arrays: Mapping[str, Any]) -> Memory:
    """Return the memory that arrays make; raise ValueError if it is none."""
    name, numbers = f"memory[{label!r}]", set(arrays) - set(_BOOLS)
    dtypes = sorted({arrays[field].dtype.name for field in numbers})
    fits = dtypes in (["float32"], ["float64"])
    require(fits, name, "be float32 or float64 throughout", dtypes)
    for field in set(arrays) & set(_BOOLS):
        fits = arrays[field].dtype == bool and arrays[field].shape == ()
        require(fits, name, f"have a single bool for {field}", arrays[field])
    values: Any = [arrays.get(field) for field in _FIELDS]
    memory = Memory(Kernels(*values[:2]), *values[2:])
    check_memory(name, memory)
    return memory


def _memories(data: bytes) -> dict[str, Memory]:
    """Return the memories of a content, after a check of its digest."""
    _strings(data)
    found: dict[str, dict[str, Any]] = {}
    for name, array in safetensors.numpy.load(data).items():
        label, slash, field = name.rpartition("/")
        if not slash or field not in _FIELDS:
            raise ValueError(f"an array is called {name!r}, which no memory has")
        found.setdefault(label, {})[field] = array
    check_memories(found)
    return {label: _memory(label, found[label]) for label in sorted(found)}


def _entry(digest: str) -> bytes:
    """Return the digest as it stands in a file; within a string, quotes are escaped."""
    return f'"sha256":"{digest}"'.encode()


def _load(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """Parse a file; errors name its path."""
    _check_path(path)

    def opener(name: str, flags: int) -> int:
        # Opening a pipe would otherwise wait for a writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=opener) as file:
            number = file.fileno()
            if not os.path.isfile(number) or os.path.getsize(number) > _LARGEST_FILE:
                raise ValueError(f"not a file, or larger than {_LARGEST_FILE:,} bytes")
            return parse(file.read(_LARGEST_FILE))
    except OSError:
        raise  # It names the path.
    except Exception as error:  # A hostile header can lead a parser to any.
        reason = str(error)[:250]  # It may quote names of any length.
        raise ValueError(f"{os.fspath(path)} cannot be trusted: {reason}") from error


def _check_path(path: Any) -> None:
    """Raise ValueError unless path is one: a number would be that of an open file."""
    fits = isinstance(path, str | os.PathLike)
    require(fits, "path", "be a string or os.PathLike, as in load_memory(path)", path)


def _strings(data: bytes) -> dict[str, str]:
    """Return the strings but sha256, after a check of the digest."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end].decode()) if 10 <= end <= len(data) else None
    strings = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(strings, dict) or not all(map(checks.is_text, strings.values())):
        raise ValueError("it is cut off, or not a file of a memory: it has no strings")
    version, digest = strings.get("format_version"), strings.pop("sha256", "")
    allowed, hint = f"be one of {_FORMAT_VERSIONS}", "a newer release may read others"
    require(version in _FORMAT_VERSIONS, "format_version", allowed, version, hint)
    blank = data.replace(_entry(digest), _entry(_NO_DIGEST))
    if hashlib.sha256(blank).hexdigest() != digest:
        raise ValueError("it was changed or damaged: its content has another sha256")
    return strings
