"""A pytest plugin that switches the library on, with every mapped class cached, and counts what the cache did.

SQLAlchemy's suite removes all event listeners of the ORM after some tests, the library's among them. So the plugin puts
them back before the next test.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import Any

import pytest

from compat.outcomes import COUNTS

TRANSPORT = "COMPAT_TRANSPORT"  # the environment variable: "memory", or a Redis URL
WARM = "COMPAT_WARM"  # the environment variable: "1" loads each row into the cache before the test's own get


class EveryClassCached:
    """Keeps the library configured during a run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_sessionstart(self) -> None:
        """Configure before the suite's modules are imported."""
        from sqlalchemy import event
        from sqlalchemy.orm import Mapper

        from sqlmodel_cache import SQLModelCache

        event.listen(Mapper, "instrument_class", _declare)
        transport = os.environ[TRANSPORT]
        SQLModelCache.configure(None if transport == "memory" else transport)
        if os.environ.get(WARM):
            from compat import warm

            warm.install(self.counts)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> None:
        """Listen again where a test has removed listeners."""
        from sqlalchemy import event
        from sqlalchemy.orm import Mapper

        from sqlmodel_cache import SQLModelCache

        hooks = SQLModelCache._hooks
        assert hooks is not None
        for target, name, listener in (*hooks._listeners, (Mapper, "instrument_class", _declare)):
            if not event.contains(target, name, listener):
                self.counts["listeners put back"] += 1
                event.listen(target, name, listener)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: Any) -> None:
        """Report to the controller of pytest-xdist, or to `compat.outcomes` in this process."""
        from sqlmodel_cache import SQLModelCache

        stats = SQLModelCache.stats()
        numbers = {field.name: getattr(stats, field.name) for field in dataclasses.fields(stats)}
        self.counts.update({name: number for name, number in numbers.items() if isinstance(number, int)})
        outcomes = session.config.pluginmanager.get_plugin("compat-outcomes")
        if outcomes is not None:
            outcomes.counts.update(self.counts)
        else:
            session.config.workeroutput[COUNTS] = dict(self.counts)


def _declare(mapper: Any, class_: type) -> None:
    """Declare a class cached while it is being mapped, unless it inherits the declaration."""
    from sqlmodel_cache import CacheConfig

    if getattr(class_, "__cache_config__", None) is None:
        type.__setattr__(class_, "__cache_config__", CacheConfig())  # a declarative class would look for columns in it


def pytest_configure(config: Any) -> None:
    """Switch the library on, where tests run: not in a controller of pytest-xdist."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(EveryClassCached(), "compat-cached")
