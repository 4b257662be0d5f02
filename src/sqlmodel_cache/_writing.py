"""Where a commit is fenced: what a connection wrote becomes keys, and the keys are fenced around its COMMIT.

The protocol decides what is said to the cache and in which order. Here is what SQLAlchemy and the drivers have to say
in it: which statement commits by itself, and what a failed COMMIT tells of its transaction.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from . import _keys, _protocol
from ._driver import Driver, new_id
from ._effects import Commit, Keys, Outcome
from ._entities import Entities
from ._journal import Journal
from ._namespace import Naming
from ._plan import Effect, Plan, run
from ._shapes import CachedTable
from ._statements import Write
from ._writeset import TableRef, Transaction, WriteSet, share, transaction_of
from .config import Settings
from .errors import InvalidationError, TransportError
from .metrics import Counters

log = logging.getLogger("sqlmodel_cache")


class Writer:
    """Fences commits."""

    def __init__(
        self, settings: Settings, driver: Driver, entities: Entities, naming: Naming, counters: Counters
    ) -> None:
        self._refuse = settings.on_unreachable == "refuse"
        self._fence_ttl_ms = settings.fence_ttl_ms
        self._replicas = settings.wait_replicas
        self._driver = driver
        self._entities = entities
        self._naming = naming
        self._counters = counters
        self.journal = Journal()

    def record(self, connection: Connection, writes: list[Write], translate: Mapping[Any, Any] | None) -> Transaction:
        """Add what a statement writes to the connection's write set, and return its transaction."""
        state = transaction_of(connection)
        share(connection.engine.pool, state)
        state.unnamed.append((writes, translate))
        # A transaction that has failed answers no question, and commits nothing: then the names can wait.
        with contextlib.suppress(Exception):
            self._name(connection, state)
        return state

    def expect(self, connection: Connection, writes: list[Write], translate: Mapping[Any, Any] | None) -> None:
        """Add writes whose rows RETURNING will name. Until it has, or if it never does, they are the table's."""
        state = transaction_of(connection)
        share(connection.engine.pool, state)
        state.returning = (writes, translate)
        state.unnamed.append(state.returning)

    def returned(self, connection: Connection, state: Transaction, rows: Sequence[Sequence[Any]]) -> None:
        """Put the rows that were returned in the place of what was expected."""
        if state.returning is not None and state.returning in state.unnamed:
            writes, translate = state.returning
            state.unnamed.remove(state.returning)
            self.record(connection, [write.of_rows(rows) for write in writes], translate)
        state.returning = None

    def _name(self, connection: Connection, state: Transaction) -> None:
        """Move unnamed writes into the write set; raises what the driver raises if the database does not answer."""
        if not state.unnamed:
            return
        namespaces = self._naming.namespaces_of(state.sessions, connection)
        for writes, translate in state.unnamed:
            for write in writes:
                is_new = write.kind == "insert" and not write.table.absences
                add = state.writes.insert if is_new else state.writes.change
                for name in _names_of(write, translate, connection.dialect.default_schema_name):
                    for namespace in namespaces:
                        add(TableRef(namespace, name), write.pks)
        state.unnamed.clear()

    def commit(self, connection: Connection, state: Transaction, send: Callable[[], None]) -> None:
        """Run `send()`, the database's COMMIT, with everything that the transaction wrote fenced around it.

        Raises what `send` raises, and InvalidationError in `refuse` mode, before COMMIT was sent.
        """
        try:
            self._name(connection, state)
        except InvalidationError:
            raise
        except Exception:  # of a transaction that has failed: it answers no question
            log.debug("what a commit writes has no name yet")
        keys, new = self._naming.keys(state.writes), self._naming.new_keys(state.writes)
        if keys or new:
            self._commit_fenced(keys, new, send)
        else:
            send()
        # What a listener to the COMMIT wrote, and what had no name while the transaction had failed, comes late.
        if state.wrote:
            try:
                self._name(connection, state)
            except Exception as why:
                log.warning("a commit is not invalidated, for want of the database's name: %s", why)
            late = self._naming.all_keys(state.writes).without(keys.including(new))
            if late:
                self._run(
                    _protocol.invalidate(late, self._driver.debts, refuse=False, new_id=new_id, replicas=self._replicas)
                )
                self._count(late, "what a listener to a COMMIT wrote")

    def _commit_fenced(self, keys: Keys, new: Keys, send: Callable[[], None]) -> None:
        failure: Exception | None = None

        def commit() -> Outcome:
            nonlocal failure
            try:
                send()
            except Exception as error:
                failure = error
                return outcome_of(error)
            return Outcome.COMMITTED

        plan = _protocol.commit(
            keys,
            self._driver.debts,
            new=new,
            refuse=self._refuse,
            fence_ttl_ms=self._fence_ttl_ms,
            new_id=new_id,
            replicas=self._replicas,
        )
        self.journal.began(keys)
        try:
            self._run(plan, commit)
        finally:
            self.journal.ended(keys)
        if failure is None:
            self._count(keys.including(new), "commit")
        else:
            self._count(keys, "a COMMIT that failed")
            raise failure

    def begin_fence(self, connection: Connection, state: Transaction) -> None:
        """Fence the write set for a statement that commits by itself; `end_fence` follows."""
        self._name(connection, state)
        # What SQLite returns rows of is committed when the last has been fetched, which nobody says: so new rows, too.
        keys = self._naming.all_keys(state.writes)
        if keys:
            plan = _protocol.begin(
                keys,
                self._driver.debts,
                refuse=self._refuse,
                fence_ttl_ms=self._fence_ttl_ms,
                new_id=new_id,
                replicas=self._replicas,
            )
            state.fence = (keys, self._run(plan))
            self.journal.began(keys)

    def end_fence(self, state: Transaction, outcome: Outcome) -> None:
        """Release the fence of a statement that has committed by itself."""
        if state.fence is not None:
            keys, token = state.fence
            plan = _protocol.end(keys, token, outcome, self._driver.debts, new_id=new_id, replicas=self._replicas)
            self._run(plan)
            self.journal.ended(keys)
            self._count(keys, "a statement that commits by itself")
        state.statement_ended()

    def invalidate(self, tables: list[CachedTable], pk: str | None, bind: Engine | Connection | None) -> None:
        """Invalidate a row or whole tables for a writer that no hook can see.

        In the transaction of a connection they join its write set. Otherwise they are invalidated now: in the bind's
        database, or in each that this process knows.

        Raises:
            ConfigurationError: no database is known yet.
            InvalidationError: in `refuse` mode, when the cache does not answer.
        """
        writes = [Write(table.schema, table, "change", None if pk is None else (pk,)) for table in tables]
        if isinstance(bind, Connection) and bind.in_transaction():
            self.record(bind, writes, bind.get_execution_options().get("schema_translate_map"))
            return
        found = WriteSet()
        translate = None if bind is None else bind.get_execution_options().get("schema_translate_map")
        for namespace in self._naming.namespaces(bind):
            default = None if bind is None else bind.dialect.default_schema_name  # known once the database was asked
            for write in writes:
                for name in _names_of(write, translate, default):
                    found.change(TableRef(namespace, name), write.pks)
        keys = self._naming.keys(found)
        plan = _protocol.invalidate(
            keys, self._driver.debts, refuse=self._refuse, new_id=new_id, replicas=self._replicas
        )
        self._run(plan)
        self._count(keys, "invalidate()")

    def forget(self, ref: TableRef, pk: str) -> None:
        """Invalidate a row that has turned out to be wrong in the cache."""
        found = WriteSet()
        found.change(ref, (pk,))
        keys = self._naming.keys(found)
        plan = _protocol.invalidate(keys, self._driver.debts, refuse=False, new_id=new_id, replicas=self._replicas)
        self._run(plan)
        self._count(keys, "verify")

    def _run(self, plan: Plan[Any], commit: Callable[[], Outcome] | None = None) -> Any:
        """Return a plan's result. All its effects but the COMMIT go to the cache; count it where the cache fails."""
        failed = False

        def execute(effect: Effect[Any]) -> Any:
            nonlocal failed
            if commit is not None and isinstance(effect, Commit):
                return commit()
            try:
                return self._driver.execute(effect)
            except TransportError:
                failed = True
                raise

        try:
            return run(plan, execute)
        finally:
            self._counters.errors += failed

    def _count(self, keys: Keys, why: str) -> None:
        self.journal.note(keys, why)
        shards = Counter(map(_keys.table_of, keys.rows))
        shards.update(keys.tables)
        for shard, count in shards.items():
            counters = self._entities.counters_of(_keys.name_of(shard)) or self._counters
            counters.invalidated += count


def outcome_of(error: BaseException) -> Outcome:
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


def _names_of(write: Write, translate: Mapping[Any, Any] | None, default: str | None) -> set[str]:
    """Return the names in keys of the table that a write may mean.

    A name without a schema may mean a cached table of any, one with a schema the default one's. A table that foreign
    keys rewrite may be in its own schema or in its parent's. Text is not translated, but its session's gets are.
    """
    names = set()
    for mapping in (translate, None) if write.literal and translate else (translate,):
        written, own = ((mapping or {}).get(schema, schema) for schema in (write.schema, write.table.schema))
        schemas = {written}
        if write.kind == "cascade" or written is None or own is None or written.lower() == own.lower():
            schemas.add(own)
        if mapping and written == default:
            schemas.add(None)
        names |= {_keys.table_name(schema, write.table.family) for schema in schemas}
    return names
