"""`make bench`: every path runs and is written down. What it takes is nobody's test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run prints that does everything once, and the folder with what it writes."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "docs/performance.md", folder)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", "--quick", "--docs", folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1), "1: a target is missed, as it may be here"
    return done.stdout, folder


def test_every_line_has_figures(run: tuple[str, Path]) -> None:
    """Each line of the table that is printed is in the document, with its targets."""
    printed, folder = run
    document = (folder / "performance.md").read_text()
    paths = [
        line[:44].strip() for line in printed.splitlines()[1:] if line[:44].strip() and not line.startswith("no plot")
    ]
    assert len(paths) >= 20
    for path in paths:
        assert f"| {path} |" in document
    assert document.count("≤") + document.count("≥") >= 15


def test_document_keeps_its_text(run: tuple[str, Path]) -> None:
    """A run replaces what is between the marks, and can do so again."""
    document = (run[1] / "performance.md").read_text()
    committed = (ROOT / "docs/performance.md").read_text()
    assert [line for line in document.splitlines() if line.startswith(("#", "<!--"))] == [
        line for line in committed.splitlines() if line.startswith(("#", "<!--"))
    ]


def test_profiles_are_drawn(run: tuple[str, Path]) -> None:
    """The flame graphs show the library's own frames."""
    for name in ("in-process", "redis"):
        assert "sqlmodel_cache._reading: get" in (run[1] / f"profile-{name}.svg").read_text()
