"""Links between pages of the repository lead somewhere, to their headings too."""

import json
import pathlib
import re

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = pathlib.Path(__file__).parents[1]
ONLINE = "https://github.com/metalr-optax/metalr-optax/blob/main/"
COLAB = "https://colab.research.google.com/github/metalr-optax/metalr-optax/blob/main/"
PAGES = [
    *ROOT.glob("*.md"),
    *(
        page
        for folder in ("metalr_optax", "benchmarks", "notebooks", "docs")
        for kind in ("*.md", "*.ipynb", "*.py")
        for page in (ROOT / folder).rglob(kind)
        # The parts of a page link from where the page is. Notebooks in docs are copies.
        if page.parent.name not in ("prose", "_build")
        and (folder, page.suffix) != ("docs", ".ipynb")
    ),
]


def text_of(page):
    """Return the prose of a page."""
    text = page.read_text()
    if page.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    prose = (cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    return "\n".join("".join(source) for source in prose)


def anchors_of(page):
    """Return the anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one) for one in headings)
    return {re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in plain}


def links_of(page):
    """Return what a page links to in this repository, as (target, anchor)."""
    text = text_of(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) if page.suffix != ".py" else []
    links += [
        ONLINE + one for one in re.findall(re.escape(ONLINE) + r"([\w./#-]+)", text)
    ]
    for link in links:
        here = link.removeprefix(ONLINE).removeprefix(COLAB)
        if here == link and "://" in link:
            continue
        target, _, anchor = here.partition("#")
        folder = page.parent if here == link else ROOT
        yield ((folder / target) if target else page).resolve(), anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in links_of(page):
        assert target.exists(), target
        if anchor:
            assert anchor in anchors_of(target), (target, anchor)


def test_links_are_found():
    found = list(links_of(ROOT / "README.md"))
    assert len(found) > 20
    assert any(anchor for _, anchor in found)
    assert "what-a-step-costs" in anchors_of(ROOT / "benchmarks" / "README.md")


def test_links_of_the_page_on_pypi_lead_to_the_repository():
    text = ProjectMetadata(str(ROOT), PluginManager()).core.readme
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) == len(re.findall(r"\]\(", (ROOT / "README.md").read_text()))
    assert all(link.startswith("https://") for link in links)
    pictures = [link for link in links if link.endswith(".png")]
    assert all(
        link.startswith("https://raw.githubusercontent.com/") for link in pictures
    )
    for link in links:
        if link.startswith(ONLINE):
            assert (ROOT / link.removeprefix(ONLINE).partition("#")[0]).exists()
