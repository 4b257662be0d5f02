"""Which reads may use the cache, and what of them may be stored: the session's side of the protocol, I6 and I7.

A `Lane` is what is decided for a session and a class before any row is named. Nearly all gets are of a session that
has done nothing yet: for those a lane is found once, and then only compared with.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

from . import _keys, _sqlalchemy
from ._driver import Driver
from ._effects import Entry, Lookup
from ._namespace import Naming, held_connection
from ._shapes import Entity, Rows
from ._writeset import (
    Server,
    TableRef,
    Transaction,
    known_transaction_of,
    shared_transaction,
    shares_transactions,
    transaction_of,
)
from .config import Settings, milliseconds
from .errors import ConfigurationError
from .metrics import BypassReason

STATEMENT_SNAPSHOTS = frozenset({"READ COMMITTED", "AUTOCOMMIT"})  # each SELECT sees what is committed by then

# Options of one call that do not change what is loaded. Any other sends the call to the database.
_HARMLESS = frozenset({"cache", "cache_ttl", "schema_translate_map"})

# What `Session.get` takes; it says in its own words what it does not.
_ARGUMENTS = frozenset(
    {"options", "populate_existing", "with_for_update", "identity_token", "execution_options", "bind_arguments"}
)

# What an AsyncSession gives when nothing was asked of it, and `get_one`, on SQLAlchemy 2.0 and on 2.1.
_ASYNC: dict[str, Any] = {
    "options": None,
    "populate_existing": False,
    "with_for_update": None,
    "identity_token": None,
    "execution_options": {},
}
_GET_ONE: dict[str, Any] = {**_ASYNC, "bind_arguments": None}
_UNASKED = tuple({**each, "populate_existing": said} for each in (_ASYNC, _GET_ONE) for said in (False, None))

_NOTHING: Mapping[str, Any] = MappingProxyType({})

_USUAL = "usual lane"  # in the memo of an entity

MAX_LOOKUPS = 1_000  # that a lane keeps, at about 400 bytes each

ALWAYS = math.inf  # a snapshot that begins with the SELECT
NEVER = -math.inf  # a snapshot of unknown age, or none


@dataclass(slots=True, eq=False)
class Lane:
    """What is decided for all rows of a class that a session asks for now.

    Attributes:
        shards: the keys of the table, by shard.
        ttl_ms: of what is stored, before jitter.
        snapshot: seconds of time.monotonic() when the transaction's snapshot began, or ALWAYS, or NEVER.
        trusted: a transaction has begun, and is believed to take a snapshot for each statement.
        transactions: those whose own writes a SELECT of the session may see.
        idle: the session had nothing to flush.
        awaits: the engine is an asyncio one.
        hidden: makes what stands for a primary key in keys, where they do not show it.
    """

    entity: Entity
    ref: TableRef
    rows: Rows
    shards: tuple[str, ...]
    ttl_ms: int
    snapshot: float
    trusted: bool
    transactions: tuple[Transaction, ...]
    idle: bool = False
    awaits: bool = False
    hidden: Callable[[str], str] | None = None
    _lookups: dict[str, Lookup] = field(default_factory=dict)  # by primary key: hot rows are asked for again and again

    def lookup(self, pk: str) -> Lookup:
        """Return the look-up of a row."""
        found = self._lookups.get(pk)
        if found is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                self._lookups.clear()
            found = self._lookups[pk] = Lookup(self.entry(pk), self.rows.fingerprint, self.entity.near)
        return found

    def entry(self, pk: str) -> Entry:
        """Return the keys of a row."""
        if self.hidden is not None:
            pk = self.hidden(pk)
        table = self.shards[_keys.shard_of(pk)]
        return Entry(f"{table}:{pk}", table)

    def hides(self, pk: str) -> bool:
        """Return whether the session may see a row differently from everybody else (I6)."""
        return any(transaction.covers(self.ref, pk) for transaction in self.transactions)


@dataclass(slots=True, eq=False)
class _Usual:
    """The lane of a class for sessions that have done nothing yet, and what it was found for."""

    lane: Lane
    session_class: type[Session]
    pool: weakref.ref[Pool]
    dialect: Dialect  # engines may share a pool, and differ in it: in its isolation level
    options: Any  # of the engine
    shares: bool  # sessions on this pool may share a transaction
    pid: int  # in-memory databases part ways at a fork

    def fits(self, session: Session, entity: Entity) -> bool:
        """Return whether the lane would be found again for a session: what most sessions are is all that it asks."""
        if type(session) is not self.session_class or not _sqlalchemy.is_unused(session):
            return False
        try:
            bind = session.get_bind(entity.mapper)
        except Exception:  # no bind: whoever looks closer says what that means
            return False
        if bind.get_execution_options() is not self.options or not isinstance(bind, Engine):
            return False
        pool = bind.pool
        if pool is not self.pool() or bind.dialect is not self.dialect or self.pid != os.getpid():
            return False
        if self.shares:
            shared = shared_transaction(pool)
            return shared is None or not shared.hides
        return True


class Admission:
    """Decides what may be asked of the cache, and what may be told to it."""

    def __init__(self, settings: Settings, driver: Driver, naming: Naming) -> None:
        self._snapshots_by_default = settings.snapshot_reads == "database"
        self._default_ttl_ms = settings.default_ttl_ms
        self._driver = driver
        self._naming = naming

    # what may be asked

    def lane(self, session: Session, entity: Entity, options: Mapping[str, Any]) -> Lane | BypassReason:
        """Return the lane for reads that may use the cache, or why they must go to the database.

        The session is flushed, and begun, as a SELECT would do it; no connection is opened.
        """
        lane = None
        if not options or options in _UNASKED:
            lane = self.usual_lane(session, entity)
        if lane is None or (lane.awaits and not _sqlalchemy.in_greenlet()):
            return self._find(session, entity, options)
        _sqlalchemy.autobegin(session)
        return lane

    def usual_lane(self, session: Session, entity: Entity) -> Lane | None:
        """Return the lane for a session that has done nothing yet, or None where one must look closer.

        The session has nothing to flush, and is still to be begun.
        """
        usual: _Usual | None = entity.memo.get(_USUAL)
        if usual is None or self._driver.debts.any or not usual.fits(session, entity) or _sqlalchemy.merging.get():
            return None
        return usual.lane

    def _find(self, session: Session, entity: Entity, options: Mapping[str, Any]) -> Lane | BypassReason:
        if not self._naming.may_read:
            return "rollout"
        call = options.get("execution_options") or _NOTHING
        session_options = _sqlalchemy.options_of(session) or _NOTHING
        refusal = _why_not_plain(session, options, call, session_options)
        if refusal is not None:
            return refusal
        _sqlalchemy.autoflush(session)
        try:
            bind = _sqlalchemy.bind_of(session, entity.mapper)
            if isinstance(bind, Connection) and (bind.closed or bind.invalidated):
                return "database"
            if _nobody_awaits(bind):
                return "database"
            namespace = self._naming.namespace(session, bind)
        except ConfigurationError:
            raise
        except Exception:  # no bind, no database: the plain get says so in its own words
            return "database"
        given: Mapping[str, Any] = bind.get_execution_options()
        held = held_connection(session, bind)
        if session_options or call or held is not bind:  # a connection's options may differ from its engine's
            given = {**given, **session_options, **held.get_execution_options(), **call}
        if given and _flag("cache", given.get("cache", True)) is False:
            return "disabled"
        ttl_ms = self._ttl_ms(entity, given.get("cache_ttl"))
        ref = TableRef(namespace, table_name(entity, given.get("schema_translate_map"), bind))
        view = self._view(session, bind, session_options)
        if view is None:
            return "isolation"
        lane = Lane(entity, ref, entity.rows(bind.dialect), self._naming.table_keys(ref), ttl_ms, *view)
        if self._naming.hides:
            lane.hidden = partial(self._naming.hidden, ref)
        _sqlalchemy.autobegin(session)
        if isinstance(bind, Connection):  # the session's rollback() is this connection's, as after a SELECT
            session.connection(bind_arguments={"mapper": entity.mapper})
        elif not (call or session_options or _sqlalchemy.connections(session)):
            self._remember(session, lane, bind)
        return lane

    def _remember(self, session: Session, lane: Lane, bind: Engine) -> None:
        """Keep the lane for the sessions to come, where it depends on nothing but their class and the engine."""
        if not self._naming.is_fixed(bind) or not _sqlalchemy.isolation_level(bind)[0] or lane.transactions:
            return
        if _sqlalchemy.binds_plainly(type(session)):
            lane.entity.memo[_USUAL] = _Usual(
                replace(lane, idle=True, awaits=bind.dialect.is_async, _lookups={}),
                type(session),
                weakref.ref(bind.pool),
                bind.dialect,
                bind.get_execution_options(),
                shares_transactions(bind.pool),
                os.getpid(),
            )

    def row(self, lane: Lane, pk: str) -> Lookup | BypassReason:
        """Return the look-up of a row, or why this session, or this process, must read the database."""
        if lane.transactions and lane.hides(pk):
            return "own_writes"
        lookup = lane.lookup(pk)
        return "owed" if self._driver.debts.any and lookup.entry in self._driver.debts else lookup

    def _view(
        self, session: Session, bind: Engine | Connection, session_options: Mapping[str, Any]
    ) -> tuple[float, bool, tuple[Transaction, ...]] | None:
        """Return `snapshot`, `trusted` and `transactions`, or None when the session must not see cached rows."""
        level, asked = _sqlalchemy.isolation_level(bind, session_options)
        if asked and level not in STATEMENT_SNAPSHOTS:
            # 1 A: get, a hit   2 B: COMMIT of the row   3 A: UPDATE of the row, in a snapshot that begins only now
            # The database would have refused A's write, had it seen A's read. So it sees every read.
            return None
        shared = shared_transaction(bind.engine.pool)
        transactions = [] if shared is None or not shared.hides else [shared]
        snapshot, trusted = NEVER if level == "READ UNCOMMITTED" else ALWAYS, False
        for connection in connections_of(session, bind):
            known = known_transaction_of(connection)
            if known is not None:
                if known.failed:
                    return None
                if known.hides:
                    transactions.append(known)
            if not connection.in_transaction():
                continue
            level, asked = _sqlalchemy.isolation_level(connection)
            if known is not None and known.isolated:
                level, asked = "", True
            if level in STATEMENT_SNAPSHOTS:
                trusted = True
                continue
            if asked or self._snapshots_by_default:
                return None  # it is owed the snapshot that it has begun
            began = None if known is None or level == "READ UNCOMMITTED" else known.began
            snapshot = min(snapshot, NEVER if began is None else began)  # I7
        return snapshot, trusted, tuple(transactions)

    def _ttl_ms(self, entity: Entity, call: Any) -> int:
        if call is not None:
            return milliseconds('execution_options["cache_ttl"]', call)
        return entity.ttl_ms or self._default_ttl_ms

    # what may be told

    def may_be_told(self, session: Session, lane: Lane, pks: Sequence[str]) -> list[bool]:
        """Return for each row whether everybody else would be told the same by the database now."""
        # 1 A: UPDATE, no commit   2 B: miss, lease   3 B: SELECT on the same DBAPI connection: A's row   4 B: fill
        # Sessions share a connection under a static pool, or when both are bound to it. So look after the SELECT.
        bind = _sqlalchemy.bind_of(session, lane.entity.mapper)
        connections = connections_of(session, bind)
        states = [transaction_of(connection) for connection in connections]
        for connection, state in zip(connections, states, strict=True):
            server = _server(connection, state)
            if server.in_recovery or (lane.trusted and not server.snapshot_per_statement):
                return [False] * len(pks)
        # A session may choose another database for each statement. One of its connections is the one that was asked.
        # And the callable that names tenants may have another answer by now, or none.
        try:
            is_theirs = any(self._naming.namespace(session, held) == lane.ref.namespace for held in connections)
        except LookupError:
            is_theirs = False
        if not is_theirs:
            return [False] * len(pks)
        return [not any(state.covers(lane.ref, pk) for state in states) for pk in pks]


def _nobody_awaits(bind: Engine | Connection) -> bool:
    """Return whether a SELECT would raise MissingGreenlet: it is asyncio's, and nobody awaits it."""
    return bind.dialect.is_async and not _sqlalchemy.in_greenlet()


def _why_not_plain(
    session: Session, options: Mapping[str, Any], call: Mapping[str, Any], session_options: Mapping[str, Any]
) -> BypassReason | None:
    """Return why a get may ask for anything but the row as it is committed, or None."""
    for name, value in options.items():
        if name not in _ARGUMENTS or (value and name != "execution_options"):
            return "option"
    if options.get("with_for_update") not in (None, False):
        return "option"  # {} locks, too
    if call and not call.keys() <= _HARMLESS:
        return "option"
    if session_options and (session_options.get("populate_existing") or session_options.get("identity_token")):
        return "option"
    if session_options and not session_options.get("autoflush", True):
        return "option"  # what follows would flush
    if not session.is_active:
        return "session"  # a flush has failed, or a commit is under way: the plain get says so
    if _sqlalchemy.merging.get() or _sqlalchemy.is_flushing(session) or isinstance(session, ShardedSession):
        return "session"
    if session.dispatch.do_orm_execute:
        return "listener"  # it may narrow what the SELECT finds: tenants, soft deletes
    return None


def table_name(entity: Entity, translate: Mapping[Any, Any] | None, bind: Engine | Connection) -> str:
    """Return the table's name in keys. The default schema by its name is the one without: others may not say it."""
    schema, name = entity.table.schema, entity.table.family
    translated = translate.get(schema, schema) if translate else schema
    if translated != schema and translated == bind.dialect.default_schema_name:
        translated = None
    return _keys.table_name(translated, name)


def connections_of(session: Session, bind: Engine | Connection) -> list[Connection]:
    """Return the connections whose transactions a SELECT of this session may see into."""
    held = _sqlalchemy.connections(session)
    return [*held, bind] if isinstance(bind, Connection) and bind not in held else held


def _server(connection: Connection, state: Transaction) -> Server:
    """Return what the server says of a connection; it is asked once, and again after text has set an isolation level.

    A server in recovery replays another's log: what it shows may be older than the lease. And a listener, a role or a
    database may have set an isolation level that SQLAlchemy does not know of.
    """
    if state.server is None:
        state.server = Server()
        if connection.dialect.name == "postgresql":
            cursor = connection.connection.cursor()
            try:
                cursor.execute("SELECT pg_is_in_recovery(), current_setting('transaction_isolation')")
                answer: Any = cursor.fetchone()
            finally:
                cursor.close()
            state.server = Server(bool(answer[0]), answer[1] in ("read committed", "read uncommitted"))
    return state.server


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f'execution_options["{name}"]', value, "give True or False")
    return value
