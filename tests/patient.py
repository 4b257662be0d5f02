"""The one place where reads of the cache are given time: what is not about time-outs must not depend on a busy machine.

`configure()` gives a read 50 ms where nobody says anything else. Tests, and programs that run as `python -m patient
program.py` or under `pytest -p patient`, give it `PATIENCE` there.
"""

from __future__ import annotations

import runpy
import sys

from sqlmodel_cache import SQLModelCache

PATIENCE = 30  # seconds

DEFAULTS = SQLModelCache.configure.__kwdefaults__
"""What `configure()` takes where nobody says anything else; a test changes `timeout` in it."""


def pytest_configure() -> None:
    """Be patient in the documents' tests."""
    DEFAULTS["timeout"] = PATIENCE


if __name__ == "__main__":
    DEFAULTS["timeout"] = PATIENCE
    runpy.run_path(sys.argv[1], run_name="__main__")
