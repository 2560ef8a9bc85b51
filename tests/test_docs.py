"""The site has a place for everything, and each page stands alone."""

import pathlib
import re

import pytest

import metalr_optax

DOCS = pathlib.Path(__file__).parents[1] / "docs"
API = [*DOCS.glob("api.md"), *DOCS.glob("api/*.md")]
PAGES = [*DOCS.glob("*.md"), *DOCS.glob("how_to/*.md")]
LONGEST_SHARED = 6  # lines of code that two pages may have in common
MODULES = {
    path.stem
    for path in pathlib.Path(metalr_optax.__file__).parent.glob("*.py")
    if path.stem != "__init__"
}


def test_every_public_name_is_documented():
    text = "\n".join(page.read_text() for page in API)
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.M)
    public = {name for name in dir(metalr_optax) if not name.startswith("_")}
    assert len(listed) == len(set(listed))
    assert set(listed) == public - MODULES


def test_it_is_said_what_every_module_answers():
    text = (DOCS / "CONTRIBUTING.md").read_text()
    assert {name for name in MODULES if f"metalr_optax/{name}.py)" in text} == MODULES


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text()
    names = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
    assert {n for n in names - {"index"} if f"\n{n}\n" in contents} == names - {"index"}


def code_of(page):
    """Return the lines of a page's examples, without what they print."""
    lines = page.read_text().splitlines()
    return [line for line in lines if line.startswith((">>> ", "... "))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_that_an_example_needs_is_folded(page):
    assert "<details>" not in page.read_text()


def test_no_page_repeats_the_code_of_another():
    """A page has what it is about; who reads two pages reads nothing twice."""
    found = {}
    for page in PAGES:
        code = code_of(page)
        for begin in range(len(code) - LONGEST_SHARED):
            run = tuple(code[begin : begin + LONGEST_SHARED + 1])
            assert found.setdefault(run, page) == page, (page, run)
