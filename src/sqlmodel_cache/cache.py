"""The cache: models, transports, policy and counters around the protocol's plans.

`Cache.get` is where a hit happens; `Cache.commit` is where a commit is fenced. Both decide what is safe to ask, run a
plan with the driver that fits the session, and count. The hooks that call them are in `session.py`.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from . import _keys, _protocol, _sqlalchemy
from ._effects import Commit, Entry, Keys, Load, Loaded, Outcome
from ._entities import Entities, Entity
from ._namespace import Databases
from ._plan import Effect, Plan, run
from ._protocol import Answer, Source
from ._statements import Statements, Write
from ._writeset import TableRef, Transaction, WriteSet, known_transaction_of, transaction_of
from .config import Settings, milliseconds
from .errors import CodecError, ConfigurationError
from .metrics import Counters
from .transport import AsyncTransport, SyncTransport

log = logging.getLogger("sqlmodel_cache")

JITTER = 0.1  # at most this part of a ttl is taken off, so that rows cached together do not expire together
STATEMENT_SNAPSHOTS = frozenset({"READ COMMITTED", "AUTOCOMMIT"})  # each SELECT sees what is committed by then
RETRY_SECONDS = 1.0  # between attempts to deliver owed invalidations

# Options of one call that do not change what is loaded. Any other sends the call to the database.
_HARMLESS = frozenset({"cache", "cache_ttl", "schema_translate_map"})


def new_id() -> bytes:
    """Return 16 random bytes, never the same twice, also after a fork."""
    return os.urandom(16)


@dataclass(frozen=True, slots=True)
class Request:
    """One get that may be answered from the cache."""

    session: Session
    entity: Entity
    key: _sqlalchemy.IdentityKey
    ref: TableRef
    pk: str
    entry: Entry
    ttl_ms: int
    fillable: bool  # the SELECT's snapshot will not be older than the lease


class Debts:
    """Keys whose invalidation has not reached the cache: this process reads them from the database until it has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the fields; never held during I/O
        self._owed: dict[str, bool] = {}  # key -> whether it is a row's
        self._next_attempt = 0.0

    def __bool__(self) -> bool:
        return bool(self._owed)

    def __contains__(self, entry: Entry) -> bool:
        return entry.row in self._owed or entry.table in self._owed

    def owe(self, keys: Keys) -> None:
        """Remember keys."""
        with self._lock:
            self._owed.update(dict.fromkeys(keys.rows, True) | dict.fromkeys(keys.tables, False))
            self._next_attempt = time.monotonic() + RETRY_SECONDS

    def settle(self, keys: Keys) -> None:
        """Forget keys that have been invalidated."""
        with self._lock:
            for key in (*keys.rows, *keys.tables):
                self._owed.pop(key, None)

    def due(self) -> Keys | None:
        """Return all keys if it is time to try again, and put the next attempt off."""
        with self._lock:
            now = time.monotonic()
            if not self._owed or now < self._next_attempt:
                return None
            self._next_attempt = now + RETRY_SECONDS
            rows = tuple(key for key, is_row in self._owed.items() if is_row)
            tables = tuple(key for key, is_row in self._owed.items() if not is_row)
            return Keys(rows, tables)


class Cache:
    """Everything between `configure()` and `reset()`."""

    def __init__(
        self, settings: Settings, sync_transport: SyncTransport | None, async_transport: AsyncTransport | None
    ) -> None:
        self.settings = settings
        self.sync_transport = sync_transport
        self.async_transport = async_transport
        self.entities = Entities()
        self.statements = Statements(self.entities)
        self.databases = Databases()
        self.counters = Counters()
        self.debts = Debts()
        self._prefix = _keys.escape(settings.key_prefix)
        self._default_ttl_ms = settings.default_ttl_ms
        self._fence_ttl_ms = settings.fence_ttl_ms
        self._never_blocks = sync_transport is not None and not sync_transport.blocking
        self._warned: set[type] = set()

    # --- reading -----------------------------------------------------------------------------------------------------

    def get(self, session: Session, class_: Any, ident: Any, options: dict[str, Any], load: Callable[[], Any]) -> Any:
        """Return what `load()`, the session's own `get`, would return, from the cache if that is safe."""
        entity = self.entities.get(class_) if self.settings.enabled else None
        if entity is None:
            return load()
        request = self._admit(session, entity, ident, options)
        if request is None:
            return load()

        def execute(effect: Effect[Any]) -> Any:
            return self._load(request, load) if type(effect) is Load else self.execute(effect)

        plan = _protocol.read(
            request.entry, entity.codec.fingerprint, entity.codec.decode, ttl_ms=request.ttl_ms, new_id=new_id
        )
        answer = run(plan, execute)
        self._count(answer)
        if answer.decoded is not None:
            return _sqlalchemy.attach(session, entity.mapper, request.key, answer.decoded)
        return answer.row

    def _admit(self, session: Session, entity: Entity, ident: Any, options: Mapping[str, Any]) -> Request | None:
        """Return the request for a get that may use the cache, or None for one that must go to the database."""
        pk = entity.primary_key(ident)
        text = None if pk is None else entity.table.pk_text(pk)
        if pk is None or text is None:
            return self._bypass()
        key = (entity.identity_class, pk, None)
        if key in session.identity_map:
            return None  # the session's own business: the same object, or a refresh
        call = options.get("execution_options") or {}
        session_options = getattr(session, "execution_options", None) or {}  # new in SQLAlchemy 2.1
        if not _plain(session, options, call, session_options):
            return self._bypass()
        _sqlalchemy.autoflush(session)
        if key in session.identity_map:
            return None
        try:
            bind = session.get_bind(entity.mapper)
            namespace = self._namespace(session, bind)
        except ConfigurationError:
            raise
        except Exception:  # no bind, no database: the plain get says so in its own words
            return self._bypass()
        given = {**bind.get_execution_options(), **session_options, **call}
        if _flag("cache", given.get("cache", True)) is False:
            return self._bypass()
        ttl_ms = self._ttl_ms(entity, given.get("cache_ttl"))
        table = _effective_name(entity.table.schema, entity.table.name, given.get("schema_translate_map"))
        ref = TableRef(namespace, table)
        fillable = self._may_use(session, bind, ref, text)
        if fillable is None:
            return self._bypass()
        entry = _keys.entry(self._prefix, namespace, table, text)
        if self.debts:
            self._pay_debts()
            if entry in self.debts:
                return self._bypass()
        _sqlalchemy.autobegin(session)
        return Request(session, entity, key, ref, text, entry, ttl_ms, fillable)

    def _may_use(self, session: Session, bind: Engine | Connection, ref: TableRef, pk: str) -> bool | None:
        """Return None when the session must not see cached rows, else whether its SELECT may fill the cache."""
        level, asked = _sqlalchemy.isolation_level(bind)
        if asked and level == "SERIALIZABLE":
            return None  # the database must see every read, to find the conflicts that it promised to find
        begun = False
        for connection in _connections(session, bind):
            known = known_transaction_of(connection)
            if known is not None and known.writes.covers(ref, pk):
                return None  # I6
            if connection.engine.pool is bind.engine.pool and connection.in_transaction():
                begun = True
                level, asked = _sqlalchemy.isolation_level(connection)
                if known is not None and known.isolated:
                    level, asked = "", True
        if level == "READ UNCOMMITTED":
            return False if not asked else None
        if not begun or level in STATEMENT_SNAPSHOTS:
            return True
        if asked or self.settings.snapshot_reads == "database":
            return None  # it is owed the snapshot that it has begun
        return False  # I7

    def _load(self, request: Request, load: Callable[[], Any]) -> Loaded[Any]:
        """Run the session's own get, and encode what it loaded unless the cache must not have it."""
        instance = load()
        if instance is None or not self._may_fill(request, instance):
            return Loaded(instance, None)
        entity = request.entity
        values = _sqlalchemy.loaded_values(entity.mapper, instance, entity.attributes)
        if values is None:
            return Loaded(instance, None)
        try:
            return Loaded(instance, entity.codec.encode(values))
        except CodecError as why:
            if entity.class_ not in self._warned:
                self._warned.add(entity.class_)
                log.warning("%s %s is not cached: %s", entity.class_.__name__, request.pk, why)
            return Loaded(instance, None)

    def _may_fill(self, request: Request, instance: object) -> bool:
        entity = request.entity
        if not request.fillable or type(instance) is not entity.class_:
            return False
        found = _sqlalchemy.identity_of(entity.mapper, instance)
        if found is None or found != request.key or entity.table.pk_text(found[1]) != request.pk:
            return False  # a collation or a cast found a row of another name
        # 1 A: UPDATE, no commit   2 B: miss, lease   3 B: SELECT on the same DBAPI connection: A's row   4 B: fill
        # Sessions share a connection under a static pool, or when both are bound to it. So look after the SELECT.
        for connection in _connections(request.session, request.session.get_bind(entity.mapper)):
            state = transaction_of(connection)
            if state.writes.covers(request.ref, request.pk) or self._in_recovery(connection, state):
                return False
        return True

    def _in_recovery(self, connection: Connection, state: Transaction) -> bool:
        """Return whether the server replays another's log: what it shows may be older than the lease."""
        if state.in_recovery is None:
            state.in_recovery = False
            if connection.dialect.name == "postgresql":
                cursor = connection.connection.cursor()
                try:
                    cursor.execute("SELECT pg_is_in_recovery()")
                    state.in_recovery = bool(cursor.fetchone()[0])  # type: ignore[index]
                finally:
                    cursor.close()
        return state.in_recovery

    def _ttl_ms(self, entity: Entity, call: Any) -> int:
        if call is not None:
            ttl_ms = milliseconds('execution_options["cache_ttl"]', call)
        else:
            ttl_ms = entity.ttl_ms or self._default_ttl_ms
        return max(1, round(ttl_ms * (1 - JITTER * random.random())))

    def _bypass(self) -> None:
        self.counters.add("bypasses")

    def _count(self, answer: Answer[Any, Any]) -> None:
        add = self.counters.add
        if answer.corrupt:
            add("corrupt")
        if answer.source is Source.HIT:
            add("hits")
            return
        add("misses")
        add(_COUNTER[answer.source])

    # --- writing -----------------------------------------------------------------------------------------------------

    def record(self, connection: Connection, writes: list[Write], translate: Mapping[Any, Any] | None) -> Transaction:
        """Add what a statement writes to the connection's write set, and return its transaction."""
        state = transaction_of(connection)
        namespace = self._namespace(None, connection)
        for write in writes:
            add = state.writes.insert if write.kind == "insert" else state.writes.change
            # A name without a schema may mean a cached table of any, and one with a schema the default one's.
            for schema in {write.schema, write.table.schema}:
                name = _effective_name(schema, write.table.name, translate)
                add(TableRef(namespace, name), write.pks)
        return state

    def commit(self, state: Transaction, send: Callable[[], None]) -> None:
        """Run `send()`, the database's COMMIT, with everything that the transaction wrote fenced around it.

        Raises what `send` raises, and InvalidationError in `refuse` mode, before COMMIT was sent.
        """
        keys = self.keys_of(state.writes)
        if not (keys.rows or keys.tables):
            send()
            return
        if self.debts:
            self._pay_debts()
        failure: Exception | None = None

        def execute(effect: Effect[Any]) -> Any:
            nonlocal failure
            if type(effect) is not Commit:
                return self.execute(effect)
            try:
                send()
            except Exception as error:
                failure = error
                return outcome_of(error)
            return Outcome.COMMITTED

        plan = _protocol.commit(keys, self.debts, refuse=self._refuses, fence_ttl_ms=self._fence_ttl_ms, new_id=new_id)
        run(plan, execute)
        self.counters.add("invalidated", len(keys.rows) + len(keys.tables))
        if failure is not None:
            raise failure

    def begin_fence(self, state: Transaction) -> None:
        """Fence the write set for a statement that commits by itself; `end_fence` follows."""
        keys = self.keys_of(state.writes)
        if keys.rows or keys.tables:
            plan = _protocol.begin(
                keys, self.debts, refuse=self._refuses, fence_ttl_ms=self._fence_ttl_ms, new_id=new_id
            )
            state.fence = (keys, self.run(plan))
        else:
            state.writes.clear()

    def end_fence(self, state: Transaction, outcome: Outcome) -> None:
        """Release the fence of a statement that has committed by itself."""
        if state.fence is not None:
            keys, token = state.fence
            state.fence = None
            self.run(_protocol.end(keys, token, outcome, self.debts, new_id=new_id))
            self.counters.add("invalidated", len(keys.rows) + len(keys.tables))
        state.writes.clear()

    def keys_of(self, writes: WriteSet) -> Keys:
        """Return the keys that a commit of these writes must fence."""
        rows = tuple(
            _keys.entry(self._prefix, *ref, pk).row for ref, pks in writes.rows.items() if pks for pk in sorted(pks)
        )
        tables = tuple(key for ref in sorted(writes.tables) for key in _keys.table_keys(self._prefix, *ref))
        return Keys(rows, tables)

    def _pay_debts(self) -> None:
        keys = self.debts.due()
        if keys is not None:
            self.run(_protocol.settle(keys, self.debts, fence_ttl_ms=self._fence_ttl_ms, new_id=new_id))

    @property
    def _refuses(self) -> bool:
        return self.settings.on_unreachable == "refuse"

    # --- both --------------------------------------------------------------------------------------------------------

    def run(self, plan: Plan[Any]) -> Any:
        """Return a plan's result; all its effects go to the cache."""
        return run(plan, self.execute)

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the cache's reply, waiting in the way that fits the caller: a thread, or an `AsyncSession`."""
        if not self._never_blocks and _sqlalchemy.in_greenlet():
            if self.async_transport is None:
                raise _missing("async_transport", self.sync_transport, "an AsyncSession")
            return _sqlalchemy.wait_for(self.async_transport.aexecute(effect))
        if self.sync_transport is None:
            raise _missing("transport", self.async_transport, "a Session")
        return self.sync_transport.execute(effect)

    def _namespace(self, session: Session | None, bind: Engine | Connection) -> str:
        configured = self.settings.namespace
        if configured is None:
            known = self.databases.known(bind.engine)
            return (known or self.databases.ask(_open_connection(session, bind))).name
        name = configured(session) if callable(configured) else configured
        if not isinstance(name, str) or not name:
            raise LookupError("the namespace callable gave no name")
        return _keys.escape(name)


_COUNTER = {
    Source.FILLED: "fills",
    Source.REFUSED: "refused",
    Source.FENCED: "fenced",
    Source.UNCACHED: "uncached",
    Source.UNREACHABLE: "errors",
}


def outcome_of(error: Exception) -> Outcome:
    """Return what a failed COMMIT says of its transaction: FAILED only when the database itself said so."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return Outcome.UNKNOWN
    if isinstance(error, IntegrityError) or type(error.orig).__module__.partition(".")[0] in ("sqlite3", "aiosqlite"):
        return Outcome.FAILED
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    # 08 connection, 57 operator intervention, 58 system error, 40003 completion unknown: it may have committed.
    if isinstance(state, str) and len(state) == 5 and state[:2] not in ("08", "57", "58", "XX") and state != "40003":
        return Outcome.FAILED
    return Outcome.UNKNOWN


def _plain(
    session: Session, options: Mapping[str, Any], call: Mapping[str, Any], session_options: Mapping[str, Any]
) -> bool:
    """Return whether a get asks for nothing but the row as it is committed."""
    for name in ("options", "populate_existing", "identity_token", "bind_arguments"):
        if options.get(name):
            return False
    if options.get("with_for_update") not in (None, False) or not call.keys() <= _HARMLESS:
        return False
    if session_options.get("populate_existing") or session_options.get("identity_token"):
        return False
    return not (_sqlalchemy.merging.get() or _sqlalchemy.is_flushing(session) or isinstance(session, ShardedSession))


def _connections(session: Session, bind: Engine | Connection) -> list[Connection]:
    """Return the connections whose transactions a SELECT of this session may see into."""
    held = _sqlalchemy.connections(session)
    return [*held, bind] if isinstance(bind, Connection) and bind not in held else held


def _open_connection(session: Session | None, bind: Engine | Connection) -> Engine | Connection:
    """Return a connection to the bind's database that the session holds already, or the bind."""
    if session is not None and isinstance(bind, Engine):
        for connection in _sqlalchemy.connections(session):
            if connection.engine.pool is bind.pool:
                return connection
    return bind


def _effective_name(schema: str | None, table: str, translate: Mapping[Any, Any] | None) -> str:
    if translate:
        schema = translate.get(schema, schema)
    return _keys.escape(table) if schema is None else f"{_keys.escape(schema)}.{_keys.escape(table)}"


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f'execution_options["{name}"]', value, "give True or False")
    return value


def _missing(argument: str, given: object, session: str) -> ConfigurationError:
    return ConfigurationError(
        argument,
        None,
        f"{session} needs a transport that {type(given).__name__} cannot give; "
        "configure(transport=..., async_transport=...) takes both",
    )
