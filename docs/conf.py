# SPDX-License-Identifier: Apache-2.0
"""The documentation site: ``sphinx-build -W -n docs build/site`` (the extra ``test``, whose libraries the
reference imports, and the group ``docs``). Nothing is fetched to build it.

The pages are written for GitHub, too: plain Markdown, in which links may leave docs/ and code is between backquotes.
So two things are done here that a page cannot say: a link to a file outside of docs/ leads to the repository, and code
that is a public name links to its place in the reference (names of other libraries: to theirs, where
docs/inventories/ has them).
"""

import re
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.ext import intersphinx

import noisefuse

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
project_copyright = author
release = version = noisefuse.__version__
BRANCH = "main" if ".dev" in release else f"v{release}"  # to which links to the repository lead

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
html_theme = "furo"
html_title = f"{project} {release}"
html_theme_options = {"source_repository": f"{REPOSITORY}/", "source_branch": BRANCH, "source_directory": "docs/"}
if ".dev" in release and re.search(r"^## \[\d", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
    last = f'<a href="{PROJECT["urls"]["Documentation"]}/">That of the last release</a>'
    html_theme_options["announcement"] = f"This is the documentation of {release}, which is in work. {last}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
exclude_patterns = ["inventories"]
pygments_style, pygments_dark_style = "friendly", "monokai"

myst_heading_anchors = 4  # links to headings as GitHub has them
nitpicky = True
nitpick_ignore = [("py:exc", "numba.core.errors.TypingError")]  # not in an inventory: Numba documents none
default_role = "literal"  # docstrings write `code`, as Markdown does
autodoc_typehints = "none"  # docstrings say it in a field's words; the types themselves are for checkers
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

# Version 1 of the format is plain text: name, kind, page. inventories/refresh.py holds them to the sites. (diffusers is
# not among them, as its site is not made by Sphinx and has no inventory.)
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.inv"),
    "numpy": ("https://numpy.org/doc/stable/", "inventories/numpy.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable/", "inventories/torch.inv"),
    "numba": ("https://nvidia.github.io/numba-cuda/", "inventories/numba.inv"),  # numba.cuda, all that pages name
    "cupy": ("https://docs.cupy.dev/en/stable/", "inventories/cupy.inv"),
}
MODULES = {"nf": "noisefuse", "np": "numpy", "nfn": "noisefuse.numba"}  # what the pages call them


SECTION = re.compile(r"(?:Args|Returns|Raises|Attributes):$")


def as_rst(app, what, name, obj, options, lines):
    """Docstrings as reStructuredText: paragraphs without its marks, indented ones outside of sections as equations."""
    made, section = [], False
    for paragraph in "\n".join(lines).split("\n\n"):
        first = paragraph.lstrip("\n").split("\n")[0]
        if not first.startswith(" "):
            section = SECTION.match(first) is not None
        if first.startswith(">>>"):
            made.append(paragraph)
        elif first.startswith("    ") and not section:
            made += ([] if made and made[-1].endswith("::") else ["::"]) + [paragraph]
        else:
            spans = re.split(r"(`+[^`]+`+)", paragraph)  # every second one is code
            spans[::2] = [re.sub(r"([*|]|_\b(?!\w)|(?<=\w)_(?=\W|$))", r"\\\1", span) for span in spans[::2]]
            made.append("".join(spans))
    lines[:] = "\n\n".join(made).split("\n")


def reference(app, document, code):
    """(page, title) of what stands between backquotes, if it is a name of ours or of an inventory."""
    name = code.removesuffix("()")
    first, dot, rest = name.partition(".")
    name = MODULES.get(first, first) + dot + rest
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        return None
    objects = app.env.domains.python_domain.objects
    for full in (name, f"noisefuse.{name}", f"noisefuse.samplers.{name}"):
        if full in objects and not objects[full].aliased:
            there = objects[full]
            return app.builder.get_relative_uri(document, there.docname) + f"#{there.node_id}", full
    for kind, names in intersphinx.InventoryAdapter(app.env).main_inventory.items():
        if kind.startswith("py:") and name in names:
            return names[name].uri, name
    return None


def link_names(app, doctree, document):
    for literal in [*doctree.findall(nodes.literal)]:
        if isinstance(literal.parent, nodes.reference) or not isinstance(literal.parent, nodes.Element):
            continue
        if (found := reference(app, document, literal.astext())) is not None:
            page, title = found
            link = nodes.reference("", "", internal=":" not in page, refuri=page, reftitle=title)
            literal.replace_self(link)
            link += literal


def link_repository(app, document, content):
    """Links that leave docs/, in a page's source."""
    here = Path(app.env.doc2path(document)).parent

    def target(match):
        path, hash_, anchor = match[1].partition("#")
        there = (here / path).resolve()
        outside = path and ":" not in path and there.is_file() and not there.is_relative_to(ROOT / "docs")
        return f"]({REPOSITORY}/blob/{BRANCH}/{there.relative_to(ROOT)}{hash_}{anchor})" if outside else match[0]

    content[0] = re.sub(r"\]\(([^)\s]+)\)", target, content[0])


def setup(app):
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
    app.connect("source-read", link_repository)
    app.connect("doctree-resolved", link_names)
