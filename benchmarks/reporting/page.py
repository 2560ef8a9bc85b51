"""The pages of `docs/benchmarks`, from raw rows and the prose in `benchmarks/prose`."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from benchmarks.harness.choose import TARGETS
from benchmarks.harness.store import write_setting
from benchmarks.methods import LABELS, METHODS
from benchmarks.reporting import comparison
from benchmarks.reporting.rows import RESULTS, table

FOLDER = pathlib.Path(__file__).parents[1]
PROSE, PAGES = FOLDER / "prose", FOLDER.parent / "docs" / "benchmarks"


def fill(name: str, tables: Mapping[str, str]) -> str:
    """Return a page's prose with its tables, and the versions of its rows."""
    text = (PROSE / f"{name}.md").read_text().strip().format(**tables)
    return f"{text}{versions(name)}\n"


def versions(name: str) -> str:
    """Return a note on the versions of the package that made the rows of memories."""
    for path in RESULTS.glob(f"{name}.csv*"):
        rows = pd.read_csv(path, usecols=lambda head: head in ("method", "version"))
        if "version" in rows:
            is_ours = rows["method"].str.startswith(("memory", "paper"))
            found = sorted(
                (rows[is_ours] if is_ours.any() else rows)["version"].unique()
            )
            return f"\n\n*Rows of memories are of versions {', '.join(found)}.*"
    return ""


def spaces_table() -> str:
    """Return where the trials of every method are, and its fixed setting."""
    return table(
        {
            "method": LABELS[method.name],
            "fixed setting": write_setting(method.default),
            **{name: f"{x:g} to {y:g}" for name, (x, y) in method.space.items()},
        }
        for method in METHODS.values()
    )


def write_all(modules: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Write every page and its pictures, and the list of pages."""
    for name, module in modules.items():
        if (PROSE / f"{name}.md").exists():
            (PAGES / f"{name}.md").write_text(fill(name, module.report(RESULTS)))
            say(f"{name}: page and pictures are done")
    problems = {}
    for stem in comparison.STEMS:
        problems |= comparison.load(RESULTS, stem)
    tables = {
        "answers": comparison.answers(problems),
        "counts": comparison.counts(problems),
    }
    (PAGES / "paper.md").write_text(fill("paper", tables))
    targets = table(pd.read_csv(TARGETS, dtype=str).rename(columns={"source": "from"}))
    lists = {"targets": targets, "spaces": spaces_table()}
    (FOLDER / "README.md").write_text(fill("README", lists))
    say(f"Wrote {PAGES}, the list {FOLDER / 'README.md'} and pictures in {RESULTS}.")
