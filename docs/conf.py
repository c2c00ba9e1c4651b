# SPDX-License-Identifier: Apache-2.0
"""The documentation site: ``sphinx-build -W -n docs build/site`` (the extra ``test``, whose libraries the
reference imports, and the group ``docs``). Nothing is fetched to build it.

The pages are written for GitHub, too: plain Markdown, in which links may leave docs/ and code is between backquotes.
So some things are done here that a page cannot say: a link to a file outside of docs/ leads to the repository; a link
whose text is a file's name gets the page's title; code that is a public name links to its place in the reference (names
of other libraries: to theirs, where docs/inventories/ has them); pages of the reference begin with a table of their
names, and say the types of arguments; tutorials can be downloaded as notebooks and scripts; and pictures of the gallery
have thumbnails, and their code below them.
"""

import ast
import inspect
import re
import struct
import sys
import tomllib
from functools import partial
from html import escape
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from sphinx.ext import autosummary, intersphinx

import noisefuse

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "examples" / "gallery.py"
sys.path.insert(0, str(ROOT / "docs"))

import notebooks  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
project_copyright = author
release = version = noisefuse.__version__
BRANCH = "main" if ".dev" in release else f"v{release}"  # to which links to the repository lead

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
html_theme = "furo"
html_title = f"{project} {release}"
html_logo = html_favicon = "pictures/logo.svg"
html_extra_path = ["pictures/card.png"]  # at the site's root, where meta tags name it
html_theme_options = {
    "source_repository": f"{REPOSITORY}/",
    "source_branch": BRANCH,
    "source_directory": "docs/",
}
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
myst_enable_extensions = ["colon_fence", "tasklist"]
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. "  # they are not copied
copybutton_prompt_is_regexp = True
autosummary_generate = False  # tables alone
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "fig.")  # after which a sentence goes on
nitpicky = True
nitpick_ignore = [("py:exc", "numba.core.errors.TypingError")]  # not in an inventory: Numba documents none
# Of annotated attributes: what NumPy's NDArray stands for, and what kernels are handed.
nitpick_ignore_regex = [
    ("py:class", r"numpy\.(bool|dtype|float64|floating|int64|integer)|collections\.abc\.Sequence"),
    ("py:class", r"noisefuse\.(call\..*|arguments\.types\.ArrayT)"),
]
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
    "numba": (
        "https://nvidia.github.io/numba-cuda/",
        "inventories/numba.inv",
    ),  # numba.cuda, all that pages name
    "cupy": ("https://docs.cupy.dev/en/stable/", "inventories/cupy.inv"),
}
MODULES = {
    "nf": "noisefuse",
    "np": "numpy",
    "nfn": "noisefuse.numba",
}  # what the pages call them


SECTION = re.compile(r"(?:Args|Returns|Raises|Attributes):$")
ENTRY = re.compile(r"^    (?P<names>\*{0,2}\w+(?:, \w+)*): ", re.MULTILINE)


def annotated(obj):
    """The types of a function's or a constructor's parameters, as its source has them."""
    try:
        parameters = inspect.signature(obj).parameters.items()
    except (TypeError, ValueError):
        return {}
    types = {name: parameter.annotation for name, parameter in parameters}
    return {name: kind for name, kind in types.items() if isinstance(kind, str) and kind != "Any"}


def with_types(paragraph, types):
    """An entry of arguments begins with their type, where all of them have one."""

    def begun(match):
        kinds = {types.get(name.lstrip("*")) for name in match["names"].split(", ")}
        kind = kinds.pop() if len(kinds) == 1 else None
        return match[0] + (f"`{kind}`: " if kind else "")

    return ENTRY.sub(begun, paragraph)


def as_rst(app, what, name, obj, options, lines):
    """Docstrings as reStructuredText: paragraphs without its marks, indented ones outside of sections as equations."""
    made, section, types = [], False, annotated(obj)
    for paragraph in "\n".join(lines).split("\n\n"):
        first = paragraph.lstrip("\n").split("\n")[0]
        if not first.startswith(" "):
            section = SECTION.match(first) is not None
            paragraph = with_types(paragraph, types) if first == "Args:" else paragraph
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


def of_another_library(literal):
    """Tells whether a name stands in a table's column of names elsewhere, or of extras, and so is none of ours."""
    cell = literal
    while cell is not None and not isinstance(cell, nodes.entry):
        cell = cell.parent
    if cell is None:
        return False
    row, table = cell.parent, cell.parent.parent.parent
    head = next(iter(table.findall(nodes.thead)), None)
    title = head.children[0].children[row.index(cell)].astext() if head is not None else ""
    return title.startswith(("k-diffusion", "diffusers", "ComfyUI", "extra"))


def show_whole_letters(app, doctree, document):
    """A wide picture scrolls on a phone, in a box that gives its letters nine pixels."""
    for image in [*doctree.findall(nodes.image)]:
        width = letters(Path(app.srcdir) / image["uri"])
        if width > 440:  # a phone's column has 360
            box = f'<span class="wide" style="--width: {width:.0f}px">', "</span>"
            begin, end = (nodes.raw("", tag, format="html") for tag in box)
            image.replace_self([begin, image, end])


def letters(path):
    """The width at which a picture's letters have nine pixels: the smallest of a drawing, 10 points of a plot."""
    content = path.read_bytes()
    if path.suffix == ".svg":
        sizes = map(int, re.findall(rb'font-size="(\d+)', content))
        return 9 * int(re.search(rb'viewBox="0 0 (\d+)', content)[1]) / min(sizes)
    if path.suffix != ".png":
        return 0  # photographs
    (width,), dots = struct.unpack(">I", content[16:20]), content.find(b"pHYs") + 4
    inch = struct.unpack(">I", content[dots : dots + 4])[0] * 0.0254 if dots > 3 else 100
    return 65 * width / inch


def link_names(app, doctree, document):
    for literal in [*doctree.findall(nodes.literal)]:
        if isinstance(literal.parent, nodes.reference) or not isinstance(literal.parent, nodes.Element):
            continue
        if of_another_library(literal):
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


def title_of(page):
    return re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)[1]


def name_pages(app, document, content):
    """Links whose text is a file's name get the page's title."""
    here = Path(app.env.doc2path(document)).parent

    def named(match):
        page = (here / match[1].partition("#")[0]).resolve()
        inside = page.is_file() and page.is_relative_to(ROOT / "docs")
        return f"[{title_of(page)}]({match[1]})" if inside else match[0]

    content[0] = re.sub(
        r"\[(?:docs/)?[\w-]+\.md\]\(([^)\s]+\.md(?:#[\w-]+)?)\)",
        named,
        content[0],
    )


def join_alternatives(app, document, content):
    """Puts a space where a picture's alternative text is wrapped. Without it the words beside a line end are joined."""
    content[0] = re.sub(r"!\[[^\]]*\]\(", lambda match: " ".join(match[0].split()), content[0])


DOCUMENTED = re.compile(
    r"^\.\. auto(?P<kind>\w+):: (?P<name>[\w.]+)\n(?P<members>   :members:\n)?",
    re.MULTILINE,
)


def documented(kind, name, members):
    """The names that a directive documents, below noisefuse: of a module or class with members also those."""
    name = name.removeprefix("noisefuse.")
    found = [name] if kind in ("function", "class") else []
    if members and kind == "module":
        found += [f"{name}.{member}" for member in import_module(f"noisefuse.{name}").__all__]
    elif members and kind == "class":
        owner = attrgetter(name)(noisefuse)
        found += [
            f"{name}.{member}" for member in vars(owner) if member[0] != "_" and inspect.getdoc(vars(owner)[member])
        ]
    return found


def summarise(app, document, content):
    """A page of the reference begins with a table of its names and what they do."""
    names = [name for match in DOCUMENTED.finditer(content[0]) for name in documented(*match.groups())]
    if document.startswith("reference/") and not document.startswith("reference/interop") and len(names) > 1:
        table = "\n".join(
            [
                ".. autosummary::",
                "   :nosignatures:",
                "",
                *(f"   {name}" for name in names),
            ]
        )
        content[0] = re.sub(
            r"(\.\. currentmodule:: noisefuse\n)",
            rf"\1\n{table}\n",
            content[0],
            count=1,
        )


RELATIVE = re.compile(r"\]\((?![\w+.-]+:)([^)#\s]+)")


def address(document, link):
    """The address on the site of what a page links to, for copies of the page that lie elsewhere."""
    there = urljoin(f"{PROJECT['urls']['Documentation']}/{document}", link)
    return re.sub(r"\.md$", ".html", there)


def offer_notebook(app, document, content):
    """A tutorial can be downloaded, as can the program of the gallery."""
    if not document.startswith("tutorials/") and document != "gallery":
        return
    name = document.rpartition("/")[2]
    cells = notebooks.of_program(GALLERY) if document == "gallery" else notebooks.parts(content[0])
    absolute = partial(RELATIVE.sub, lambda match: f"]({address(document, match[1])}")
    cells = [(kind, absolute(text) if kind == "markdown" else text) for kind, text in cells]
    folder = Path(app.outdir) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    script = GALLERY.read_text() if document == "gallery" else notebooks.script(cells)
    for ending, text in (("ipynb", notebooks.notebook(cells)), ("py", script)):
        (folder / f"{name}.{ending}").write_text(text)
    up = "../" * document.count("/")
    links = " · ".join(f'<a href="{up}notebooks/{name}.{ending}" download>{words}</a>' for ending, words in DOWNLOADS)
    content[0] = re.sub(
        r"^# .+$",
        rf'\g<0>\n\n<p class="downloads">Download: {links}</p>',
        content[0],
        count=1,
        flags=re.M,
    )


DOWNLOADS = (("ipynb", "notebook"), ("py", "Python"))
PICTURE = re.compile(
    r"^```\{image\} (?P<path>pictures/\S+)\n:alt: (?P<alt>.+)\n```$",
    re.MULTILINE,
)


def code_of_pictures():
    """The source of each function of the gallery."""
    text = GALLERY.read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(text, node) for node in functions}


def show_gallery(app, document, content):
    """The gallery begins with thumbnails, and has the code of each picture that its program draws below it."""
    if document != "gallery":
        return
    code = code_of_pictures()

    def with_code(match):
        name = Path(match["path"]).stem
        anchor = f"({name.replace('_', '-')}-picture)=\n"
        below = f"\n\n:::{{dropdown}} The code\n```python\n{code[name]}\n```\n:::" if name in code else ""
        return anchor + match[0] + below

    pictures = [*PICTURE.finditer(content[0])]
    cells = "".join(
        f'<a href="#{Path(one["path"]).stem.replace("_", "-")}-picture"><img src="_images/{Path(one["path"]).name}" '
        f'alt="{one["alt"]}" loading="lazy"></a>'
        for one in pictures
    )
    text = PICTURE.sub(with_code, content[0])
    begin = text.index("\n## ")
    content[0] = f'{text[:begin]}\n<div class="thumbnails">{cells}</div>\n{text[begin:]}'


def describe_page(app, page, template, context, doctree):
    """Describes a page for other sites, which show a link with a title, a sentence and the card."""
    site = PROJECT["urls"]["Documentation"]
    tags = {
        "og:title": f"{context.get('title', project)} - {project}".removeprefix(f"{project} - "),
        "og:description": PROJECT["description"],
        "og:type": "website",
        "og:url": f"{site}/{page}.html",
        "og:image": f"{site}/card.png",
    }
    lines = [f'<meta property="{name}" content="{escape(value)}">' for name, value in tags.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image">')
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def setup(app):
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
    for change in (
        show_gallery,
        summarise,
        name_pages,
        link_repository,
        join_alternatives,
        offer_notebook,  # after the others, which mend links
    ):
        app.connect("source-read", change)
    app.connect("doctree-resolved", link_names)
    app.connect("doctree-resolved", show_whole_letters)
    app.connect("html-page-context", describe_page)
