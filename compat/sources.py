"""Upstream's own sources: the sdist of an installed release, from the package index.

The index's list of files is asked, as pip asks it, because `pip download` would first build the sdist for its metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691
SECONDS = 180


def unpack(package: str, folder: Path) -> Path:
    """Return the directory of the sdist of the release of `package` that is installed here; downloads it once."""
    release = f"{package}-{version(package)}"
    source = folder / release
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / f"{release}.tar.gz"
        archive.write_bytes(_download(package, archive.name))
        beside = folder / f"{release}.part"
        with tarfile.open(archive) as tar:
            tar.extractall(beside, filter="data")
        (folder / "pytest.ini").write_text("[pytest]\n")  # or pytest would find this repository's settings further up
        (beside / release).rename(source)
        beside.rmdir()
    return source


def _download(package: str, name: str) -> bytes:
    page = f"{INDEX.rstrip('/')}/{package}/"
    listed: Any = json.loads(_read(page))
    for file in listed["files"]:
        if file["filename"].lower() == name:
            content = _read(urljoin(page, file["url"]))
            if hashlib.sha256(content).hexdigest() != file["hashes"]["sha256"]:
                raise RuntimeError(f"{name} is not what the index lists: its SHA-256 differs")
            return content
    raise RuntimeError(f"{page} lists no {name}")


def _read(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": f"{JSON}, */*;q=0.1"})
    with urllib.request.urlopen(request, timeout=SECONDS) as reply:
        content: bytes = reply.read()
        return content
