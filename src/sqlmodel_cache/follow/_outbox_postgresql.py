"""The outbox on PostgreSQL: one function, a trigger per row and one for TRUNCATE on each cached table."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

import psycopg

from .._shapes import CachedTable
from ._catalog import Member, digests, literal, members, ready
from ._connect import connect
from ._outbox import TABLE, Note, trigger_name
from ._source import Name, quoted

IDLE_MS = 4000  # after which the server ends the session of a follower that is frozen, and with it its lock


class PostgresOutbox:
    """One connection. `where` is a connect string, as libpq reads it."""

    errors: tuple[type[Exception], ...] = (psycopg.Error,)

    def __init__(self, where: str) -> None:
        self._connection = connect(where)

    def statements(self, tables: Sequence[CachedTable]) -> list[str]:
        """Return the statements that are still needed, to be run in one transaction."""
        wanted: list[str] = []
        if self._connection.execute("SELECT to_regclass(%s) IS NULL", (TABLE,)).fetchone() == (True,):
            (schema,) = self._connection.execute("SELECT current_schema()::text").fetchone() or (None,)
            wanted += [statement.replace("%SCHEMA%", quoted(str(schema))) for statement in _OUTBOX]
        query = "SELECT tgname::text, bool_and(tgenabled = 'A') FROM pg_trigger WHERE NOT tgisinternal GROUP BY 1"
        present: dict[str, bool] = dict(self._connection.execute(query).fetchall())
        by_name: dict[str, list[CachedTable]] = {}  # two classes may name the rows of a table by different columns
        for cached in tables:
            by_name.setdefault(cached.name, []).append(cached)
        for member in members(self._connection, "", sorted(by_name)):
            for definition in (each for cached in by_name[member.root.table] for each in _definitions(member, cached)):
                name = trigger_name(definition)
                if name not in present:
                    wanted.append(f"CREATE TRIGGER {name} {definition}")
                if not present.get(name):  # switched off, or where session_replication_role is replica
                    wanted.append(f"ALTER TABLE {member.name} ENABLE ALWAYS TRIGGER {name}")
                    wanted.append(_note(member))
        return list(dict.fromkeys(wanted))

    def undo(self) -> list[str]:
        """Return the statements that leave nothing behind."""
        query = (
            "SELECT format('DROP TRIGGER %%I ON %%s', t.tgname, t.tgrelid::regclass) FROM pg_trigger AS t "
            "JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE p.proname = %s AND t.tgparentid = 0"
        )
        found = [str(row[0]) for row in self._connection.execute(query, (TABLE,)).fetchall()]
        if self._connection.execute("SELECT to_regclass(%s) IS NULL", (TABLE,)).fetchone() == (True,):
            return found
        return [*found, f"DROP FUNCTION {TABLE}", f"DROP TABLE {TABLE}"]

    def run(self, statements: Sequence[str]) -> None:
        """Run statements in one transaction."""
        with self._connection.transaction():
            for statement in statements:
                self._connection.execute(statement.encode())

    def lead(self, name: str) -> bool:
        """Return whether no other follower of that name leads: the session holds a lock while it lives."""
        if self._connection.info.server_version >= 140_000:
            self._connection.execute(f"SET idle_session_timeout = {IDLE_MS}".encode())
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
        return self._connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone() == (True,)

    def notes(self, limit: int) -> list[Note]:
        """Return the oldest notes."""
        query = f"SELECT id, table_schema, table_name, pk FROM {TABLE} ORDER BY id LIMIT %s"  # noqa: S608
        return self._connection.execute(query.encode(), (limit,)).fetchall()

    def forget(self, ids: Sequence[int]) -> None:
        """Delete notes."""
        self._connection.execute(f"DELETE FROM {TABLE} WHERE id = ANY (%s)".encode(), (list(ids),))  # noqa: S608

    def kept_bytes(self) -> int:
        """Return how large the outbox is."""
        row = self._connection.execute(
            "SELECT coalesce(pg_total_relation_size(to_regclass(%s)), 0)", (TABLE,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def digests(self, tables: Sequence[CachedTable]) -> dict[Name, str]:
        """Return a digest of what each table is besides its rows."""
        return digests(members(self._connection, "", sorted({cached.name for cached in tables})))

    def remembers(self, digests: dict[Name, str]) -> bool:
        """Return whether these were the last that `remember` was told, and this role may tell it."""
        query = "SELECT pg_has_role(relowner, 'USAGE'), obj_description(oid, 'pg_class') FROM pg_class WHERE oid = %s"
        row = self._connection.execute(f"{query}::regclass".encode(), (TABLE,)).fetchone()
        return row == (True, ready(digests, self._history()))

    def remember(self, digests: dict[Name, str]) -> None:
        """Leave word in a comment, if this role may: otherwise the next follower begins with everything."""
        comment = f"COMMENT ON TABLE {TABLE} IS {literal(ready(digests, self._history()))}"
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self._connection.execute(comment.encode())

    def _history(self) -> str:
        """Return the server's timeline: promoted, it may lack commits that its predecessor had."""
        row = self._connection.execute("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)").fetchone()
        return "" if row is None else str(row[0])

    def cancel(self) -> None:
        """End a statement that waits; from any thread."""
        with contextlib.suppress(psycopg.Error):  # it may be closed at this moment
            self._connection.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _definitions(member: Member, cached: CachedTable) -> list[str]:
    """Return the triggers of one table, each without its name."""
    found = []
    events = "INSERT OR UPDATE OR DELETE" if cached.absences else "UPDATE OR DELETE"
    arguments = ", ".join(map(literal, (*member.root, *cached.pk_columns)))
    call = f"EXECUTE FUNCTION {TABLE}({arguments})"
    if not member.via_root:  # a partition has its parent's triggers for rows
        found.append(f"AFTER {events} ON {member.name} FOR EACH {'ROW' if cached.pk_columns else 'STATEMENT'} {call}")
    if member.kind == "r":
        found.append(f"AFTER TRUNCATE ON {member.name} FOR EACH STATEMENT {call}")
    return found


def _note(member: Member) -> str:
    schema, table = map(literal, member.root)
    return f"INSERT INTO {TABLE} (table_schema, table_name) VALUES ({schema}, {table})"  # noqa: S608


# Its arguments are the table's schema and name, and the columns of its primary key.
_OUTBOX = [
    f"CREATE TABLE {TABLE} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, table_schema text, "
    "table_name text NOT NULL, pk text)",
    # The names are constants of this module, the schema is quoted.
    f"""CREATE FUNCTION {TABLE}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    before jsonb;
    after jsonb;
BEGIN
    IF TG_LEVEL = 'ROW' AND TG_OP <> 'INSERT' THEN
        SELECT jsonb_agg(to_jsonb(OLD) ->> TG_ARGV[i] ORDER BY i) INTO before
            FROM generate_series(2, TG_NARGS - 1) AS i;
    END IF;
    IF TG_LEVEL = 'ROW' AND TG_OP <> 'DELETE' THEN
        SELECT jsonb_agg(to_jsonb(NEW) ->> TG_ARGV[i] ORDER BY i) INTO after
            FROM generate_series(2, TG_NARGS - 1) AS i;
    END IF;
    INSERT INTO %SCHEMA%.{TABLE} (table_schema, table_name, pk)
        VALUES (TG_ARGV[0], TG_ARGV[1], coalesce(before, after)::text);
    IF before <> after THEN
        INSERT INTO %SCHEMA%.{TABLE} (table_schema, table_name, pk)
            VALUES (TG_ARGV[0], TG_ARGV[1], after::text);
    END IF;
    RETURN NULL;
END $$""",  # noqa: S608
]
