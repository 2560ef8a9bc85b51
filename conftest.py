"""Examples of pages run in an empty folder: some write files."""

import pytest


@pytest.fixture(autouse=True)
def empty_folder(request, tmp_path, monkeypatch):
    """Enter an empty folder before the doctests of a page."""
    if request.node.path.suffix == ".md":
        monkeypatch.chdir(tmp_path)
