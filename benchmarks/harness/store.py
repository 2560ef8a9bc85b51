"""Raw rows on disk: gzipped CSV in long form, a row a measure."""

import concurrent.futures
import gzip
import os
import pathlib
import threading
import zlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import metalr_optax

TUNING_SEED = 1000  # no seed of a comparison


class Key(NamedTuple):
    """What was run. Equal keys give equal runs."""

    problem: str
    method: str
    start: str  # "fresh", or where the memory came from
    setting: str  # such as "rate=0.001 meta=0.01"
    seed: int


Frame = Any  # a pandas.DataFrame or Series, whose types no checker follows
Runs = dict[Key, np.ndarray]  # measures [horizon / every], nan once not finite
KEY = list(Key._fields)
COLUMNS = [*KEY, "update", "value", "version"]  # of the package that made the row


def write_setting(setting: dict[str, float]) -> str:
    """Return a setting as text that `read_setting` reads back."""
    return " ".join(f"{name}={value:g}" for name, value in setting.items())


def read_setting(text: str) -> dict[str, float]:
    """Return what `write_setting` wrote."""
    pairs = (pair.split("=") for pair in text.split())
    return {name: float(value) for name, value in pairs}


def append_runs(path: pathlib.Path, runs: Runs, every: int) -> None:
    """Append runs, and return only when they are on the disk."""
    frames = []
    for key, curve in runs.items():
        values = [f"{value:.4g}" for value in curve]
        columns = {"update": every * np.arange(1, len(curve) + 1), "value": values}
        frames.append(pd.DataFrame(key._asdict() | columns))
    rows = pd.concat(frames).assign(version=metalr_optax.__version__)
    is_new = not path.exists() or path.stat().st_size == 0
    text = rows.to_csv(index=False, header=is_new)
    with open(path, "ab") as file:
        file.write(gzip.compress(text.encode(), mtime=0))
        file.flush()
        os.fsync(file.fileno())


def mend(path: pathlib.Path) -> None:
    """Cut off the part of an append that a stopped process may have left."""
    content = rest = path.read_bytes() if path.exists() else b""
    while rest:
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            member.decompress(rest)
        except zlib.error as error:
            raise ValueError(f"{path} does not hold rows: {error}") from error
        if not member.eof:
            os.truncate(path, len(content) - len(rest))
            return
        rest = member.unused_data


def read_rows(path: pathlib.Path) -> Frame:
    """Return a row a run: its key, its curve, updates between measures, the version.

    Raises:
      ValueError: the file holds something else; names its path.
    """
    if not path.exists() or path.stat().st_size == 0:
        return pd.DataFrame(columns=[*KEY, "curve", "every", "version"])
    try:
        rows = pd.read_csv(path, keep_default_na=False, na_values={"value": ["nan"]})
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} does not hold rows: {error}") from error
    if list(rows) != COLUMNS:
        raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}")
    updates = rows["update"].to_numpy()
    begins = np.flatnonzero(np.r_[True, np.diff(updates) <= 0])
    runs = rows.iloc[begins].rename(columns={"update": "every"})
    values = rows["value"].to_numpy(float)
    runs["curve"] = pd.Series(np.split(values, begins[1:]), runs.index, dtype=object)
    return runs.drop(columns="value").drop_duplicates(KEY, keep="last")


class Store:
    """Runs that are done, in memory and on the disk; safe to use from threads."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        mend(path)
        rows, self.path = read_rows(path), path
        keys = rows[KEY].itertuples(index=False)
        self.runs: Runs = dict(zip(map(Key._make, keys), rows["curve"], strict=True))
        self._lock = threading.Lock()
        self._closed = False

    def rows(self, problem: str) -> Frame:
        """Return a row a run of one problem."""
        with self._lock:
            runs = [(*key, one) for key, one in self.runs.items() if key[0] == problem]
        return pd.DataFrame(runs, columns=[*KEY, "curve"])

    def add(self, runs: Runs, every: int) -> None:
        """Keep runs; raises CancelledError, when they are kept, once it is closed."""
        # What is chosen now must be what is chosen from the file later.
        runs = {
            key: np.array([float(f"{value:.4g}") for value in curve])
            for key, curve in runs.items()
        }
        with self._lock:
            append_runs(self.path, runs, every)
            self.runs.update(runs)
        if self._closed:
            raise concurrent.futures.CancelledError

    def close(self) -> None:
        """Let whoever adds runs stop after the next ones."""
        self._closed = True


def write_frame(frame: Frame, path: pathlib.Path) -> None:
    """Write rows of another kind, in a file that is only there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    frame.to_csv(unfinished, index=False)
    unfinished.replace(path)
