"""A cache for one test: what the pytest fixture `sqlmodel_cache` gives, and any other test framework may use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .configure import SQLModelCache
from .errors import ConfigurationError
from .metrics import Stats
from .transport.faults import FaultyTransport, Operation
from .transport.memory import MemoryTransport
from .transport.redis import RedisAsyncTransport, RedisSyncTransport

__all__ = ["CacheFixture", "fresh_cache"]

SHOWN = 40  # operations in a failure's message

_NOW = ("owed", "outages")  # not counted, but the case


class CacheFixture:
    """A test's cache.

    Attributes:
        memory: the transport in which its rows are.
        faults: what stands in front of it, and injects misses, errors and delays.
    """

    def __init__(self) -> None:
        self.memory = MemoryTransport()
        self.faults = FaultyTransport(self.memory)

    @property
    def stats(self) -> Stats:
        """What has been counted since the test began, or since it configured the library itself."""
        return SQLModelCache.stats()

    def clear(self) -> None:
        """Forget every row."""
        self.memory.clear()

    @contextmanager
    def expect(self, **counts: int) -> Iterator[None]:
        """Check what a `with` block counts: `with cache.expect(hits=1, misses=0):`.

        Args:
            counts: fields of `Stats`, and by how much each shall rise. Those that are not named may rise by anything.

        Raises:
            AssertionError: something else was counted; it says what, and what the cache was asked.
            ConfigurationError: there is no such counter, or the number is none.
        """
        __tracebackhide__ = True
        for name, count in counts.items():
            if name not in _COUNTERS:
                raise ConfigurationError(f"expect({name})", count, f"give some of {', '.join(_COUNTERS)}")
            if type(count) is not int or count < 0:
                raise ConfigurationError(f"expect({name})", count, "give how often, as an int")
        if not counts:
            raise ConfigurationError("expect()", counts, "name a counter: expect(hits=1)")
        config, before = SQLModelCache.get_config(), _counted()
        asked = len(self.faults.operations)
        yield
        if SQLModelCache.get_config() is not config:  # an application that starts has configured, and counts from zero
            before = dict.fromkeys(before, 0)
        found = {name: count - before[name] for name, count in _counted().items()}
        if any(found[name] != count for name, count in counts.items()):
            raise AssertionError(_message(counts, found, self.faults.operations[asked:]))


@contextmanager
def fresh_cache() -> Iterator[CacheFixture]:
    """Return a cache of its own for a `with` block; afterwards the library is configured as before, or not at all.

    It has the settings with which the library was configured, but a `MemoryTransport`. And where `configure()` is
    called within the block - by an application that starts - with a Redis transport, a Redis URL or none, it takes
    this one instead: a test with this fixture reaches no Redis.
    """
    cache = CacheFixture()
    settings = SQLModelCache.get_config()
    declared = vars(SQLModelCache)["configure"]
    configure = SQLModelCache.configure

    @functools.wraps(configure)
    def configure_here(transport: Any = None, **arguments: Any) -> None:
        if transport is None or isinstance(transport, str | RedisSyncTransport | RedisAsyncTransport):
            arguments.update(async_transport=None, near_cache=None, wait_replicas=0)
            transport = cache.faults
        configure(transport, **arguments)

    before = {} if settings is None else _arguments(settings)
    setattr(SQLModelCache, "configure", staticmethod(configure_here))  # noqa: B010  a checker would object
    try:
        SQLModelCache.configure(**{**before, "transport": None})
        yield cache
    finally:
        setattr(SQLModelCache, "configure", declared)  # noqa: B010
        cache.faults.heal()
        SQLModelCache.reset()  # what the test has left owed is nobody's
        if settings is not None:
            SQLModelCache.configure(**before)


def _arguments(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _counted() -> dict[str, int]:
    stats = SQLModelCache.stats()
    return {name: getattr(stats, name) for name in _COUNTERS}


def _counters() -> tuple[str, ...]:
    zero = Stats()
    names = [field.name for field in dataclasses.fields(Stats)]
    return tuple(name for name in names if type(getattr(zero, name)) is int and name not in _NOW)


_COUNTERS = _counters()


def _message(wanted: dict[str, int], found: dict[str, int], operations: list[Operation]) -> str:
    lines = [
        f"expected {_listed(wanted)}",
        f"counted  {_listed({name: found[name] for name in wanted})}",
        f"in all   {_listed({name: count for name, count in found.items() if count}) or 'nothing'}",
    ]
    if operations:
        lines.append("the cache was asked:")
        lines += [f"  {each.name:<6}  {_names(each.keys)}: {each.outcome}" for each in operations[:SHOWN]]
        more = len(operations) - SHOWN
        lines += [f"  and {more} more"] if more > 0 else []
    elif not found["bypasses"]:
        lines += [
            "the cache was asked nothing. A session answers a second get of a row by itself: open one for each read,",
            "as an application does for each request. SQLModelCache.explain(Model) says whether a model is cached.",
        ]
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}={count}" for name, count in counts.items())


def _names(keys: tuple[str, ...]) -> str:
    """Return rows and tables as a reader knows them: a key without its prefix, namespace and shard."""
    names = []
    for key in keys:
        place, _, pk = key.partition("}")
        table = place.rpartition("/")[2].rpartition(":")[0]
        names.append(f"{table} {pk.removeprefix(':')}".rstrip())
    return ", ".join(dict.fromkeys(names))
