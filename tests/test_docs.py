"""The site has a place for everything, and its examples share one network."""

import pathlib
import re

import metalr_optax

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = [*DOCS.glob("*.md"), *DOCS.glob("how_to/*.md")]
MODULES = {
    path.stem
    for path in pathlib.Path(metalr_optax.__file__).parent.glob("*.py")
    if path.stem != "__init__"
}


def test_every_public_name_is_documented():
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", (DOCS / "api.md").read_text(), re.M)
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


def test_pages_share_one_network():
    """Who has read one page has read the beginning of all."""
    found = re.compile(r"<details>.*?</details>", re.DOTALL)
    networks = [found.search(page.read_text()) for page in PAGES]
    assert len({network[0] for network in networks if network}) == 1
    assert sum(network is not None for network in networks) > 8
