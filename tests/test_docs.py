# SPDX-License-Identifier: Apache-2.0
"""The documentation runs, its links lead somewhere, and it knows every public name.

Seen to fail: a changed number in a block, a link to a file or heading that does not exist, a public name or a command
that no page has, a name without its entry in the reference, a page that no table of contents has.
"""

import ast
import doctest
import importlib
import importlib.metadata
import inspect
import io
import re
import runpy
import tomllib
import zlib
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import noisefuse as nf
from cuda_kernels import stand_in
from noisefuse.ground.docstrings import Shared, completed
from noisefuse.tokens import samplers as token_samplers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
DOCUMENTS += [ROOT / name / "README.md" for name in ("csrc", "integrations/comfyui")]
DOCUMENTS += [ROOT / "tests" / "known" / "README.md"]
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"\n*```text\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)  # what follows a block that prints
NEEDS = {  # libraries that pages import by modules of ours, too
    "docs/transforms.md": ("albumentations", "audiomentations", "grain", "kornia", "monai", "torchvision"),
}
RELEASED = re.search(r"^## \[\d", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE) is not None  # some version
HERE = "noisefuse" if RELEASED else "."  # pip's argument, except for tests, which only a checkout has
COMMANDS = (f"pip install '{HERE}[demo]' && noisefuse demo", "pip install '.[test-core]' && pytest -n auto")


class Block(NamedTuple):
    code: str
    line: int  # the page's line at the beginning of the code
    printed: str | None  # what it prints, if the page says so: a block of text directly below it


def name(path):
    return path.relative_to(ROOT).as_posix()


def python_blocks(text):
    """Yields the blocks that run: "```python no-run" does not."""
    blocks = []
    for match in FENCE.finditer(text):
        if match["language"] == "python":
            printed = PRINTED.match(text, match.end())
            line = text.count("\n", 0, match.start("code"))
            blocks.append(Block(match["code"], line, printed["text"] if printed else None))
    return blocks


def run(path):
    """Runs all blocks of a page, one after the other in one namespace; lines of a traceback are those of the page."""
    scope = {"__name__": "__main__"}
    for block in python_blocks(path.read_text()):
        with redirect_stdout(io.StringIO()) as output:
            exec(compile("\n" * block.line + block.code, path, "exec"), scope)
        if block.printed is not None:
            assert output.getvalue() == block.printed


def imported(path):
    """Returns the libraries that a page's blocks import."""
    nodes = [node for block in python_blocks(path.read_text()) for node in ast.walk(ast.parse(block.code))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_blocks_run(path, tmp_path, monkeypatch):
    """A library that is not installed skips its pages. docs/cuda.md runs on a stand-in for CuPy, which is not the
    device, unless there is one. Seen to fail: a page that imports diffusers, without it."""
    monkeypatch.chdir(tmp_path)
    device = path.name != "cuda.md" or nf.info()["backends"]["cuda"] == "available"
    with nullcontext() if device else stand_in.installed():
        for library in sorted({*imported(path), *NEEDS.get(name(path), ())}):
            pytest.importorskip(library)
        run(path)


def test_pages_have_blocks():
    counts = {name(path): len(python_blocks(path.read_text())) for path in PAGES}
    assert counts["README.md"] >= 2
    assert counts["docs/noise.md"] >= 5
    assert counts["docs/samplers.md"] >= 6
    assert counts["docs/own-samplers.md"] >= 6
    assert counts["docs/torch.md"] >= 5
    not_run = sum(path.read_text().count("```python no-run") for path in PAGES)
    assert not_run == 0  # raise it only for blocks that no test can run


@pytest.mark.parametrize("code", ["1 / 0", "assert False", "undefined"])
def test_a_wrong_block_is_seen(code, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```python\na = 1\n```\n\n```python\nassert a == 1\n{code}\n```\n")
    with pytest.raises((ZeroDivisionError, AssertionError, NameError)) as error:
        run(page)
    assert error.traceback[-1].lineno == 6  # from 0: the seventh line of the page


def test_another_output_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n1\n```\n")
    run(page)
    page.write_text(page.read_text().replace("text\n1", "text\n2"))
    with pytest.raises(AssertionError):
        run(page)


# ---- links -------------------------------------------------------------------------------------------------


def anchors(path):
    """Returns GitHub's anchors for the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(path):
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.is_file() or (anchor and anchor not in anchors(found)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path):
    assert dead_links(path) == []


def test_names_of_other_libraries_that_moved_or_are_gone():
    """Seen to fail: an entry of another domain was taken for Python's."""
    refresh = runpy.run_path(str(DOCS / "inventories" / "refresh.py"))
    entries = [
        "torch.rand py:function 1 new.html#$ -",
        "torch.nn.Module py:class 1 x.html#$ -",
        "torch.gone c:function 1 c.html#$ -",
    ]
    head = b"# Sphinx inventory version 2\n# Project: PyTorch\n# Version: 9\n# compressed\n"
    theirs = refresh["pages"](head + zlib.compress("\n".join(entries).encode()))
    ours = "# Version: stable\ntorch.rand function old.html\ntorch.gone function gone.html\n"
    text, gone = refresh["refreshed"](ours, theirs)
    assert text == ours.replace("old.html", "new.html")
    assert gone == ["torch.gone"]
    with pytest.raises(ValueError, match="expected an inventory of version 2"):
        refresh["pages"](b"<html>\n\n\n\n\n")
    files = refresh["projects"]((DOCS / "conf.py").read_text())
    assert {*files} == {name(path).removeprefix("docs/") for path in (DOCS / "inventories").glob("*.inv")}
    assert all(site.startswith("https://") and site.endswith("/") for site in files.values())


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n[a](page.md) [b](#one-two) [c](https://d.e)\n[f](none.md) [g](#three)\n")
    assert dead_links(page) == ["none.md", "#three"]


# ---- names -------------------------------------------------------------------------------------------------

PUBLIC = {name: getattr(nf, name) for name in nf.__all__}
SAMPLERS = {name: getattr(nf.samplers, name) for name in nf.samplers.__all__}
SCHEDULES = dict(inspect.getmembers(nf.Schedule, inspect.ismethod))
NAMES = {name: value for name, value in (PUBLIC | SAMPLERS | SCHEDULES).items() if not name.startswith("_")}


@pytest.mark.parametrize("public", NAMES)
def test_public_names_have_docstrings(public):
    if not isinstance(NAMES[public], int):  # NOISE_VERSION
        assert (NAMES[public].__doc__ or "").strip()


@pytest.mark.parametrize("public", NAMES)
def test_public_names_are_documented(public):
    sampler = public in SAMPLERS and public.islower()  # the others are classes
    page = "discrete.md" if public in token_samplers.__all__ else "sampler-list.md"
    pages = [DOCS / page] if sampler else PAGES
    code = "\n".join(code for page in pages for code in code_of(page.read_text()))
    assert re.search(rf"\b{public}\b", code)


def code_of(text):
    """Returns the text in blocks and between backquotes."""
    return [match["code"] for match in FENCE.finditer(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


# ---- the site ----------------------------------------------------------------------------------------------

DIRECTIVE = re.compile(r"^\.\. (?:auto(?P<kind>\w+)|currentmodule|py:data):: (?P<name>[\w.]+)$", re.MULTILINE)
TOCTREE = re.compile(r"^```\{toctree\}\n(?P<entries>.*?)^```$", re.MULTILINE | re.DOTALL)


def entries(text):
    """Returns the full names that the directives of a page document."""
    found = {"noisefuse"}
    for match in DIRECTIVE.finditer(text):
        name = match["name"]
        found.add(name if name.split(".")[0] == "noisefuse" else f"noisefuse.{name}")
        if match["kind"] == "module" and f"{match[0]}\n   :members:" in text:
            module = importlib.import_module(name)
            found |= {f"{name}.{member}" for member in module.__all__}
    return found


def documented(module):
    return {f"{module.__name__}.{name}" for name in module.__all__}


TRANSFORMS = [f".interop.{library}" for library in NEEDS["docs/transforms.md"]]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".samplers",
        ".samplers.interpolants",
        ".weights",
        ".numba",
        ".triton",
        ".interop.diffusers",
        ".interop.k_diffusion",
        *TRANSFORMS,
    ],
)
def test_every_public_name_has_an_entry_in_the_reference(name):
    library = name.rpartition(".")[2] if name[:2] in (".n", ".i", ".t") else "numpy"
    pytest.importorskip("torch" if library == "k_diffusion" else library)
    reference = set().union(*(entries(page.read_text()) for page in (DOCS / "reference").glob("*.md")))
    assert documented(importlib.import_module(f"noisefuse{name}")) - reference == set()


def test_every_page_stands_in_one_table_of_contents():
    found = []
    for page in DOCS.rglob("*.md"):
        for tree in TOCTREE.finditer(page.read_text()):
            lines = [line for line in tree["entries"].splitlines() if line and not line.startswith(":")]
            found += [(page.parent / f"{line}.md").resolve() for line in lines]
    assert sorted(found) == sorted(page for page in DOCS.rglob("*.md") if page != DOCS / "index.md")


def test_lines_of_other_projects_are_those_of_the_calls_beside_them():
    """Seen to fail: `paths.linear` beside torchcfm's path with noise, the velocity of a flow with the other sign."""
    torch = pytest.importorskip("torch")
    section = (DOCS / "migrate.md").read_text().split("## Lines of other projects")[1].split("\n## ")[0]
    block = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
    names = {"nf": importlib.import_module("noisefuse"), "torch": torch, "seed": 2026}
    exec(block, names)
    rows = re.findall(r"^\|[^|]+\| `([^|]+)` \| `([^|]+)` \|$", section, re.MULTILINE)
    assert len(rows) == section.count("\n|") - 2
    for theirs, ours in rows:
        pair = [eval(line, names) for line in (theirs, ours)]
        for a, b in zip(*(found if isinstance(found, tuple) else (found,) for found in pair), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=5e-6, msg=ours)


def test_the_sidebar_can_be_read_at_a_glance():
    """Seen to fail: 52 entries on its first level."""
    trees = TOCTREE.findall((DOCS / "index.md").read_text())
    assert len([line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]) <= 25


CONTRACT = DOCS / "noise.md"  # it stays whole
LONGEST = 2500  # words of a page


def words(text):
    """Counts the words of a page outside of its blocks of code; those of tables count, too."""
    return sum(re.search(r"\w", word) is not None for word in FENCE.sub("", text).split())


@pytest.mark.parametrize("path", [page for page in sorted(DOCS.rglob("*.md")) if page != CONTRACT], ids=name)
def test_a_page_can_be_read_in_ten_minutes(path):
    """Seen to fail: two pages, of 3,018 and of 4,045 words."""
    assert words(path.read_text()) <= LONGEST, "split it by what a reader comes for"


def test_what_counts_as_a_word():
    """Seen to fail: code counted, the marks of a list and of a table counted."""
    assert words("# A title\n\n* one, `two`\n\n| a | b |\n|---|---|\n\n```python\nnot = counted\n```\n") == 6


def broken_lines(text):
    """Returns the lines that begin with a sign within a paragraph, which would be shown as a list, and those that are
    not indented within indented code, which would be shown as a paragraph."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", FENCE.sub("\n\n", text)) if block]
    signs = [line for first, *more in blocks if not re.match(r" |[-+*] ", first) for line in more if line[:2] in MARKS]
    outside = [line for first, *more in blocks if first[:4] == "    " for line in more if line[:1] != " "]
    return signs + outside


MARKS = ("- ", "+ ", "* ")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_line_leaves_its_paragraph(path):
    """Seen to fail: "(x(id)" and "- m)" on two lines, the last line of a program without its indentation."""
    assert broken_lines(path.read_text()) == []


def test_drawings_are_those_of_their_script(tmp_path):
    """Seen to fail: another word in a box."""
    runpy.run_path(str(DOCS / "drawings.py"))["main"](tmp_path)
    drawn, kept = ({path.name: path.read_text() for path in at.glob("*.svg")} for at in (tmp_path, DOCS / "pictures"))
    assert drawn == kept


def test_the_printed_contract_is_of_todays_text():
    """Seen to fail: one more word in noise.md."""
    digest = runpy.run_path(str(DOCS / "print.py"))["digest"]()
    assert digest.encode() in (DOCS / "noise.pdf").read_bytes(), "python docs/print.py prints it anew"


def test_start_has_every_extra():
    """Seen to fail: an extra left out, and one that does not exist."""
    table = (DOCS / "start.md").read_text().split("| extra |")[1].split("\n\n")[0]
    rows = (line.split("|")[1] for line in table.splitlines()[2:])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(re.findall(r"`(.+?)`", " ".join(rows))) == sorted(project["optional-dependencies"])


def test_one_page_alone_names_the_extras_of_what_is_released():
    """docs/start.md says when `noisefuse[x]` is right. Before the first release all others install from a checkout, and
    after it no page does (tests/test_release.py). Seen to fail: in another."""
    if RELEASED:
        return
    named = [name(path) for path in PAGES if re.search(r"noisefuse\[\w+\]", path.read_text())]
    assert named == ["docs/start.md"]


def test_the_readme_begins_with_the_two_commands():
    title, sentence, released, commands, *_ = re.split(r"\n{2,}", (ROOT / "README.md").read_text())
    assert title == "# noisefuse"
    assert sentence.count(". ") == 0
    assert "`pip install noisefuse`" in released
    assert tuple(line.removeprefix("    ") for line in commands.splitlines()) == COMMANDS


def test_bibtex_says_what_citation_cff_does():
    """Seen to fail: another author."""
    yaml = pytest.importorskip("yaml")
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    entry = re.search(r"@software\{.*?^\}$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
    fields["author"] = [{"name": name.strip("{}")} for name in fields["author"].split(" and ")]
    named = {"title": "title", "author": "authors", "url": "repository-code", "license": "license"}
    assert fields == {field: cff[key] for field, key in named.items()}


def test_on_pypi_the_readme_has_addresses_for_links():
    """Seen to fail: without the substitutions of pyproject.toml."""
    text = importlib.metadata.metadata("noisefuse").json["description"]
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    branch = "main" if ".dev" in nf.__version__ else f"v{nf.__version__}"
    assert f"[docs/noise.md]({urls['Repository']}/blob/{branch}/docs/noise.md)" in text
    assert f"](https://raw.githubusercontent.com/noisefuse/noisefuse/{branch}/docs/pictures/" in text
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", text) == []


# ---- docstrings --------------------------------------------------------------------------------------------


def public(module):
    """Yields (name, object) for the public names of a module, and the public methods of its classes."""
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isroutine(found) or inspect.isclass(found):
            yield name, found
        if inspect.isclass(found):
            own = [base for base in reversed(found.__mro__) if base.__module__.startswith("noisefuse")]
            members = {key: value for base in own for key, value in vars(base).items() if not key.startswith("_")}
            yield from ((f"{name}.{key}", value) for key, value in members.items())


OFFERED = [*public(nf)]
PARTS = ("augment", "density", "discrete", "fields", "samplers", "weights")
OFFERED += [(f"{part}.{name}", value) for part in PARTS for name, value in public(getattr(nf, part))]
EXAMPLES = [(name, value) for name, value in OFFERED if ">>>" in (inspect.getdoc(value) or "")]
CONSTRUCTORS = [(name, value) for name, value in inspect.getmembers(nf.Schedule, inspect.ismethod) if name[0] != "_"]
FUNCTIONS = [(f"Schedule.{name}", value) for name, value in CONSTRUCTORS if name != "register"]  # it returns None
FUNCTIONS += [
    (name, value) for name, value in OFFERED if inspect.isfunction(value) and name.rpartition(".")[0] in ("", *PARTS)
]


@pytest.mark.parametrize(("name", "value"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_in_docstrings_run(name, value):
    """Seen to fail: a wrong result in one of them."""
    if "import jax" in inspect.getdoc(value):
        pytest.importorskip("jax")
    scope = {"np": np, "nf": nf}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(value), scope, name, None, None)
    printed = []
    assert doctest.DocTestRunner().run(example, out=printed.append).failed == 0, "".join(printed)


def test_what_is_called_has_an_example():
    """Seen to fail: without a constructor's example, without the one that samplers share."""
    called = {name for name, _ in public(nf) if "." not in name} | {name for name, _ in FUNCTIONS}
    assert called - {name for name, _ in EXAMPLES} == set()


def described(doc):
    """Returns the arguments that have an entry; one entry may have several names."""
    section = re.search(r"^Args:\n((?: .*\n)+)", doc, re.MULTILINE)
    entries = re.findall(r"^ {4}(\S.*?):", section[1], re.MULTILINE) if section else []
    return sorted(name.lstrip("*") for entry in entries for name in entry.split(", "))


@pytest.mark.parametrize(("name", "value"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_functions_say_what_they_take_and_give(name, value):
    """Seen to fail: without one argument's entry, without Returns, without the first shared argument."""
    doc = inspect.getdoc(value)
    assert described(doc) == sorted(inspect.signature(value).parameters)
    assert "\n\nReturns:\n    " in doc


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("One.", "One.\n\nArgs:\n    a: S.\n    b: S.\n\nReturns:\n    S.\n\nRaises:\n    KeyError: S.\n\n>>> 0\n0"),
        (
            """One.

            Args:
                b, c: own,
                    two lines.

            Returns:
                Own.

            Raises:
                TypeError: own.

            Two.

            >>> 1
            1
            """,
            "One.\n\nTwo.\n\nArgs:\n    a: S.\n    b, c: own,\n        two lines.\n\nReturns:\n    Own.\n\n"
            "Raises:\n    TypeError: own.\n    KeyError: S.\n\n>>> 1\n1",
        ),
    ],
    ids=["shared", "own"],
)
def test_a_docstrings_own_words_count_before_those_that_are_shared(doc, expected):
    """Seen to fail: shared before own, in each section; an entry's second line lost, or its second name."""
    shared = Shared({"a": "    a: S.", "b": "    b: S."}, "    S.", "    KeyError: S.")
    assert completed(doc, "abc" if "c:" in doc else "ab", shared, ">>> 0\n0") == expected


def test_an_argument_of_which_nothing_is_said_is_seen():
    with pytest.raises(KeyError, match="'b'"):
        completed("One.", "ab", Shared({"a": "    a: S."}), "")
