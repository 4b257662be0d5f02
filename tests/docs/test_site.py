"""The documentation site: it is built with every warning an error, its links lead somewhere, and it fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sqlmodel_cache

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "docs/pictures").glob("*.svg"))


class Links(HTMLParser):
    """What a page links to, what it fetches, and the anchors that it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one element refers to."""
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and "href" in given:
            self.fetched.add(given["href"])
        if "src" in given:
            self.fetched.add(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    """The pages of the site, by their files."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {page: Links(page) for page in folder.glob("**/*.html") if page.name != "404.html"}


def test_site_has_every_document(site: dict[Path, Links]) -> None:
    """A page for each file of docs/, and for those of the root that users read."""
    names = {page.stem for page in site}
    assert names >= {path.stem for path in ROOT.glob("docs/*.md")}
    assert names >= {"caveats", "changelog", "contributing", "releasing", "security"}


def test_site_links_lead_somewhere(site: dict[Path, Links]) -> None:
    """A link inside the site leads to a file that exists, and to an anchor that is there."""
    broken = []
    for page, links in site.items():
        for link in links.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path not in ("", ".") else page
            anchors = site[target].anchors if target in site else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append((page.name, link))
    assert broken == []


def test_site_fetches_nothing_from_elsewhere(site: dict[Path, Links]) -> None:
    """No font, script, style or picture comes from another host, so that the site can be read from a disk."""
    for page, links in site.items():
        assert [url for url in links.fetched if urlsplit(url).scheme not in ("", "data") or url.startswith("//")] == []
        assert all((page.parent / urlsplit(url).path).exists() for url in links.fetched if not url.startswith("data:"))
    for style in next(iter(site)).parent.glob("assets/**/*.css"):
        assert re.findall(r"url\(\s*[\"']?(?:https?:)?//", style.read_text()) == []


def test_site_is_searched_without_a_server(site: dict[Path, Links]) -> None:
    """The search index is a script, too: a page from a disk may not read other files."""
    folder = next(iter(site)).parent
    assert (folder / "search/search_index.js").read_text().startswith("var __index")
    assert "assets/iframe-worker.js" in site[folder / "index.html"].fetched


def test_api_page_has_every_public_name(site: dict[Path, Links]) -> None:
    """What can be imported is explained, counters included."""
    anchors = next(links for page, links in site.items() if page.name == "api.html").anchors
    assert [name for name in sqlmodel_cache.__all__ if f"sqlmodel_cache.{name}" not in anchors] == []
    page = next(page for page in site if page.name == "api.html").read_text()
    assert "Gets answered from the cache." in page


def test_architecture_page_states_the_invariants() -> None:
    """They are those of `_protocol.py`, word for word."""
    theory = (ROOT / "src/sqlmodel_cache/_protocol.py").read_text().partition("from __future__")[0]
    stated = re.findall(r"^(I\d+)  (.*)$", theory, flags=re.MULTILINE)
    page = (ROOT / "docs/architecture.md").read_text()
    assert stated
    assert re.findall(r"^\| (I\d+) \| (.*) \|$", page, flags=re.MULTILINE) == stated


def test_architecture_page_and_design_page_show_the_same_layers() -> None:
    """One map of the modules, in both places, and every module is on it."""
    maps = [
        re.findall(r"^    (?=errors).*?(?=\n\n)", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        for page in ("docs/architecture.md", "docs/design.md")
    ]
    assert len(maps[0]) == 1
    assert maps[0] == maps[1]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_picture_is_readable_in_light_and_dark(picture: Path) -> None:
    """It has a title, colours for both, a text size that a phone can show, and refers to nothing outside itself."""
    root = ElementTree.parse(picture).getroot()
    text = picture.read_text()
    assert root.attrib["class"] == "picture"
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in text
    assert float(root.attrib["viewBox"].split()[2]) <= 480
    assert "href" not in text
    assert "url(" not in text


def test_every_picture_is_shown() -> None:
    """None is left behind when a page changes."""
    pages = "".join(path.read_text() for path in ROOT.glob("docs/*.md"))
    assert [picture.name for picture in PICTURES if f"(pictures/{picture.name})" not in pages] == []
