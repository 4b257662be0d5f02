"""Warm mode: a test's `get` finds its row in the cache, because another session has just loaded it.

Most tests get a row once, and would only ever fill the cache. So each plain get of a cached class is preceded by one in
a hidden session, on a connection of its own that no listener of the test's hears of. The hidden session sees what is
committed, and the test's own get is then a hit wherever the library says that it may be one.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, SingletonThreadPool, StaticPool

from sqlmodel_cache import CacheError, SQLModelCache
from sqlmodel_cache._sqlalchemy import merging

_hidden: ContextVar[bool] = ContextVar("compat_hidden", default=False)
_engines: dict[str, Engine] = {}


def install(counts: Counter[str]) -> None:
    """Put the hidden get in front of the library's."""
    cached_get: Any = Session.get

    def get(self: Session, entity: Any, ident: Any, **options: Any) -> Any:
        if not any(options.values()) and not _hidden.get():
            token = _hidden.set(True)
            before = SQLModelCache.stats()
            try:
                counts["warmed" if _warm(cached_get, self, entity, ident) else "not warmed"] += 1
            except (SQLAlchemyError, CacheError):  # the test's own get says so in its own words
                counts["warming failed"] += 1
            finally:
                _hidden.reset(token)
                after = SQLModelCache.stats()
                counts["hits"] -= after.hits - before.hits  # what is left are the test's own
                counts["misses"] -= after.misses - before.misses
        return cached_get(self, entity, ident, **options)

    Session.get = get  # type: ignore[method-assign]


def _warm(cached_get: Any, session: Session, class_: Any, ident: Any) -> bool:
    if merging.get():  # the library leaves the reads inside a merge() to the database
        return False
    cache = SQLModelCache._cache
    entity = None if cache is None else cache.entities.get(class_)
    named = None if entity is None else entity.identify(ident)
    if entity is None or named is None or named[0] in session.identity_map:
        return False
    bind = session.get_bind(mapper=entity.mapper)
    engine = _engine_beside(bind.engine)
    if engine is None:
        return False
    with Session(engine.execution_options(**bind.get_execution_options()), autoflush=False) as hidden:
        return cached_get(hidden, class_, ident) is not None


def _engine_beside(engine: Engine) -> Engine | None:
    """Return an engine on the same database, or None where a second connection would disturb the first."""
    if isinstance(engine.pool, StaticPool | SingletonThreadPool):  # there is but one connection, of each thread
        return None if _in_transaction(engine.pool) else engine
    url = engine.url.render_as_string(hide_password=False)
    if url not in _engines:
        arguments = {"timeout": 0.1} if engine.dialect.name == "sqlite" else {}
        _engines[url] = create_engine(engine.url, poolclass=NullPool, connect_args=arguments)
    return _engines[url]


def _in_transaction(pool: Any) -> bool:
    current = getattr(getattr(pool, "_conn", None), "current", None)  # a weak reference, of this thread
    record = pool.connection if isinstance(pool, StaticPool) else current and current()
    raw: Any = record and record.dbapi_connection
    return raw is None or bool(getattr(raw, "driver_connection", raw).in_transaction)
