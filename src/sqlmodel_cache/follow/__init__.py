"""Follows a database: whoever changes a row of a cached model, it is invalidated.

Needs psycopg for PostgreSQL, mysql-replication and PyMySQL for MySQL and MariaDB.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, TypedDict, Unpack

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from .. import _keys
from ..cache import Cache
from ..errors import ConfigurationError
from ._changes import Stale
from ._follower import Follower, FollowStats, Report
from ._source import Problem, Source, Wake

__all__ = ["FollowStats", "Follower", "FollowerOptions", "Problem", "Report", "follower"]


class FollowerOptions(TypedDict, total=False):
    """What a follower may be told.

    Attributes:
        name: of the publication and the slot, of a row in the follower's table, or of the outbox's lock; followers of
            one name elect one. Caches that do not share a Redis and a key prefix need a name each. By default it
            contains the database's name.
        namespaces: all that there are, where `configure(namespace=...)` is a callable.
        outbox: read what triggers have written into a table, not the database's log. PostgreSQL, or an SQLite file.
        max_slot_bytes: when the database keeps more for the follower, the slot is dropped and made anew, and
            everything is invalidated. None: no bound but the server's own `max_slot_wal_keep_size`.
        alarm_bytes: when it keeps more than that, a warning is logged; by default 1 GiB.
        report: is given the follower's `FollowStats` about once a second, in its thread.
    """

    name: str | None
    namespaces: Iterable[str] | None
    outbox: bool
    max_slot_bytes: int | None
    alarm_bytes: int
    report: Report | None


_MYSQL = ("mysql", "mariadb")  # which are one server to different names in a URL


def follower(cache: Cache, database: Any, **options: Unpack[FollowerOptions]) -> Follower:
    """Return a follower of a database for a cache; asks the database for its name.

    Raises:
        ConfigurationError: an argument is wrong, or the namespaces cannot be told.
        SQLAlchemyError: the database cannot be reached.
    """
    url = _url_of(database)
    stale = Stale(cache.entities, _namespaces(cache, url, options.get("namespaces")))
    wake = Wake()
    return Follower(
        _source(url, stale, wake, options),
        cache.driver,
        cache.naming,
        wake,
        namespaces=stale.namespaces,
        alarm_bytes=options.get("alarm_bytes", 1 << 30),
        report=options.get("report"),
    )


def _source(url: URL, stale: Stale, wake: Wake, options: FollowerOptions) -> Source:
    if not options.get("outbox"):
        if url.get_backend_name() in _MYSQL:
            from ._binlog import Binlog

            _, settings = url.get_dialect()().create_connect_args(url)
            return Binlog(settings, _name(url, options), stale, wake)
        if url.get_backend_name() != "postgresql":
            raise ConfigurationError("outbox", False, "this database has no log that can be followed: outbox=True")
        from ._stream import Stream

        return Stream(_conninfo(url), _name(url, options), stale, wake, max_slot_bytes=options.get("max_slot_bytes"))
    if url.get_backend_name() in _MYSQL:
        raise ConfigurationError("outbox", True, "MySQL and MariaDB are followed by their binary log: outbox=False")
    from ._outbox import Outbox

    if url.get_backend_name() == "sqlite":
        from ._outbox_sqlite import SqliteOutbox

        return Outbox(functools.partial(SqliteOutbox, str(url.database)), _name(url, options), stale, wake)
    from ._outbox_postgresql import PostgresOutbox

    return Outbox(functools.partial(PostgresOutbox, _conninfo(url)), _name(url, options), stale, wake)


def _conninfo(url: URL) -> str:
    """Return what libpq calls a connect string."""
    from psycopg.conninfo import make_conninfo

    _, settings = url.get_dialect()().create_connect_args(url)
    return make_conninfo(**settings)


def _url_of(database: Any) -> URL:
    """Return the URL of a database for the driver that the follower uses."""
    engine = getattr(database, "sync_engine", database)
    url = engine.url if isinstance(engine, Engine) else make_url(engine)
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend in _MYSQL and url.database:
        return url.set(drivername=f"{backend}+pymysql")
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.set(drivername="sqlite")
    raise ConfigurationError(
        "database",
        url.render_as_string(),
        "give an engine or URL of a database on PostgreSQL, MySQL or MariaDB, or of an SQLite file with outbox=True",
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


def _name(url: URL, options: FollowerOptions) -> str:
    return options.get("name") or "sqlmodel_cache_" + re.sub(r"[^a-z0-9]", "_", (url.database or "").lower())[:48]
