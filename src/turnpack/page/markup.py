"""Markup: the small pieces that every part of the page is made of.

Owns that what comes from outside is escaped, and that a name cannot turn what stands around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..reading import visible

EXCERPT = 400  # characters


def text(value: object) -> str:
    """Return text from outside as HTML."""
    return escape(visible(str(value)))


def name(value: object) -> str:
    """Return a name from outside, kept from turning the direction of what is around it."""
    return f"<bdi>{text(value)}</bdi>"


def shortened(text: str, most: int = EXCERPT) -> str:
    """Return the text, or its beginning and an ellipsis."""
    return text if len(text) <= most else f"{text[:most]} …"


def number(count: str, value: int, tag: str = "span") -> str:
    """Return a number that is found again as `count`."""
    return f'<{tag} data-count="{count}">{value:,}</{tag}>'


def percent(share: float) -> str:
    """Return a share in per cent, which is 100 or 0 only where it is."""
    shown = f"{share:.1%}"
    if shown == "100.0%" and share < 1:
        shown = f"{share:.2%}" if share < 0.99995 else "99.99%"
    if shown == "0.0%" and share > 0:
        return "&lt;0.1%"
    return shown.replace(".0%", "%") if share in (0, 1) else shown


def bar(shares: Sequence[tuple[float, str]], look: str = "") -> str:
    """Draw shares of 1, one behind the other."""
    drawn, start = [], 0.0
    for share, kind in shares:
        width = 100 * share
        drawn.append(f'<rect class="{kind}" x="{start:.2f}" width="{width:.2f}" height="10"/>')
        start += width
    return (
        f'<svg class="bar {look}" viewBox="0 0 100 10" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(drawn)}</svg>'
    )


def card(heading: str, lead: str, *body: str, name: str = "") -> str:
    """Return a part of the page under a heading."""
    anchor = f' id="{name}"' if name else ""
    note = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section class="card"{anchor}><h2>{heading}</h2>{note}{"".join(body)}</section>'
