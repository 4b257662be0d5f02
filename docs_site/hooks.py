"""What the site needs beyond docs/: the documents of the repository's root, links between both, and inlined pictures.

Every document is written to be read in the repository. Here its links are turned into those of the site; a link to a
file that has no page is left as its text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# The root's documents that are pages of the site, too.
ROOT_DOCUMENTS = ("CAVEATS.md", "CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md")

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r'<p><img alt="[^"]*" src="(?:\.\./)*pictures/([\w-]+\.svg)" ?/?></p>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's documents."""
    root = Path(config.docs_dir).parent
    for name in ROOT_DOCUMENTS:
        files.append(File.generated(config, name.lower(), abs_src_path=os.fspath(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the document with links as the site needs them."""
    root = Path(config.docs_dir).parent
    source = page.file.src_uri
    here = "" if source.upper().removesuffix(".MD") + ".md" in ROOT_DOCUMENTS else "docs"

    def turned(link: re.Match[str]) -> str:
        text, target, anchor = link.group(1), link.group(2), link.group(3) or ""
        path = posixpath.normpath(posixpath.join(here, posixpath.dirname(source) if here else "", target))
        if path in ROOT_DOCUMENTS:
            path = f"docs/{path.lower()}"
        uri = path.removeprefix("docs/")
        if path == "README.md":
            uri = "index.md"
        if uri != path or path == "README.md":
            return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(source) or '.')}{anchor})"
        return text if (root / path).exists() else link.group(0)

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [LINK.sub(turned, markdown[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, LINK.sub(turned, markdown[end:])])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its pictures inlined."""
    folder = Path(config.docs_dir) / "pictures"
    return PICTURE.sub(lambda image: (folder / image.group(1)).read_text(), html)
