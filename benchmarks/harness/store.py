"""Raw rows on disk: one line a run, appended as soon as it is done."""

import concurrent.futures
import csv
import io
import os
import pathlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

TUNING_SEED = 1000  # no seed of a comparison
COLUMNS = ("problem", "method", "start", "setting", "seed", "curve")


class Key(NamedTuple):
    """What was run. Equal keys give equal runs."""

    problem: str
    method: str
    start: str  # "fresh", or where the memory came from
    setting: str  # such as "rate=0.001 meta=0.01"
    seed: int


Runs = dict[Key, np.ndarray]  # measures [horizon / every], nan once not finite


def write_setting(setting: dict[str, float]) -> str:
    """Return a setting as text that `read_setting` reads back."""
    return " ".join(f"{name}={value:g}" for name, value in setting.items())


def read_setting(text: str) -> dict[str, float]:
    """Return what `write_setting` wrote."""
    pairs = (pair.split("=") for pair in text.split())
    return {name: float(value) for name, value in pairs}


def rounded(curve: np.ndarray) -> np.ndarray:
    """Return a curve as it comes back from the disk."""
    return np.array([float(f"{value:.4g}") for value in curve])


def append_runs(path: pathlib.Path, runs: Runs) -> None:
    """Append runs, and return only when they are on the disk."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writerow(COLUMNS)
    for key, curve in runs.items():
        writer.writerow([*key, " ".join(f"{value:.4g}" for value in curve)])
    with open(path, "a", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())


def mend(path: pathlib.Path) -> None:
    """Cut off the part of a line that a stopped process may have left."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))


def read_runs(path: pathlib.Path) -> Runs:
    """Read runs back; a last line that was cut off is left out.

    Raises:
      ValueError: the file holds something else; names its path and line.
    """
    if not path.exists():
        return {}
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    rows = csv.reader(lines)
    if lines and tuple(next(rows)) != COLUMNS:
        raise ValueError(f"{path} does not begin with the columns {', '.join(COLUMNS)}")
    runs = {}
    for row in rows:
        try:
            *key, seed, curve = row
            runs[Key(*key, seed=int(seed))] = np.array(curve.split(), float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
    return runs


class Store:
    """Runs that are done, in memory and on the disk; safe to use from threads."""

    def __init__(self, path: pathlib.Path) -> None:
        mend(path)
        self.path = path
        self.runs = read_runs(path)
        self._lock = threading.Lock()
        self._closed = False

    def add(self, runs: Runs) -> None:
        """Keep runs; raises CancelledError, when they are kept, once it is closed."""
        # What is chosen now must be what is chosen from the file later.
        runs = {key: rounded(curve) for key, curve in runs.items()}
        with self._lock:
            append_runs(self.path, runs)
            self.runs.update(runs)
        if self._closed:
            raise concurrent.futures.CancelledError

    def close(self) -> None:
        """Let whoever adds runs stop after the next ones."""
        self._closed = True


def write_csv(
    path: pathlib.Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]
) -> None:
    """Write rows of another kind, in a file that is only there once it is whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    unfinished.replace(path)


def updates_to(curve: np.ndarray, target: float, every: int) -> float:
    """Return the updates until a measure is at the target or below; inf for never."""
    reached = np.flatnonzero(curve <= target)
    return float((reached[0] + 1) * every) if len(reached) else np.inf


def final(curve: np.ndarray) -> float:
    """Return the median of the last five measures; inf if one is not finite."""
    last = curve[-5:]
    return float(np.median(last)) if np.isfinite(last).all() else np.inf


def find(runs: Runs, problem: str, method: str, start: str, setting: str) -> Runs:
    """Return the runs of one setting, paired seeds in order, without trials."""
    chosen = {
        key: curve
        for key, curve in runs.items()
        if key[:4] == (problem, method, start, setting) and key.seed < TUNING_SEED
    }
    return dict(sorted(chosen.items(), key=lambda item: item[0].seed))
