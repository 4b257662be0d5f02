"""Names in keys: which database an engine talks to, so that two databases never share a key, and whose row it is.

A database's name comes from itself where it can: the cluster's identity on PostgreSQL, the file on SQLite. The question
goes through the DBAPI, not through SQLAlchemy, so that no event of the application fires; it is asked once per pool.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import platform
import threading
import uuid
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool, SingletonThreadPool

from . import _keys, _sqlalchemy
from ._effects import Entry, Keys
from ._writeset import TableRef, WriteSet
from .config import Settings
from .errors import ConfigurationError, InvalidationError

log = logging.getLogger("sqlmodel_cache")


@dataclass(frozen=True, slots=True)
class Database:
    """One database, as a name of 11 letters, digits, "-" and "_" for 64 bits."""

    name: str


class _PerThread(threading.local):
    """The private database that each thread of a `SingletonThreadPool` has in memory."""

    def __init__(self) -> None:
        self.database = _private()


class Databases:
    """What is known of the databases behind the pools of this process."""

    def __init__(self) -> None:
        # A pool's entry is only ever added, and two threads that race add equal ones (or one of two private ones,
        # before anything was cached under either).
        self._known: weakref.WeakKeyDictionary[Pool, Database | _PerThread] = weakref.WeakKeyDictionary()
        self._met: weakref.WeakSet[Pool] = weakref.WeakSet()
        self._pid = os.getpid()

    def known(self, engine: Engine) -> Database | None:
        """Return the database behind the engine if it has been asked; sends nothing."""
        if self._pid != os.getpid():  # in-memory databases part ways at a fork
            self._known = weakref.WeakKeyDictionary()
            self._pid = os.getpid()
        found = self._known.get(engine.pool)
        return found.database if isinstance(found, _PerThread) else found

    def is_one(self, engine: Engine) -> bool:
        """Return whether the engine's database has been asked, and is the same for every thread."""
        return isinstance(self._known.get(engine.pool), Database)

    def meet(self, bind: Engine | Connection) -> None:
        """Connect an engine that was never used: until then its dialect knows nothing of its server.

        A column type may ask it, and SQLAlchemy keeps for good what the type has answered.
        """
        if bind.engine.pool not in self._met:
            if isinstance(bind, Engine):
                bind.raw_connection().close()
            self._met.add(bind.engine.pool)

    def names(self) -> list[str]:
        """Return the names of all databases that have been asked."""
        found = list(self._known.values())
        return sorted({(each.database if isinstance(each, _PerThread) else each).name for each in found})

    def ask(self, bind: Engine | Connection) -> Database:
        """Return the database behind a bind, asking it on its own connection, or on a pooled one of an engine.

        Raises what the driver raises when the database cannot be reached.
        """
        engine = bind.engine
        found = self.known(engine)
        if found is not None:
            return found
        if isinstance(bind, Connection):
            answer = _ask(engine, bind.connection)
        else:
            raw = bind.raw_connection()
            try:
                answer = _ask(engine, raw)
            finally:
                raw.rollback()  # a pool may be told not to
                raw.close()
        self._known[engine.pool] = answer
        return answer.database if isinstance(answer, _PerThread) else answer


def _ask(engine: Engine, raw: Any) -> Database | _PerThread:
    if engine.dialect.name == "postgresql":
        return _postgresql(engine, raw)
    if engine.dialect.name == "sqlite":
        return _sqlite(engine, raw)
    return _by_url(engine)


def _postgresql(engine: Engine, raw: Any) -> Database:
    cursor = raw.cursor()
    try:
        cursor.execute(
            "SELECT coalesce(has_function_privilege(to_regprocedure("
            "'pg_catalog.pg_control_system()')::oid, 'EXECUTE'), false), "
            "(SELECT oid::text FROM pg_catalog.pg_database WHERE datname = current_database()), "
            "current_database()::text, inet_server_addr()::text, inet_server_port()::text"
        )
        allowed, oid, name, address, port = cursor.fetchone()
        if not allowed:
            url = engine.url
            where = f"{url.host}\0{url.port or 5432}" if url.host else f"{address}\0{port}"
            return Database(_digest(f"postgresql\0{where}\0{oid}\0{name}"))
        cursor.execute("SELECT system_identifier::text FROM pg_catalog.pg_control_system()")
        return Database(_digest(f"postgresql\0{cursor.fetchone()[0]}\0{oid}"))
    finally:
        cursor.close()


def _sqlite(engine: Engine, raw: Any) -> Database | _PerThread:
    cursor = raw.cursor()
    try:
        cursor.execute("PRAGMA database_list")
        path = next((str(row[2] or "") for row in cursor.fetchall() if row[1] == "main"), "")
    finally:
        cursor.close()
    if path and not os.path.exists(path):  # SQLite's memdb: a name for whoever opens it in this process
        return Database(_digest(f"sqlite\0{_PROCESS}\0{os.getpid()}\0{path}"))
    if path:
        # The same path on another host, or in another container, is another file.
        return Database(_digest(f"sqlite\0{platform.node()}\0{os.path.realpath(path)}"))
    if "cache=shared" in str(engine.url):
        shared = f"{engine.url.database}\0{sorted(engine.url.query.items())}"
        return Database(_digest(f"sqlite\0{_PROCESS}\0{os.getpid()}\0{shared}"))
    return _PerThread() if isinstance(engine.pool, SingletonThreadPool) else _private()


def _by_url(engine: Engine) -> Database:
    url = engine.url
    if not url.host and not url.database:
        raise LookupError("the URL does not name the database: configure(namespace=...) can")
    return Database(_digest(f"{url.get_backend_name()}\0{url.host}\0{url.port}\0{url.database}"))


class Naming:
    """The keys of one configuration."""

    def __init__(self, settings: Settings) -> None:
        self.databases = Databases()
        self._prefix = _keys.escape(settings.key_prefix)
        self._configured = settings.namespace
        self._refuses = settings.on_unreachable == "refuse"
        self._secrets = settings.hash_secrets
        self._shows = settings.hash_keys is not True  # whether a key may have the primary key's own text
        self.hides = settings.hash_keys is True
        self.may_read = settings.hash_keys != "rollout"

    def namespace(self, session: Session | None, bind: Engine | Connection) -> str:
        """Return the configured namespace, or the database's name, which is asked if it is not yet known.

        Raises:
            LookupError: the configured callable gave no name, or raised. What the driver raises, passes.
        """
        if self._configured is None:
            known = self.databases.known(bind.engine)
            return (known or self.databases.ask(held_connection(session, bind))).name
        self.databases.meet(held_connection(session, bind))
        if not callable(self._configured):
            return _keys.escape(self._configured)
        try:
            name = self._configured(session)
        except Exception as error:  # whatever it is, it says that nobody knows whose rows these are
            raise LookupError(f"the namespace callable raised {type(error).__name__}") from error
        if not isinstance(name, str) or not name.strip():
            raise LookupError(f"the namespace callable gave no name, but a {type(name).__name__}")
        return _keys.escape(name)

    @property
    def asks_sessions(self) -> bool:
        """Whether the namespace depends on the session."""
        return callable(self._configured)

    def is_fixed(self, engine: Engine) -> bool:
        """Return whether every session on this engine has the same namespace, now that it has been asked."""
        if self._configured is None:
            return self.databases.is_one(engine)
        return isinstance(self._configured, str)

    def namespaces_of(self, sessions: Iterable[Session], connection: Connection) -> set[str]:
        """Return the namespaces in which a connection writes: of all sessions that use it, or its database's.

        A callable that gives none, or raises, leaves the write to the TTL of whoever has cached the row: it is logged.

        Raises:
            InvalidationError: the same, in `refuse` mode.
        """
        if not callable(self._configured):
            return {self.namespace(None, connection)}
        found = set()
        using: list[Session | None] = [*sessions]
        for session in using or [None]:
            try:
                found.add(self.namespace(session, connection))
            except LookupError as why:
                if self._refuses:
                    raise InvalidationError(
                        f'{why}, so nobody can be told of this commit, and on_unreachable="refuse": the transaction is '
                        "rolled back"
                    ) from why
                log.warning("a write is not invalidated, for want of a namespace: %s", why)
        return found

    def namespaces(self, bind: Engine | Connection | None) -> list[str]:
        """Return the bind's namespace, or without one all that this process knows.

        Raises:
            ConfigurationError: it knows none yet, or the callable gives none.
        """
        if bind is not None:
            try:
                return [self.namespace(None, bind)]
            except LookupError as why:
                raise ConfigurationError("bind", None, f"{why}; it was asked without a session") from why
        if isinstance(self._configured, str):
            return [_keys.escape(self._configured)]
        if self.asks_sessions:
            raise ConfigurationError("bind", None, "the namespace depends on the session: give bind=session")
        known = self.databases.names()
        if not known:
            raise ConfigurationError("bind", None, "this process has used no database yet: give the engine or session")
        return known

    def table_keys(self, ref: TableRef) -> tuple[str, ...]:
        """Return the keys of a table, by shard."""
        return _keys.table_keys(self._prefix, ref.namespace, ref.table)

    def hidden(self, ref: TableRef, pk: str) -> str:
        """Return what stands for a primary key in the keys that this process reads."""
        return _hidden(ref, pk, self._secrets[0])

    def entries(self, ref: TableRef, pk: str) -> list[Entry]:
        """Return the keys of a row, by each name under which a process of this cache may have stored it.

        1 R, which hashes: a fill   2 W, which does not: BEGIN, COMMIT, END of another key   3 R: a hit, the old row
        So who reads by a name must know that all who write fence it: `hash_keys="rollout"` reads by none, and keys
        are given to all before they are used.
        """
        names = [pk] if self._shows else []
        names += [_hidden(ref, pk, secret) for secret in self._secrets]
        return [_keys.entry(self._prefix, ref.namespace, ref.table, name) for name in names]

    def keys(self, writes: WriteSet) -> Keys:
        """Return the keys that a commit of these writes must fence."""
        tables = tuple(key for ref in sorted(writes.tables) for key in self.table_keys(ref))
        return Keys(self._row_keys(writes.rows), tables)

    def new_keys(self, writes: WriteSet) -> Keys:
        """Return the keys of the rows that these writes insert, which a commit must invalidate."""
        return Keys(self._row_keys(writes.inserted), ())

    def all_keys(self, writes: WriteSet) -> Keys:
        """Return both."""
        return self.keys(writes).including(self.new_keys(writes))

    def _row_keys(self, rows: dict[TableRef, set[str]]) -> tuple[str, ...]:
        return tuple(entry.row for ref, pks in rows.items() for pk in sorted(pks) for entry in self.entries(ref, pk))


def held_connection(session: Session | None, bind: Engine | Connection) -> Engine | Connection:
    """Return a connection to the bind's database that the session holds already, or the bind."""
    if session is not None and isinstance(bind, Engine):
        for connection in _sqlalchemy.connections(session):
            if connection.engine.pool is bind.pool:
                return connection
    return bind


def _hidden(ref: TableRef, pk: str, secret: bytes) -> str:
    return _keys.hidden(f"{ref.namespace}/{ref.table}:{pk}", secret)


_PROCESS = uuid.uuid4().hex


def _private() -> Database:
    return Database(_digest(uuid.uuid4().hex))


def _digest(text: str) -> str:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
