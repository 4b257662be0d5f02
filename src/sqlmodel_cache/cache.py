"""The cache: one configuration's models, transports, policy and counters.

`Cache.reader` is where a hit happens, `Cache.writer` where a commit is fenced. The hooks that call them are in
`session.py`.
"""

from __future__ import annotations

from . import _keys
from ._driver import Driver
from ._entities import Entities
from ._lazy import LazyLoads
from ._namespace import Naming
from ._queries import Queries
from ._reading import Reader
from ._statements import Statements
from ._writing import Writer
from .config import Settings
from .metrics import Counters, Stats
from .transport import AsyncTransport, SyncTransport


class Cache:
    """Everything between `configure()` and `reset()`, except the hooks."""

    def __init__(
        self, settings: Settings, sync_transport: SyncTransport | None, async_transport: AsyncTransport | None
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.entities = Entities()
        self.statements = Statements(self.entities)
        self.driver = Driver(
            sync_transport,
            async_transport,
            fence_ttl_ms=settings.fence_ttl_ms,
            longest_ttl_ms=lambda: max(settings.default_ttl_ms, self.entities.longest_ttl_ms()),
            prefix=_keys.escape(settings.key_prefix),
        )
        self.naming = naming = Naming(settings)
        self.reader = Reader(settings, self.driver, self.entities, naming, self.counters)
        self.lazy_loads = LazyLoads(self.entities, self.reader)
        self.queries = Queries(self.reader)
        self.writer = Writer(settings, self.driver, naming, self.counters)

    def stats(self) -> Stats:
        """Return what has been counted, and how things are."""
        driver = self.driver
        return self.counters.snapshot(
            owed=len(driver.debts.owed), outages=driver.breaker.opened, unreachable=driver.breaker.is_open
        )

    def close(self) -> None:
        """Release what the library opened: listeners, and the transports' own connections."""
        self.reader.close()
        self.driver.close()
