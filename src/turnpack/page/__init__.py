"""The page: what was counted and what was picked → one HTML file that loads nothing.

Owns the file as a whole, and that nothing of the data can run in it: text is escaped (markup.py) or
is JSON that page.js sets as text, and the page's policy allows no script but page.js.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from ..reading import Reader
from ..survey import Picked
from . import markup
from .conversations import browser
from .overview import Overview, before, behind, header

__all__ = ["Overview", "page"]


def page(title: str, picked: Sequence[Picked], reader: Reader, overview: Overview | None) -> str:
    """Write the page; without an overview it is the conversations alone."""
    script = _data_file("page.js")
    style = _data_file("picture.css") + _data_file("page.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    total = len(picked) if overview is None else overview.survey.total.rows
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{markup.text(title)} · turnpack</title>",
            f"<style>{style}</style></head><body>",
            header(title, overview),
            "<main>",
            *([] if overview is None else before(overview)),
            browser(picked, reader, total, _data_file("browser.html")),
            *([] if overview is None else behind(overview)),
            "</main>",
            f"<script>{script}</script></body></html>\n",
        ]
    )


def _data_file(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
