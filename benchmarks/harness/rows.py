"""Raw rows on disk: all of them or none."""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any


def write_csv(
    path: pathlib.Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]
) -> None:
    """Write a file that is only there once it is whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    unfinished.replace(path)
