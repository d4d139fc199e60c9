"""One HTML page: sections in order, styles and script inlined, and a policy that allows nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

from ssamba.inference.outputs.html import escape

ASSETS = "ssamba.reports.assets"


@dataclass(frozen=True)
class Section:
    """A part of the page: ``name`` is its anchor, ``body`` is HTML, ``short`` its title in the list of sections."""

    name: str
    title: str
    body: str
    short: str = ""


@dataclass(frozen=True)
class KeyFigure:
    """A number at the top of the page, what it is, and a detail such as its interval."""

    value: str
    label: str
    detail: str = ""


@dataclass
class Page:
    """What a report shows, in the order of reading.

    Attributes:
        title: the run's name.
        kind: what it is, in words.
        status: "finished", or how far it came.
        finished: whether it did.
        summary: one sentence, plain text.
        figures: key figures.
        sections: the parts.
        left_out: a line for each part that this run lacks, and why.
        clips: what the players' script reads, a JSON object.
    """

    title: str
    kind: str
    status: str
    finished: bool
    summary: str = ""
    figures: list[KeyFigure] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    clips: dict[str, object] = field(default_factory=dict)

    def add(self, part: Section | str | None) -> None:
        """Take a section, or the line that says why there is none."""
        if isinstance(part, Section):
            self.sections.append(part)
        elif part:
            self.left_out.append(part)

    def render(self) -> str:
        """The whole page as text."""
        style, script = _asset("page.css"), _asset("page.js")
        policy = (
            f"default-src 'none'; img-src data:; media-src data:; style-src '{_hash(style)}'; "
            f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
        )
        title = escape(self.title)
        head = (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{title}: {escape(self.kind)}</title>\n<style>{style}</style>\n</head>\n"
        )
        links = "".join(f'<li><a href="#{s.name}">{escape(s.short or s.title)}</a></li>' for s in self.sections)
        body = [
            f'<a class="skip" href="#{self.sections[0].name}">Skip to the report</a>' if self.sections else "",
            f"<header><p class=kind>{escape(self.kind)} {_badge(self.status, self.finished)}</p><h1>{title}</h1>",
            f"<p class=summary>{escape(self.summary)}</p>" if self.summary else "",
            key_figures(self.figures),
            f'</header>\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>',
            *(
                f'<section id="{s.name}" aria-labelledby="{s.name}-title"><h2 id="{s.name}-title">{escape(s.title)}'
                f"</h2>{s.body}</section>\n"
                for s in self.sections
            ),
            _left_out(self.left_out),
            "</main>\n",
            _PLAYER if self.clips.get("audio") else "",
            f'<script type="application/json" id="clips">{_script_json(self.clips)}</script>\n',
            f"<script>{script}</script>\n",
        ]
        return f"{head}<body>\n{''.join(body)}</body>\n</html>\n"


_PLAYER = (
    '<aside id="player" aria-label="Player" hidden><div><p id="now" aria-live="polite"></p>'
    '<audio id="audio" aria-label="Excerpt" controls preload="metadata"></audio>'
    '<button type="button" id="close" aria-label="Close the player">✕</button></div></aside>\n'
    "<noscript><p>The players need JavaScript, which is part of this file.</p></noscript>\n"
)


def key_figures(figures: Iterable[KeyFigure]) -> str:
    """The tiles at the top."""
    tiles = "".join(
        f"<div><dt>{escape(f.label)}</dt><dd><b>{escape(f.value)}</b>"
        + (f"<span>{escape(f.detail).replace(' %', '&nbsp;%')}</span>" if f.detail else "")
        + "</dd></div>"
        for f in figures
    )
    return f"<dl class=figures>{tiles}</dl>" if tiles else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values as a list; both are escaped."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return f"<dl class=facts>{items}</dl>"


def data_table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, raw: Sequence[int] = ()) -> str:
    """A table that scrolls by itself; the first column names its rows. Columns ``raw`` are HTML, others text.

    Columns of numbers are set to the right.
    """
    body = [list(row) for row in rows]
    numeric = {i for i in range(1, len(head)) if body and all(_is_number(row[i]) for row in body if i not in raw)}
    numeric -= set(raw)
    marks = [' class="n"' if i in numeric else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{mark}>{escape(name)}</th>' for name, mark in zip(head, marks, strict=True))
    lines = []
    for row in body:
        cells = [cell if i in raw else escape(cell) for i, cell in enumerate(row)]
        rest = "".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(cells[1:], marks[1:], strict=True))
        lines.append(f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>')
    label = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def remark(text: str) -> str:
    """A line of explanation under a heading or a chart; numbers stay with their per cent sign."""
    return f"<p class=note>{escape(text).replace(' %', '&nbsp;%')}</p>"


def details(summary: str, body: str) -> str:
    """HTML that is opened on demand."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def code(text: str) -> str:
    """A command to copy."""
    return f'<pre tabindex="0"><code>{escape_lines(text)}</code></pre>'


def escape_lines(text: str) -> str:
    """Text of several lines as HTML."""
    return "\n".join(escape(line) for line in text.split("\n"))


def _is_number(text: str) -> bool:
    first = text.strip().lstrip("-+±").split(" ")[0].replace(",", "").rstrip("%")
    return text in ("", "-") or first.replace(".", "", 1).isdecimal()


def _badge(status: str, finished: bool) -> str:
    return f'<span class="badge{"" if finished else " open"}">{escape(status)}</span>'


def _left_out(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        '<section id="left-out" aria-labelledby="left-out-title"><h2 id="left-out-title">Not in this report</h2>'
        f"<ul class=plain>{items}</ul></section>\n"
    )


def _script_json(value: object) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return resources.files(ASSETS).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
