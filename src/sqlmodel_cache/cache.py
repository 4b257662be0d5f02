"""The cache: one configuration's models, transports, policy and counters.

`Cache.reader` is where a hit happens, `Cache.writer` where a commit is fenced. The hooks that call them are in
`session.py`.
"""

from __future__ import annotations

from . import _keys
from ._driver import Driver
from ._entities import Entities
from ._inspecting import Inspector
from ._lazy import LazyLoads
from ._namespace import Naming
from ._near import LATE, Near
from ._queries import Queries
from ._reading import Reader
from ._sampler import Sampler
from ._sealing import Gate
from ._statements import Statements
from ._verifier import Verifier
from ._writing import Writer
from .config import NearCache, Settings
from .errors import ConfigurationError
from .metrics import Counters, Stats
from .transport import AsyncTransport, RedisAsyncTransport, RedisSyncTransport, SyncTransport
from .transport.tracking import Tracking


class Cache:
    """Everything between `configure()` and `reset()`, except the hooks."""

    def __init__(
        self, settings: Settings, sync_transport: SyncTransport | None, async_transport: AsyncTransport | None
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.entities = Entities(self.counters)
        self.statements = Statements(self.entities)
        self.near: Near | None = None
        self._tracking: Tracking | None = None
        if settings.near_cache is not None:
            self.near = near = Near(settings.near_cache.max_rows, settings.near_cache.max_age_ms / 1000)
            client = _client(settings.near_cache, sync_transport, async_transport)
            self._tracking = Tracking(client, _keys.prefix(settings.key_prefix), near, late=LATE)
            near.connect = self._tracking.start

        self.driver = Driver(
            sync_transport,
            async_transport,
            Gate(settings.max_payload_bytes, settings.encryption_keys),
            fence_ttl_ms=settings.fence_ttl_ms,
            longest_ttl_ms=lambda: max(settings.default_ttl_ms, self.entities.longest_ttl_ms()),
            prefix=_keys.escape(settings.key_prefix),
            near=self.near,
            replicas=settings.wait_replicas,
        )
        self.naming = naming = Naming(settings)
        self.reader = Reader(settings, self.driver, self.entities, naming)
        self.lazy_loads = LazyLoads(self.entities, self.reader)
        self.queries = Queries(self.reader)
        self.inspector = Inspector(self.driver, self.entities, naming)
        self.writer = Writer(settings, self.driver, self.entities, naming, self.counters)
        self.verifier = Verifier(self.reader, hides=naming.hides, default_ttl_ms=settings.default_ttl_ms)
        self.sampler: Sampler | None = None
        if settings.verify:
            self.sampler = Sampler(settings.verify, self.verifier, self.writer.forget, hides=naming.hides)
            self.reader.sampler = self.sampler

    def stats(self) -> Stats:
        """Return what has been counted, and how things are."""
        driver = self.driver
        return self.counters.stats(
            owed=len(driver.debts.owed), outages=driver.breaker.opened, unreachable=driver.breaker.is_open
        )

    def close(self) -> None:
        """Release what the library opened: listeners, and the connections of the near cache and the transports."""
        if self.sampler is not None:
            self.sampler.close()
        self.reader.close()
        if self._tracking is not None:
            self._tracking.stop()
        self.driver.close()


def _client(near_cache: NearCache, *transports: SyncTransport | AsyncTransport | None) -> object:
    """Return the client whose server tells the near cache what is written."""
    for transport in transports:
        if isinstance(transport, RedisSyncTransport | RedisAsyncTransport):
            return transport.client
    given = ", ".join(type(transport).__name__ for transport in transports if transport is not None)
    raise ConfigurationError(
        "near_cache",
        near_cache,
        f"it stands in front of Redis, and hears from Redis what is written; {given} has none. Leave near_cache out "
        "(a MemoryTransport's rows are in this process already), or give a RedisSyncTransport or a RedisAsyncTransport",
    )
