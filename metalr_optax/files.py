"""Memories in files: safe to read, whatever is in them.

A file is in the `safetensors <https://github.com/huggingface/safetensors>`_ format,
which every tool of that format shows: arrays ``{label}/centers``, ``{label}/widths``,
``{label}/rates`` and, where known, ``{label}/counts`` and ``{label}/relative``; texts
``format_version``, ``library_version``, ``sha256`` and those of the user. The digest is
that of the whole file with zeros in its place. Nothing in a file is ever run.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from metalr_optax import __version__
from metalr_optax.kernels import Kernels
from metalr_optax.memory import POSITIVE, Memory, check_memory, is_known

_FORMAT_VERSION = 1
_LARGEST_FILE = 2**30
_NO_DIGEST = "0" * 64
_RESERVED = ("format_version", "library_version", "sha256")
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))

Path = str | os.PathLike[str]


def save_memory(
    path: Path,
    memory: Mapping[str, Memory],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write memories to a file that :func:`load_memory` reads.

    The file is whole or not there: it is written beside its place, brought to the disk
    and renamed. When that fails, an older file stays as it was.

    Args:
      path: of the file, by custom ``.safetensors``. Its folder must exist. A link
        stays, and the file it leads to is replaced.
      memory: label -> :class:`Memory`, as :func:`get_memory` returns it; arrays [M].
      metadata: texts to keep with it, such as the task; other names than
        ``format_version``, ``library_version`` and ``sha256``.

    Raises:
      ValueError: a memory that no optimizer could start from, labels or metadata that
        are not texts. Nothing is written.
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
    _write(pathlib.Path(os.path.realpath(path)), _pack(memory, dict(metadata or {})))


def load_memory(path: Path) -> dict[str, Memory]:
    """Return the memories of a file, for ``initial=`` or :func:`set_memory`.

    Args:
      path: of a file that :func:`save_memory` wrote.

    Returns:
      label -> :class:`Memory` of NumPy arrays, float32 or float64 as they were.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not a memory, was damaged (not a bit may differ), is of a later
        version of the format or holds what :func:`save_memory` would not write. Says
        which, and the path.

    Examples: see :func:`save_memory`.
    """
    with _explained(path):
        data = _read(path)
        _texts(data)
        return _unpack(safetensors.numpy.load(data))


def load_metadata(path: Path) -> dict[str, str]:
    """Return the texts of a file.

    Args:
      path: of a file that :func:`save_memory` wrote.

    Returns:
      The ``metadata`` that it was saved with, and ``format_version`` and
      ``library_version``.

    Raises:
      OSError, ValueError: as :func:`load_memory`, but the arrays are not looked at.

    Examples: see :func:`save_memory`.
    """
    with _explained(path):
        texts = _texts(_read(path))
        return {name: text for name, text in texts.items() if name != "sha256"}


def _pack(memory: Mapping[str, Memory], texts: dict[str, str]) -> bytes:
    """Return the content of a file."""
    if not isinstance(memory, Mapping) or not memory:
        raise ValueError(
            "memory must be a mapping from label to metalr_optax.Memory with at least "
            f"one entry, got {memory!r}"
        )
    for name, text in texts.items():
        if not (_is_text(name) and _is_text(text)) or name in _RESERVED:
            raise ValueError(
                f"metadata must be texts with other names than {_RESERVED}, got "
                f"{name!r}: {text!r}"
            )
    arrays: dict[str, np.ndarray] = {}
    for label, one in memory.items():
        if not _is_text(label):
            raise ValueError(f"labels of memory must be texts, got {label!r}")
        arrays.update(_arrays(label, one))
    texts |= {
        "format_version": str(_FORMAT_VERSION),
        "library_version": __version__,
        "sha256": _NO_DIGEST,
    }
    blank = safetensors.numpy.save(arrays, texts)
    if blank.count(_entry(_NO_DIGEST)) != 1:
        raise ValueError(f"metadata must not look like a digest, got {list(texts)}")
    data = blank.replace(_entry(_NO_DIGEST), _entry(_digest(blank)))
    _texts(data)  # before it replaces another: it can be read again
    return data


def _arrays(label: str, memory: Memory) -> dict[str, np.ndarray]:
    """Return the arrays of a memory by the names they have in a file."""
    name = f"memory[{label!r}]"
    if not all(map(is_known, jax.tree.leaves(memory))):
        raise ValueError(f"{name} must have values: save it outside of jit")
    check_memory(name, memory, POSITIVE)
    (centers, widths), rates, counts, relative = memory
    numbers = {"centers": centers, "widths": widths, "rates": rates, "counts": counts}
    known = {
        field: np.asarray(one) for field, one in numbers.items() if one is not None
    }
    dtype = np.result_type(np.float32, *known.values())
    if dtype not in _FLOATS:
        raise ValueError(f"{name} must be float32 or float64, got {dtype}")
    arrays = {
        f"{label}/{field}": np.array(one, dtype, order="C")
        for field, one in known.items()
    }
    if relative is not None:
        arrays[f"{label}/relative"] = np.array(relative, bool)
    _checked(name, arrays, label)
    return arrays


def _checked(name: str, arrays: dict[str, np.ndarray], label: str) -> Memory:
    """Return the memory that arrays make; raise ValueError if it is none."""

    def take(field: str) -> Any:
        return arrays.get(f"{label}/{field}")

    centers, widths, rates, relative = map(
        take, ("centers", "widths", "rates", "relative")
    )
    if centers is None or widths is None or rates is None:
        raise ValueError(f"{name} must have centers, widths and rates")
    counts = take("counts")
    floats = [one for one in (centers, widths, rates, counts) if one is not None]
    if rates.dtype not in _FLOATS or any(one.dtype != rates.dtype for one in floats):
        raise ValueError(
            f"{name} must be float32 or float64, got {[one.dtype for one in floats]}"
        )
    if relative is not None and (relative.dtype != bool or relative.shape != ()):
        raise ValueError(f"{name} must have one bool for relative, got {relative!r}")
    memory = Memory(Kernels(centers, widths), rates, counts, relative)
    check_memory(name, memory, POSITIVE)
    return memory


def _unpack(arrays: dict[str, np.ndarray]) -> dict[str, Memory]:
    fields = {*Kernels._fields, *Memory._fields} - {"kernels"}
    labels = set()
    for name in arrays:
        label, slash, field = name.rpartition("/")
        if not slash or field not in fields:
            raise ValueError(f"an array is called {name!r}, which no memory has")
        labels.add(label)
    if not labels:
        raise ValueError("there is no memory in it")
    return {
        label: _checked(f"memory[{label!r}]", arrays, label) for label in sorted(labels)
    }


def _is_text(value: Any) -> bool:
    """Return whether a value can be written as UTF-8, which half a pair cannot."""
    if not isinstance(value, str):
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _digest(blank: bytes) -> str:
    return hashlib.sha256(blank).hexdigest()


def _entry(digest: str) -> bytes:
    """Return the digest as it stands in a file; within a text, quotes are escaped."""
    return f'"sha256":"{digest}"'.encode()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the path in whatever is wrong with a file."""
    try:
        yield
    except OSError:
        raise  # has it
    except Exception as error:  # whatever a hostile header leads a parser to
        raise ValueError(f"{os.fspath(path)} cannot be trusted: {error}") from error


def _open(path: str, flags: int) -> int:
    """Open without waiting for a writer, as a pipe would have us do."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_FILE:
            raise ValueError(f"not a file, or one of more than {_LARGEST_FILE:,} bytes")
        return file.read(_LARGEST_FILE + 1)


def _texts(data: bytes) -> dict[str, str]:
    """Return the texts of a content, every bit of which is as it was written."""
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= len(data) - 8:
        raise ValueError("it is cut off, or not a file of a memory")
    header = json.loads(data[8 : 8 + size].decode())
    texts = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(texts, dict) or not all(map(_is_text, texts.values())):
        raise ValueError("it is not a file of a memory: it has no texts")
    version, digest = texts.get("format_version", ""), texts.get("sha256", "")
    if version.isdecimal() and int(version[:9]) > _FORMAT_VERSION:
        raise ValueError(
            f"its format_version is {version}, this release reads up to "
            f"{_FORMAT_VERSION}: a newer release of metalr-optax will read it"
        )
    if version != str(_FORMAT_VERSION):
        raise ValueError(f"it is not a file of a memory: format_version is {version!r}")
    blank = data.replace(_entry(digest), _entry(_NO_DIGEST))
    if _digest(blank) != digest:
        raise ValueError("it was changed or damaged: its content has another sha256")
    return texts


def _write(path: pathlib.Path, data: bytes) -> None:
    """Put a file in place, whole and on the disk, or leave everything as it was."""
    beside = path.with_name(f".memory-{secrets.token_hex(8)}")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            reason = f"{error.strerror}, and the memory was not saved"
            raise OSError(error.errno, reason, str(path)) from error
        raise
    # The new name, too, should be on the disk; not every system can see to that.
    with contextlib.suppress(AttributeError, OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
