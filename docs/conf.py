"""The site: `sphinx-build -W --keep-going -b html docs docs/_build`."""

import inspect
import pathlib
import re
import shutil

import jax
import optax

import metalr_optax
from metalr_optax import groups, initial, ready

project = "metalr_optax"
author = "The metalr_optax authors"
copyright = f"2026, {author}"
release = metalr_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]

# Pages are Markdown as GitHub renders it, notebooks are shown as they were run.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Unions that would fill three lines, and what is shown instead.
TYPES = {
    "Multiplier": (optax.ScalarOrSchedule, "float | optax.Schedule"),
    "Initial": (initial.Initial, "float | Memory | dict[str, Memory]"),
    "GroupBy": (groups.GroupBy, "str | Callable"),
    "OptionalGroupBy": (groups.GroupBy | None, "str | Callable | None"),
    "Mask": (ready.Mask | None, "optax.Params | Callable | None"),
    "Params": (optax.Params, "optax.Params"),
    "Number": (jax.typing.ArrayLike, "float | jax.Array"),
    "Gain": (jax.typing.ArrayLike | None, "float | jax.Array | None"),
}
autodoc_type_aliases = {name: shown for name, (_, shown) in TYPES.items()}
maximum_signature_line_length = 80
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
nitpicky = True  # a name that leads nowhere is an error
# The sites of other libraries would have to be online while this one is built.
nitpick_ignore_regex = [("py:.*", r"(collections|jax|matplotlib|numpy|optax|os)\..*")]

html_theme = "furo"
html_title = "metalr_optax"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

ROOT = pathlib.Path(__file__).parents[1]
GITHUB = "https://github.com/metalr-optax/metalr-optax/blob/main/"
# Pages whose text is elsewhere, ...
PAGES = {
    "index": "README.md",
    "benchmarks": "benchmarks/README.md",
    "changelog": "metalr_optax/CHANGELOG.md",
}
# ... and notebooks, which have to be copied.
COPIES = ROOT / "docs" / "notebooks"
shutil.rmtree(COPIES, ignore_errors=True)
COPIES.mkdir()
for notebook in ROOT.glob("notebooks/*.ipynb"):
    shutil.copy2(notebook, COPIES)
    PAGES[f"notebooks/{notebook.stem}"] = f"notebooks/{notebook.name}"
URLS = {
    ROOT / path: f"/{name}{path[path.rindex('.') :]}" for name, path in PAGES.items()
}


def read_page(app, docname, content):
    """Take the text of a page from where it is, and let its links lead to this site."""
    source = pathlib.Path(app.env.doc2path(docname))
    text = content[0]
    if docname in PAGES:
        source = ROOT / PAGES[docname]
        app.env.note_dependency(source)
        _, contents, rest = text.partition("\n```{toctree}")
        text = source.read_text() + contents + rest
    if docname == "api/index":
        # On GitHub a name leads to its page, on the site to its entry.
        text = re.sub(
            r"\[`(\w+)`\]\(\w+\.md\)", r"{py:obj}`\1 <metalr_optax.\1>`", text
        )
    # The empty line that ends the output of a doctest.
    text = text.replace("\n\n```\n", "\n```\n")

    def move(match):
        link, anchor = match.groups()
        if "://" in link and not link.startswith(GITHUB):
            return match[0]
        target = (source.parent / link).resolve()
        if link.startswith(GITHUB):
            target = ROOT / link.removeprefix(GITHUB)
        if not target.exists():  # x[0](y) is no link
            return match[0]
        path = target.relative_to(ROOT).as_posix()
        if path.startswith("docs/"):
            moved = path.removeprefix("docs")
        elif target.suffix == ".png":
            moved = f"/../{path}"
        else:
            moved = GITHUB + path
        return f"]({URLS.get(target, moved)}{anchor})"

    content[0] = re.sub(r"\]\(([^\s)#]+)([^\s)]*)\)", move, text)


def shorten_types(app, function, bound_method):
    """Give long unions the names for which `autodoc_type_aliases` has short ones."""
    del app, bound_method
    function = inspect.unwrap(function)
    for argument, found in getattr(function, "__annotations__", {}).items():
        for name, (annotation, _) in TYPES.items():
            if found == annotation:
                function.__annotations__[argument] = name


def setup(app):
    """Let pages be read as they are in the repository, and types as they are short."""
    app.connect("source-read", read_page)
    app.connect("autodoc-before-process-signature", shorten_types)
