"""Examples of pages run in an empty folder: some write files."""

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Enter an empty folder before the doctests of a page."""
    monkeypatch.chdir(tmp_path)
