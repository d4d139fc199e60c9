"""Outputs as HTML for notebooks: a player, a picture where matplotlib is installed, and text. Names are escaped."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ssamba.inference.outputs.excerpt import Excerpt
from ssamba.utils.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_DPI = 80


def page_part(title: str, parts: Iterable[str]) -> str:
    """A block with a title, which is escaped, and parts that are HTML."""
    return f"<div><strong>{escape(title)}</strong>{''.join(f'<div>{part}</div>' for part in parts)}</div>"


def escape(text: str) -> str:
    """Foreign text as HTML: markup and control characters as they are read, never run."""
    return html.escape(printable(text).encode("utf-8", "backslashreplace").decode())


def player(excerpt: Excerpt) -> str:
    """A player of what is kept of a recording, with its name."""
    data = base64.b64encode(excerpt.wav()).decode()
    part = "" if excerpt.covered >= excerpt.seconds else f" (the first {excerpt.covered:g} s)"
    return (
        f"{escape(excerpt.name)}, {excerpt.seconds:.2f} s{part}<br>"
        f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>'
    )


def picture(draw: Callable[[], Figure], description: str) -> str:
    """A figure as PNG within the page; "" without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return ""
    file = io.BytesIO()
    draw().savefig(file, format="png", dpi=PICTURE_DPI)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, which are escaped."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
