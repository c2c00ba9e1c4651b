# SPDX-License-Identifier: Apache-2.0
"""Prints noise.md, the noise contract: noise.pdf, for those who keep or cite a paper copy.

    pip install weasyprint && python docs/print.py

The file's identifier is that of its text, the SHA-256 of noise.md; a test fails where that is another one.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

DOCS = Path(__file__).parent
CSS = """
@page {
    size: A4; margin: 22mm 20mm;
    @bottom-left { content: "noisefuse: the noise contract"; font: 8pt sans-serif; color: #555 }
    @bottom-right { content: counter(page) " / " counter(pages); font: 8pt sans-serif; color: #555 }
}
body { font: 9.5pt/1.4 "DejaVu Serif", serif; color: #111 }
h1, h2, h3 { font-family: "DejaVu Sans", sans-serif; break-after: avoid; margin: 1.3em 0 0.4em }
h1 { font-size: 17pt } h2 { font-size: 12.5pt } h3 { font-size: 10.5pt }
a { color: inherit; text-decoration: none }
code, pre { font-family: "DejaVu Sans Mono", monospace; font-size: 7.6pt }
pre { background: #f4f4f4; padding: 6pt 8pt; white-space: pre-wrap; break-inside: avoid-page }
table { border-collapse: collapse; width: 100%; margin: 0.7em 0 }
tr { break-inside: avoid }
td, th { border-bottom: 0.4pt solid #999; padding: 2.5pt 6pt; text-align: left; vertical-align: top }
img { max-width: 100% }
"""


def digest() -> str:
    return hashlib.sha256((DOCS / "noise.md").read_bytes()).hexdigest()


def page() -> str:
    """As HTML, without links to other pages, and without that to the file itself."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render((DOCS / "noise.md").read_text())
    body = re.sub(r'<p><a href="noise.pdf">.*?</p>', "", body)
    body = re.sub(r'<a href="(?!http)[^"]*">(.*?)</a>', r"\1", body, flags=re.DOTALL)
    head = '<meta charset="utf-8"><title>The noise contract of noisefuse</title>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def main() -> None:
    import weasyprint

    style = weasyprint.CSS(string=CSS)
    printed = weasyprint.HTML(string=page(), base_url=str(DOCS))
    printed.write_pdf(DOCS / "noise.pdf", stylesheets=[style], pdf_identifier=digest())


if __name__ == "__main__":
    main()
