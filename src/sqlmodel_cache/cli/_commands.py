"""All commands: a module registers its own when it is imported. The order is that of `--help`."""

from __future__ import annotations

# isort: off
from . import _doctor, _stats, _top, _inspect, _invalidate, _warm, _verify, _follow  # noqa: F401
from ._app import app

__all__ = ["app"]
