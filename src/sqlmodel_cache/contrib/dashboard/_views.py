"""What the dashboard shows, for JSON: read from the cache, never written to it. And the one thing that it may do."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ... import _keys, _sqlalchemy
from ..._entities import Entities
from ...configure import SQLModelCache, current
from ...errors import CacheError, ConfigurationError
from ...metrics import ModelStats, Stats
from ...transport import MemoryTransport, RedisAsyncTransport, RedisSyncTransport
from ._history import History

MAX_MODELS = 200
SHOWN = 10  # keys of each kind
SAMPLED = 500  # keys of one sample
KEYS_EVERY = 5.0  # seconds for which a sample serves everybody who looks

Json = dict[str, Any]


def overview(history: History, known: tuple[str, int], *, actions: bool) -> Json:
    """Return what changes all the time: counters, invalidations, and the points that are not known to the page yet."""
    cache, stats = current(), SQLModelCache.stats()
    process = f"{os.getpid()} on {socket.gethostname()}"
    since = known[1] if known[0] == process else 0
    view: Json = {
        "process": process,
        "now": time.time(),
        "actions": actions,
        "configured": cache is not None,
        "stats": _counts(stats),
        "points": history.since(since),
        "on": "no cache",
        "models": [],
        "invalidations": [],
        "in_flight": [],
        "owed": [],
    }
    if cache is not None:
        longest = cache.settings.fence_ttl_ms / 1000
        view["on"] = _on(cache.driver.sync_transport or cache.driver.async_transport)
        classes = cached(cache.entities)
        counted = {**dict.fromkeys(classes, ModelStats()), **stats.models}
        busiest = sorted(counted, key=lambda name: (-counted[name].hits - counted[name].misses, name))
        view["models"] = [
            {**_model(name, counted[name]), "parts": _parts(cache.entities, classes.get(name))}
            for name in busiest[:MAX_MODELS]
        ]
        view["invalidations"] = [
            {"number": note.number, "at": note.at, "why": note.why, "rows": note.rows, "touched": note.touched()}
            for note in cache.writer.journal.notes()
        ]
        view["in_flight"] = [
            {
                "seconds": round(seconds, 3),
                "keys": [*keys.rows, *keys.tables][:SHOWN],
                "count": len(keys.rows + keys.tables),
            }
            for seconds, keys in cache.writer.journal.in_flight(longest)
        ]
        some = cache.driver.debts.some(SHOWN)
        view["owed"] = [*some.rows, *some.tables]
    return view


def _model(name: str, counted: ModelStats) -> Json:
    milliseconds = {
        f"{kind}_{label}": round(getattr(counted, f"{kind}_seconds").quantile(q) * 1000, 4)
        for kind in ("hit", "miss")
        for label, q in (("median", 0.5), ("p99", 0.99))
    }
    reasons = {
        kind: {reason: count for reason, count in getattr(counted, f"{kind}_reasons").items() if count}
        for kind in ("miss", "bypass", "refused")
    }
    return {"name": name, **_counts(counted), **milliseconds, "reasons": reasons}


def _parts(entities: Entities, class_: type | None) -> int:
    """Return how many parts a model's primary key has; 0 where it is not cached any more."""
    return 0 if class_ is None else len(entities.named(class_)[0].pk_types)


def _counts(counted: Stats | ModelStats) -> Json:
    values = {field.name: getattr(counted, field.name) for field in fields(counted)}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def cached(entities: Entities) -> dict[str, type]:
    """Return the cached classes by their names in `stats().models`."""
    found = {}
    for mapper in list(_sqlalchemy.mappers()):
        class_ = mapper.class_
        try:
            if entities.get(class_) is not None:
                found[f"{class_.__module__}:{class_.__qualname__}"] = class_
        except CacheError:  # said where the class is used
            continue
    return found


def _on(transport: object) -> str:
    """Return what the cache is kept in."""
    if isinstance(transport, RedisSyncTransport | RedisAsyncTransport):
        return "Redis Cluster" if transport.is_cluster else "Redis"
    return "memory of this process" if isinstance(transport, MemoryTransport) else type(transport).__name__


class Keys:
    """Samples of what the cache holds: one at a time, and one for all who look within a few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below, and is held while a sample is taken
        self._view: Json = {}
        self._taken = -KEYS_EVERY  # seconds of time.monotonic()

    async def view(self) -> Json:
        """Return the largest and the hottest of some keys, or why there are none."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> Json:
        # Whoever looks while a server is slow has the last sample: else each would keep a thread of the application's.
        if not self._lock.acquire(blocking=not self._view):
            return self._view
        try:
            if time.monotonic() - self._taken >= KEYS_EVERY:
                self._view = _sampled()
                self._taken = time.monotonic()
            return self._view
        finally:
            self._lock.release()


def _sampled() -> Json:
    cache = current()
    if cache is None:
        return {"error": "nothing is configured"}
    transport = cache.driver.sync_transport
    try:
        if isinstance(transport, MemoryTransport):
            found = transport.sample(SAMPLED)
        elif not isinstance(transport, RedisSyncTransport):
            return {"error": "this transport does not tell its keys"}
        elif cache.driver.breaker.is_open:
            return {"error": "the cache does not answer, and is not asked until it does"}
        else:
            found = transport.sample(_keys.prefix(cache.settings.key_prefix), SAMPLED)
    except CacheError as error:
        return {"error": str(error)}
    rows = [each for each in found.held if not each.key.endswith("}")]  # the others are the tables' own
    return {
        "count": len(rows),
        "complete": found.complete,
        "heat": found.heat,
        "largest": sorted(rows, key=lambda each: -each.bytes)[:SHOWN],
        "hottest": sorted(rows, key=lambda each: -each.heat)[:SHOWN],
    }


async def invalidate(wanted: Any) -> str:
    """Invalidate a row or a table as a page asks for it, `{"model": "app.models:Hero", "pk": ["1"]}`; say what was.

    Raises:
        CacheError: it could not be; nothing was.
    """
    cache = current()
    if cache is None:
        raise ConfigurationError("dashboard", None, "call SQLModelCache.configure() first")
    if not isinstance(wanted, Mapping):
        raise ConfigurationError("request", type(wanted).__name__, 'send {"model": ..., "pk": [...] or null}')
    name, texts = wanted.get("model"), wanted.get("pk")
    class_ = cached(cache.entities).get(name) if isinstance(name, str) else None
    if class_ is None:
        raise ConfigurationError("model", name, "give the name of a cached model")
    pk = None if texts is None else _pk(cache.entities, class_, texts)
    if cache.driver.sync_transport is None:
        await SQLModelCache.ainvalidate(class_, pk)
    else:  # in a thread, so that the event loop does not wait for the cache
        await asyncio.to_thread(SQLModelCache.invalidate, class_, pk)
    done = f"{name}, all rows" if texts is None else f"{name} {', '.join(texts)}"
    return f"{done}, but the cache has not been told yet" if cache.driver.debts.any else done


def _pk(entities: Entities, class_: type, texts: Any) -> tuple[object, ...]:
    """Return a primary key from the texts of its parts."""
    table, _ = entities.named(class_)
    kinds = table.pk_types
    if not isinstance(texts, list) or len(texts) != len(kinds) or not all(isinstance(text, str) for text in texts):
        raise ConfigurationError("pk", texts, f"give {len(kinds)} texts: {', '.join(table.pk_columns)}")
    try:
        return tuple(_PARSERS[kind](text) for kind, text in zip(kinds, texts, strict=True))
    except ValueError as why:
        raise ConfigurationError("pk", texts, str(why)) from None


_PARSERS: Mapping[type, Any] = {int: int, str: str, uuid.UUID: uuid.UUID, datetime.date: datetime.date.fromisoformat}
