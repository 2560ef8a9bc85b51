import pathlib
import re

import metalr_optax

MODULES = {
    path.stem
    for path in pathlib.Path(metalr_optax.__file__).parent.glob("*.py")
    if path.stem != "__init__"
}
README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_readme_names_what_is_public():
    listed = re.search(r"All public names: (.*?)\. Each", README, re.DOTALL)
    assert listed is not None
    public = {name for name in dir(metalr_optax) if not name.startswith("_")}
    assert set(re.findall(r"`(\w+)`", listed[1])) == public - MODULES


def test_the_readme_says_what_every_module_answers():
    assert {name for name in MODULES if f"metalr_optax/{name}.py)" in README} == MODULES


def test_every_link_into_the_repository_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (pathlib.Path(__file__).parents[1] / link).exists(), link
