"""A pytest plugin that writes the outcome of every test to a file. It imports nothing of what is tested."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

FILE = "COMPAT_REPORT"  # the environment variable that names the file
COUNTS = "compat_counts"  # what a worker of pytest-xdist hands to its controller

# From best to worst: a test that passes, and whose teardown fails, has failed.
RANKS = ["skipped", "passed", "failed"]


class Outcomes:
    """Collects outcomes, where pytest runs or where pytest-xdist's controller does."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tests: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note the outcome of a test's setup, call or teardown."""
        if report.when != "call" and report.outcome == "passed":
            return
        name = stable(report.nodeid)
        outcome, message = report.outcome, ""
        if outcome == "failed":
            message = str(report.longreprtext)[-6000:]
        known = self._tests.get(name)
        if known is None or RANKS.index(known[0]) < RANKS.index(outcome):
            self._tests[name] = [outcome, message]

    def pytest_collectreport(self, report: Any) -> None:
        """Note a module that cannot be imported."""
        if report.failed:
            self._tests[stable(report.nodeid)] = ["failed", str(report.longreprtext)[-6000:]]

    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """Add what a worker has counted."""
        for name, count in getattr(node, "workeroutput", {}).get(COUNTS, {}).items():
            self.counts[name] = self.counts.get(name, 0) + count
        if error:
            self._tests[f"worker {node.gateway.id}"] = ["failed", str(error)]

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self._file.write_text(json.dumps({"counts": self.counts, "tests": self._tests}, indent=0))


def stable(nodeid: str) -> str:
    """Return a test's name without what SQLAlchemy's suite adds to a class: the database's driver and version."""
    return re.sub(r"_(?:sqlite|postgresql)\+[\w+]+?_\d+(?:_\d+)*", "", nodeid)


def pytest_configure(config: Any) -> None:
    """Collect, unless this is a worker of pytest-xdist: its reports reach the controller."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(os.environ[FILE])), "compat-outcomes")
