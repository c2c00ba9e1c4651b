# SPDX-License-Identifier: Apache-2.0
"""The documentation site: its code fits, its downloads are the pages' code, and its pages look right in a browser."""

import ast
import json
import queue
import re
import runpy
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
NOTEBOOKS = runpy.run_path(str(DOCS / "notebooks.py"))
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
CONTRACT = DOCS / "noise.md"  # its text is printed, too, and its tables of digits are as wide as they are
WIDEST = 80  # characters of code that a page's column holds


def name(path):
    return path.relative_to(ROOT).as_posix()


def wide_lines(text):
    """Of code, and of indented lines. Blocks without a language, such as a tree of files, are wrapped by the site."""
    blocks = [match["code"] for match in FENCE.finditer(text) if match["language"][:1].isalpha()]
    indented = re.findall(r"\n\n((?: {4}.*\n)+)", FENCE.sub("", text))
    blocks += [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in indented]
    return [line for block in blocks for line in block.splitlines() if len(line) > WIDEST]


@pytest.mark.parametrize("path", [page for page in PAGES if page != CONTRACT], ids=name)
def test_code_fits_the_column(path):
    """Seen to fail: 190 lines of 34 pages."""
    assert wide_lines(path.read_text()) == []


@pytest.mark.parametrize("path", TUTORIALS, ids=name)
def test_a_tutorials_notebook_has_the_code_of_the_page(path):
    """The page's code is run by test_docs.py. Seen to fail: a block left out."""
    text = path.read_text()
    code = [match["code"].strip() for match in FENCE.finditer(text) if match["language"] == "python"]
    cells = NOTEBOOKS["parts"](text)
    made = json.loads(NOTEBOOKS["notebook"](cells))
    assert made["nbformat"] == 4
    assert [cell["cell_type"] for cell in made["cells"]] == [kind for kind, _ in cells]
    assert ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"] == code
    assert len({cell["id"] for cell in made["cells"]}) == len(cells)
    assert ast.dump(ast.parse(NOTEBOOKS["script"](cells))) == ast.dump(ast.parse("\n".join(code)))


def test_a_notebook_runs_python_alone():
    """Seen to fail: a block of another language as code."""
    page = "# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n```cpp\nint a;\n```\n\n```{image} a.png\n```\n"
    cells = [("markdown", "# Title"), ("code", "print(1)"), ("markdown", "```cpp\nint a;\n```")]
    assert NOTEBOOKS["parts"](page) == cells


def test_the_gallerys_notebook_draws_its_pictures(monkeypatch):
    """Its first cells run; each of the others defines a picture and shows it. Seen to fail: without the helpers."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    program = ROOT / "examples" / "gallery.py"
    cells = [text for kind, text in NOTEBOOKS["of_program"](program) if kind == "code"]
    shown = []
    display = type(sys)("IPython.display")
    display.display, display.Image = shown.append, bytes
    ipython = type(sys)("IPython")
    ipython.version_info = (9, 0)  # matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    scope = {"__name__": "__main__"}
    drawn = re.findall(r"\nshow\((\w+), \(.+\)\)$", "\n".join(cells), re.MULTILINE)
    for cell in cells:
        if cell.startswith("%%writefile "):  # pytest finds these programs where they lie
            continue
        if "\nshow(" not in cell or re.search(r"\nshow\((variance|window), ", cell):  # the quick ones
            exec(cell, scope)
    assert {draw.__name__ for draw in runpy.run_path(str(program))["SIZES"]} == {*drawn}
    assert len(shown) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in shown)


@pytest.mark.slow
@pytest.mark.parametrize("path", [*TUTORIALS, ROOT / "examples" / "gallery.py"], ids=name)
def test_a_notebook_runs_in_a_kernel(path, tmp_path):
    """It is what a reader downloads: valid, and each cell runs, in an empty folder. Half a minute for all of them.

    Seen to fail: an assert of a page that does not hold, a cell without an identifier, a file of the page's folder, and
    pictures of which only their size was shown.
    """
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = NOTEBOOKS["of_program"](path) if path.suffix == ".py" else NOTEBOOKS["parts"](path.read_text())
    made = nbformat.reads(NOTEBOOKS["notebook"](cells), as_version=4)
    nbformat.validate(made)
    nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    ran = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == [*range(1, len(ran) + 1)]
    shown = [out for cell in ran for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(shown) == sum("\nshow(" in cell.source for cell in ran)


class Server(ThreadingHTTPServer):
    """Serves a folder, until a page of it has sent what it found."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.said = queue.Queue()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: a minute."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-E", str(DOCS), str(folder)], check=True)
    return folder


@pytest.mark.release
def test_what_the_site_adds_to_pages(site):
    """Seen to fail: links called noise.md, arguments without types, a gallery without code or thumbnails, words of a
    wrapped alternative text joined, a wide picture that does not scroll, notebooks with links to files beside them."""
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    links = r'<a class="reference internal" href="[^"]+"><span[^>]*>([^<]+\.md)</span></a>'
    assert {name: found for name, text in pages.items() if (found := re.findall(links, text))} == {}
    assert all('property="og:image"' in text for name, text in pages.items() if name.endswith("index.html"))
    assert (
        "times as long for the same work"
        in re.search(r'<img alt="([^"]*)" src="_images/speed', pages["performance.html"])[1]
    )
    assert '<span class="wide" style="--width: 780px"><img alt="A spiral' in pages["gallery.html"]
    operations = pages["reference/operations.html"]
    assert "viewcode-link" in operations
    assert re.search(r"<strong>x0</strong> – <code[^>]*><span class=\"pre\">Array</span></code>: an array", operations)
    assert re.search(
        r'autosummary.*?title="noisefuse.q_sample".*?The forward process in one pass', operations, re.DOTALL
    )
    shown = len(re.findall(r"^```\{image\}", (DOCS / "gallery.md").read_text(), re.MULTILINE))
    thumbnails, gallery = pages["gallery.html"].split('<div class="thumbnails">')[1].split("</div>", 1)
    anchors = re.findall(r'href="#([\w-]+)"', thumbnails)
    assert len(anchors) == shown
    assert all(f'id="{anchor}"' in gallery for anchor in anchors)
    drawn = runpy.run_path(str(ROOT / "examples" / "gallery.py"))["SIZES"]
    assert all(f'<span class="nf">{draw.__name__}</span>' in gallery for draw in drawn)
    for path in TUTORIALS:
        assert f'href="../notebooks/{path.stem}.ipynb"' in pages[f"tutorials/{path.stem}.html"]
        cells = json.loads((site / "notebooks" / f"{path.stem}.ipynb").read_text())["cells"]
        text = "".join(line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"])
        links = re.findall(r"\]\(([^)]+)\)", text)
        assert links
        assert [link for link in links if not link.startswith("https://")] == []  # it may lie anywhere


@pytest.mark.release
def test_pages_in_a_browser(site):
    """No page scrolls sideways, on a phone or on a desk; no picture is broken; no table or code is cut on a desk.

    Seen to fail: a picture of another name, a table without its wrapper, a table of eight columns, a line of 100.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    pages = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]
    pages = [page for page in pages if not page.startswith(("_modules/", "genindex", "search", "py-modindex"))]
    looking = (ROOT / "tests" / "site_pages.html").read_text().replace("PAGES", json.dumps(pages), 1)
    (site / "look.html").write_text(looking)
    server = Server(site)
    flags = ["--headless", "--no-sandbox", "--window-size=1400,1000", "--remote-debugging-port=0"]
    address = f"http://127.0.0.1:{server.server_port}/look.html"
    with subprocess.Popen([browser, *flags, address], stderr=subprocess.DEVNULL) as process:
        try:
            said = server.said.get(timeout=300)
        finally:
            process.terminate()
            server.shutdown()
            server.server_close()
    assert said["pages"] == len(pages) > 40
    assert said["wrong"] == []
