"""The pages of `docs/benchmarks`, from raw rows and the prose in `benchmarks/prose`."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from benchmarks.harness.choose import TARGETS, load_targets
from benchmarks.harness.store import write_setting
from benchmarks.methods import LABELS, METHODS
from benchmarks.reporting import comparison
from benchmarks.reporting.rows import RESULTS, table

FOLDER = pathlib.Path(__file__).parents[1]
PROSE, PAGES = FOLDER / "prose", FOLDER.parent / "docs" / "benchmarks"


def fill(name: str, tables: Mapping[str, str]) -> str:
    """Return a page's prose with its tables, and the versions of its rows."""
    text = (PROSE / f"{name}.md").read_text().strip()
    values = {"targets": load_targets(), **tables}
    return f"{text.format(**values)}{versions(name)}\n"


def versions(name: str) -> str:
    """Return a note on the versions of the package that made the rows of memories."""
    for path in RESULTS.glob(f"{name}.csv*"):
        rows = pd.read_csv(path, usecols=lambda head: head in ("method", "version"))
        if "version" in rows:
            is_ours = rows["method"].str.startswith(("memory", "paper"))
            found = (rows[is_ours] if is_ours.any() else rows)["version"].unique()
            return f"\n\n*Rows of memories are of versions {', '.join(sorted(found))}.*"
    return ""


def lists() -> dict[str, str]:
    """Return targets, spaces of trials and fixed settings of the list of pages."""
    spaces = (
        {
            "method": LABELS[method.name],
            "fixed setting": write_setting(method.default),
            **{name: f"{x:g} to {y:g}" for name, (x, y) in method.space.items()},
        }
        for method in METHODS.values()
    )
    targets = pd.read_csv(TARGETS, dtype=str).rename(columns={"source": "from"})
    return {"targets": table(targets), "spaces": table(spaces)}


def write_all(modules: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Write every page and its pictures, and the list of pages."""
    reports = {name: module.report for name, module in modules.items()}
    for name, report in (reports | {"paper": comparison.overall}).items():
        if (PROSE / f"{name}.md").exists():
            (PAGES / f"{name}.md").write_text(fill(name, report(RESULTS)))
            say(f"{name}: page and pictures are done")
    (FOLDER / "README.md").write_text(fill("README", lists()))
    say(f"Wrote {PAGES}, the list {FOLDER / 'README.md'} and pictures in {RESULTS}.")
