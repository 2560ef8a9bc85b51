"""The picture of the README is drawn from its rows, and its rows can be had again."""

import argparse
import shutil

import pytest

from benchmarks.experiments import starts as experiment
from benchmarks.reporting import page, rows, starts


def test_the_page_has_the_table_of_its_rows(tmp_path):
    shutil.copy(rows.RESULTS / "starts.csv.gz", tmp_path)
    tables = starts.report(tmp_path)
    assert tables["table"] in (page.PAGES / "starts.md").read_text()
    assert (tmp_path / "starts.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_short_run_has_a_row_for_every_method_and_start(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "_STEPS", 4)
    monkeypatch.setattr(experiment, "_EVERY", 2)
    monkeypatch.setattr(starts, "RATES", (1e-5, 1e-2))
    said = []
    arguments = argparse.Namespace(out=tmp_path, seeds=1)
    experiment.run(arguments, said.append)
    found = rows.load(tmp_path / "starts.csv.gz")
    assert said == ["8 runs are done"]
    assert sorted(set(found["method"])) == sorted(starts.METHODS)
    assert {len(curve) for curve in found["curve"]} == {2}
    assert len(starts.report(tmp_path)["table"].splitlines()) == 4
