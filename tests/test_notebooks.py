"""Notebooks run, say where they come from, and show their pictures."""

import pathlib
import tomllib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Repository and distribution are stated there, and only repeated in notebooks.
REPOSITORY = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
INSTALL = f'%pip install --quiet "{PROJECT["name"]}[notebooks]"'


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=4)


def code_cells(content):
    return [cell for cell in content.cells if cell.cell_type == "code"]


def pictures(content):
    """The pictures of each code cell."""
    return [
        [output.data["image/png"] for output in cell.outputs if "data" in output]
        for cell in code_cells(content)
        if any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]


def test_there_are_six():
    assert len(NOTEBOOKS) == 6


@pytest.mark.slow
def test_runs_on_a_small_setting(notebook):
    path, content = notebook
    (settings,) = (
        cell
        for cell in code_cells(content)
        if "settings" in cell.metadata.get("tags", [])
    )
    names, values = content.metadata["small"].split("=")
    # The same names, so that nothing is left as large as it was.
    assert settings.source.split("=")[0].strip() == names.strip()
    settings.source = f"{names}={values}"
    before = [len(one) for one in pictures(content)]
    # A kernel inherits what tests/conftest.py makes compile at once.
    NotebookClient(
        content, timeout=200, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert [len(one) for one in pictures(content)] == before
    assert not list(path.parent.glob("*.safetensors"))


def test_installs_first_and_opens_in_colab(notebook):
    path, content = notebook
    colab = "https://colab.research.google.com/github"
    assert (
        f"{colab}/{REPOSITORY}/blob/main/notebooks/{path.name}"
        in content.cells[0].source
    )
    assert INSTALL in code_cells(content)[0].source
    for cell in content.cells:
        assert cell.source.count("pip install") == cell.source.count(INSTALL)
        for host in ("https://github.com/", "raw.githubusercontent.com/", f"{colab}/"):
            for rest in cell.source.split(host)[1:]:
                assert rest.startswith(f"{REPOSITORY}"), rest[:80]


def test_shows_what_it_says(notebook):
    """Outputs are kept, in order and without what only one machine has."""
    path, content = notebook
    cells = code_cells(content)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(pictures(content)) >= 2
    assert "image/png" in str(cells[-1].outputs)
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "/tmp/" not in output.get("text", "")
    assert path.stat().st_size < 400_000


def test_links_between_notebooks_lead_somewhere(notebook):
    path, content = notebook
    for cell in content.cells:
        for rest in cell.source.split("](")[1:]:
            link = rest.split(")")[0]
            assert link.startswith("https://") or (path.parent / link).exists(), link
