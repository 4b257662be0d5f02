"""Follows a database: whoever changes a row of a cached model, it is invalidated. Needs psycopg for PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from .. import _keys
from ..cache import Cache
from ..errors import ConfigurationError
from ._changes import Stale
from ._follower import Follower, FollowStats, Report
from ._source import Problem, Source, Wake

__all__ = ["FollowStats", "Follower", "Problem", "Report", "follower"]


def follower(
    cache: Cache,
    database: Any,
    *,
    name: str | None = None,
    namespaces: Iterable[str] | None = None,
    outbox: bool = False,
    max_slot_bytes: int | None = None,
    alarm_bytes: int = 1 << 30,
    report: Report | None = None,
) -> Follower:
    """Return a follower of a database for a cache. Arguments as in `SQLModelCache.follow`; asks the database's name.

    Raises:
        ConfigurationError: an argument is wrong, or the namespaces cannot be told.
        SQLAlchemyError: the database cannot be reached.
    """
    url = _url_of(database)
    stale = Stale(cache.entities, _namespaces(cache, url, namespaces))
    wake = Wake()
    source = _source(url, name or _default_name(url), stale, wake, outbox=outbox, max_slot_bytes=max_slot_bytes)
    return Follower(source, cache.driver, cache.naming, wake, alarm_bytes=alarm_bytes, report=report)


def _source(url: URL, name: str, stale: Stale, wake: Wake, *, outbox: bool, max_slot_bytes: int | None) -> Source:
    from psycopg.conninfo import make_conninfo

    from ._stream import Stream

    _, settings = url.get_dialect()().create_connect_args(url)
    return Stream(make_conninfo(**settings), name, stale, wake, max_slot_bytes=max_slot_bytes)


def _url_of(database: Any) -> URL:
    """Return the URL of a database for the driver that the follower uses."""
    engine = getattr(database, "sync_engine", database)
    url = engine.url if isinstance(engine, Engine) else make_url(engine)
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.set(drivername="sqlite")
    raise ConfigurationError(
        "database", url.render_as_string(), "give an engine or URL of PostgreSQL, or of an SQLite file with outbox=True"
    )


def _namespaces(cache: Cache, url: URL, given: Iterable[str] | None) -> list[str]:
    if given is not None:
        return [_keys.escape(namespace) for namespace in given]
    if cache.naming.asks_sessions:
        raise ConfigurationError("namespaces", None, "the namespace depends on the session: name all that there are")
    engine = create_engine(url, poolclass=NullPool)
    try:
        return cache.naming.namespaces(engine)
    finally:
        engine.dispose()


def _default_name(url: URL) -> str:
    return "sqlmodel_cache_" + re.sub(r"[^a-z0-9]", "_", (url.database or "").lower())[:48]
