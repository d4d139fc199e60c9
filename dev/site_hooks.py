"""What the site needs besides docs/: documents of other folders as pages, and links to files that are no pages.

MkDocs calls the two functions below. A link to a document outside of docs/ leads to its page; one to source code, which
the site does not have, becomes the file's name. So the documents stay as they are read in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "README.md": "index.md",
    "SECURITY.md": "project/security.md",
    "THIRD_PARTY.md": "project/third-party.md",
    "WEIGHTS.md": "project/weights.md",
    "dev/KERNEL-NOTES.md": "project/kernel-notes.md",
    "dev/RESULTS-LOG.md": "project/results-log.md",
}
"""File of the repository -> page of the site. The README's place is taken by the quick start."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s]+)\)")
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the documents of other folders."""
    for name, page in PAGES.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links relative to the page that they stand on, outside of code."""
    uri = page.file.src_uri
    origins = {goal: name for name, goal in PAGES.items() if goal != "index.md"}
    source = origins.get(uri, f"docs/{uri}")

    def replace(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, hash_mark, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        goal = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if goal is None or files.get_file_from_path(goal) is None:
            return text if (ROOT / file).exists() else match[0]  # mkdocs warns of what is nowhere
        relative = posixpath.relpath(goal, posixpath.dirname(uri) or ".")
        return f"{mark}[{text}]({relative}{hash_mark}{anchor})"

    parts, end = [], 0
    for block in CODE.finditer(markdown):
        parts += [LINK.sub(replace, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(replace, markdown[end:])])
