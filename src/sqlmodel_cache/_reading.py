"""Where a hit happens: which gets may use the cache, what they may see, and what they may store.

`Reader.get` stands around `Session.get`. It decides what is safe to ask (the rules of the session, I6 and I7), runs the
protocol's read, hydrates a hit, and encodes what the database gave on a miss.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from . import _keys, _protocol, _sqlalchemy
from ._driver import Driver, new_id
from ._effects import ABSENT, Entry, Fill, Granted, Load, Loaded
from ._entities import Entities
from ._namespace import Naming, held_connection
from ._plan import Effect, run
from ._protocol import Answer, Source
from ._shapes import Entity, Found, Rows
from ._versions import Versions
from ._writeset import Server, TableRef, Transaction, known_transaction_of, shared_transaction, transaction_of
from .config import Settings, milliseconds
from .errors import CodecError, ConfigurationError
from .metrics import Counters

log = logging.getLogger("sqlmodel_cache")

JITTER = 0.1  # at most this part of a ttl is taken off, so that rows cached together do not expire together
STATEMENT_SNAPSHOTS = frozenset({"READ COMMITTED", "AUTOCOMMIT"})  # each SELECT sees what is committed by then

# Options of one call that do not change what is loaded. Any other sends the call to the database.
_HARMLESS = frozenset({"cache", "cache_ttl", "schema_translate_map"})

# What `Session.get` takes; it says in its own words what it does not.
_ARGUMENTS = frozenset(
    {"options", "populate_existing", "with_for_update", "identity_token", "execution_options", "bind_arguments"}
)

_NOTHING: Mapping[str, Any] = MappingProxyType({})

ALWAYS = math.inf  # a snapshot that begins with the SELECT
NEVER = -math.inf  # a snapshot of unknown age, or none


@dataclass(slots=True)
class Request:
    """One get that may be answered from the cache."""

    session: Session
    entity: Entity
    key: _sqlalchemy.IdentityKey
    ref: TableRef
    pk: str
    entry: Entry
    rows: Rows
    ttl_ms: int
    snapshot: float  # seconds of time.monotonic() when the transaction's snapshot began, or ALWAYS, or NEVER
    trusted: bool  # a transaction has begun, and is believed to take a snapshot for each statement


class Reader:
    """Answers gets."""

    def __init__(
        self, settings: Settings, driver: Driver, entities: Entities, naming: Naming, counters: Counters
    ) -> None:
        self._enabled = settings.enabled
        self._snapshots_by_default = settings.snapshot_reads == "database"
        self._default_ttl_ms = settings.default_ttl_ms
        self._driver = driver
        self._entities = entities
        self._naming = naming
        self._counters = counters
        self._probe = _sqlalchemy.LoadProbe()
        self._versions = Versions()
        self.not_stored: dict[type, dict[str, str]] = {}  # class -> attribute -> why

    def get(
        self,
        session: Session,
        class_: Any,
        ident: Any,
        options: dict[str, Any],
        load: Callable[[], Any],
        path: Any = None,
    ) -> Any:
        """Return what `load()`, the session's own `get`, would return, from the cache if that is safe.

        `path` is where the load began, if not with the class.
        """
        entity = self._entities.get(class_) if self._enabled else None
        if entity is None:
            return load()
        named = entity.identify(ident)
        if named is not None:
            held = session.identity_map.get(named[0])
            if held is not None:  # the session's own business: the same object, or a refresh
                return held if not options and _sqlalchemy.is_current(held, entity.mapper) else load()
        request = None if named is None else self._admit(session, entity, *named, options)
        if request is None:
            self._counters.add("bypasses")
            return load()

        def execute(effect: Effect[Any]) -> Any:
            if type(effect) is Load:
                return self._load(request, load) if effect.encode else Loaded(load(), None)
            if type(effect) is Fill:
                effect = replace(effect, ttl_ms=_jittered(effect.ttl_ms))
            return self._driver.execute(effect)

        def fresh(lease: Granted) -> bool:
            return request.snapshot == ALWAYS or self._versions.since(request.entry.row, lease) < request.snapshot

        plan = _protocol.read(
            request.entry,
            request.rows.fingerprint,
            request.rows.decode,
            ttl_ms=request.ttl_ms,
            absent_ttl_ms=entity.missing_ttl_ms or 0,
            new_id=new_id,
            fresh=fresh,
        )
        answer = run(plan, execute)
        self._count(answer)
        if answer.decoded is not None:
            shape, values = answer.decoded
            path = shape.path if path is None else path
            return _sqlalchemy.attach(session, shape.mapper, request.key, values, path, shape.expired)
        return answer.row

    def close(self) -> None:
        """Stop listening to load events."""
        self._probe.close()

    # what may be asked

    def _admit(
        self, session: Session, entity: Entity, key: _sqlalchemy.IdentityKey, pk: str, options: Mapping[str, Any]
    ) -> Request | None:
        """Return the request for a get that may use the cache, or None for one that must go to the database."""
        call = options.get("execution_options") or _NOTHING
        session_options = getattr(session, "execution_options", None) or _NOTHING  # new in SQLAlchemy 2.1
        if not _is_plain(session, options, call, session_options):
            return None
        _sqlalchemy.autoflush(session)
        if key in session.identity_map:
            return None
        try:
            bind = _sqlalchemy.bind_of(session, entity.mapper)
            if isinstance(bind, Connection) and (bind.closed or bind.invalidated):
                return None
            if bind.dialect.is_async and not _sqlalchemy.in_greenlet():
                return None  # the SELECT would raise MissingGreenlet
            namespace = self._naming.namespace(session, bind)
        except ConfigurationError:
            raise
        except Exception:  # no bind, no database: the plain get says so in its own words
            return None
        given: Mapping[str, Any] = bind.get_execution_options()
        held = held_connection(session, bind)
        if session_options or call or held is not bind:  # a connection's options may differ from its engine's
            given = {**given, **session_options, **held.get_execution_options(), **call}
        if given and _flag("cache", given.get("cache", True)) is False:
            return None
        ttl_ms = self._ttl_ms(entity, given.get("cache_ttl"))
        ref = TableRef(namespace, _table_name(entity, given.get("schema_translate_map"), bind))
        view = self._view(session, bind, ref, pk, session_options)
        if view is None:
            return None
        entry = self._naming.entry(ref, pk)
        if self._driver.debts:
            self._driver.pay_debts()
            if entry in self._driver.debts:
                return None
        _sqlalchemy.autobegin(session)
        if isinstance(bind, Connection):  # the session's rollback() is this connection's, as after a SELECT
            session.connection(bind_arguments={"mapper": entity.mapper})
        return Request(session, entity, key, ref, pk, entry, entity.rows(bind.dialect), ttl_ms, *view)

    def _view(
        self, session: Session, bind: Engine | Connection, ref: TableRef, pk: str, session_options: Mapping[str, Any]
    ) -> tuple[float, bool] | None:
        """Return the `snapshot` and `trusted` of a request, or None when the session must not see cached rows."""
        level, asked = _sqlalchemy.isolation_level(bind, session_options)
        if asked and level not in STATEMENT_SNAPSHOTS:
            # 1 A: get, a hit   2 B: COMMIT of the row   3 A: UPDATE of the row, in a snapshot that begins only now
            # The database would have refused A's write, had it seen A's read. So it sees every read.
            return None
        shared = shared_transaction(bind.engine.pool)
        if shared is not None and shared.covers(ref, pk):
            return None
        snapshot, trusted = NEVER if level == "READ UNCOMMITTED" else ALWAYS, False
        for connection in _connections(session, bind):
            known = known_transaction_of(connection)
            if known is not None and (known.failed or known.covers(ref, pk)):
                return None  # I6
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
        return snapshot, trusted

    def _ttl_ms(self, entity: Entity, call: Any) -> int:
        if call is not None:
            return milliseconds('execution_options["cache_ttl"]', call)
        return entity.ttl_ms or self._default_ttl_ms

    # what may be stored

    def _load(self, request: Request, load: Callable[[], Any]) -> Loaded[Any]:
        """Run the session's own get, and encode what it loaded unless the cache must not have it."""
        payload: bytes | None = None

        def take(class_: type, attributes: dict[str, Any], expired: set[str]) -> None:
            nonlocal payload
            if class_ in request.entity.refused:
                return
            try:
                payload = request.rows.encode(class_, attributes, expired)
            except CodecError as why:
                self._warn(request, why)

        instance = self._probe.load(request.session, request.entity.mappers, request.key, load, take)
        if instance is None and request.entity.missing_ttl_ms is not None and self._may_be_told(request):
            return Loaded(None, ABSENT)
        if payload is None or not self._may_fill(request, instance):
            return Loaded(instance, None)
        return Loaded(instance, payload)

    def _may_fill(self, request: Request, instance: object) -> bool:
        found = None if instance is None else _sqlalchemy.identity_of(instance)
        if found is None or found != request.key or request.entity.table.pk_text(found[1]) != request.pk:
            return False  # a collation or a cast found a row of another name
        return self._may_be_told(request)

    def _may_be_told(self, request: Request) -> bool:
        """Return whether everybody else would be told the same by the database now."""
        # 1 A: UPDATE, no commit   2 B: miss, lease   3 B: SELECT on the same DBAPI connection: A's row   4 B: fill
        # Sessions share a connection under a static pool, or when both are bound to it. So look after the SELECT.
        bind = _sqlalchemy.bind_of(request.session, request.entity.mapper)
        connections = _connections(request.session, bind)
        for connection in connections:
            state = transaction_of(connection)
            if state.covers(request.ref, request.pk):
                return False
            server = _server(connection, state)
            if server.in_recovery or (request.trusted and not server.snapshot_per_statement):
                return False
        # A session may choose another database for each statement. One of its connections is the one that was asked.
        return any(self._naming.namespace(request.session, c) == request.ref.namespace for c in connections)

    def _warn(self, request: Request, why: CodecError) -> None:
        class_ = request.entity.class_
        known = self.not_stored.setdefault(class_, {})
        if (why.attribute or "") not in known:
            known[why.attribute or ""] = str(why)
            log.warning("%s %s is not cached: %s", class_.__qualname__, request.pk, why)

    def _count(self, answer: Answer[Found, Any]) -> None:
        add = self._counters.add
        if answer.corrupt:
            add("corrupt")
        if answer.source in (Source.HIT, Source.ABSENT):
            add("hits")
        else:
            add("misses")
            add(_COUNTER[answer.source])


_COUNTER = {
    Source.FILLED: "fills",
    Source.REFUSED: "refused",
    Source.FENCED: "fenced",
    Source.UNCACHED: "uncached",
    Source.UNREACHABLE: "errors",
}


def _is_plain(
    session: Session, options: Mapping[str, Any], call: Mapping[str, Any], session_options: Mapping[str, Any]
) -> bool:
    """Return whether a get asks for nothing but the row as it is committed."""
    for name, value in options.items():  # an AsyncSession gives all of them, always
        if name not in _ARGUMENTS or (value and name != "execution_options"):
            return False
    if options.get("with_for_update") not in (None, False):
        return False  # {} locks, too
    if call and not call.keys() <= _HARMLESS:
        return False
    if session_options and (session_options.get("populate_existing") or session_options.get("identity_token")):
        return False
    if not session.is_active:
        return False  # a flush has failed, or a commit is under way: the plain get says so
    if _sqlalchemy.merging.get() or _sqlalchemy.is_flushing(session) or isinstance(session, ShardedSession):
        return False
    return not session.dispatch.do_orm_execute  # a listener may narrow what the SELECT finds: tenants, soft deletes


def _table_name(entity: Entity, translate: Mapping[Any, Any] | None, bind: Engine | Connection) -> str:
    """Return the table's name in keys. The default schema by its name is the one without: others may not say it."""
    schema, name = entity.table.schema, entity.table.family
    translated = translate.get(schema, schema) if translate else schema
    if translated != schema and translated == bind.dialect.default_schema_name:
        translated = None
    return _keys.table_name(translated, name)


def _connections(session: Session, bind: Engine | Connection) -> list[Connection]:
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


def _jittered(ttl_ms: int) -> int:
    return max(1, round(ttl_ms * (1 - JITTER * os.urandom(1)[0] / 255)))


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f'execution_options["{name}"]', value, "give True or False")
    return value
