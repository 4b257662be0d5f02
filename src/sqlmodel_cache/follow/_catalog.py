"""What PostgreSQL's catalog says about following it, what is wrong with that, and the SQL that mends it.

The publication's comment is the follower's only memory: `ready` and a digest of the followed tables. It is set to
`starting` before a slot is made, so whoever dies between the two leaves a follower behind that trusts nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from ._source import SETUP, Name, Problem, quoted, shown_elsewhere

STARTING = "sqlmodel-cache: starting"
OLDEST_VERSION = 130_000  # publish_via_partition_root, pg_current_snapshot()
LOOKS = 5  # of which the last may fail


@dataclass(frozen=True, slots=True)
class Member:
    """A table whose rows a cached table shows: itself, a partition, or one that inherits from it.

    Attributes:
        above: the other tables that it is a partition of: its changes may be published as theirs.
        via_root: its changes are published as those of its root, because it is a partition.
        filtered: the publication leaves out some of its rows.
        digest: changes with its columns, with its storage (TRUNCATE, a rewrite), with its identity, and when it
            leaves the publication, its parent or a name, even if it comes back at once.
    """

    root: Name
    name: Name
    above: tuple[Name, ...]
    kind: str
    via_root: bool
    logged: bool
    identified: bool  # it has a replica identity: without one, its UPDATEs would fail once it is published
    published: bool
    filtered: bool
    digest: str


@dataclass(frozen=True, slots=True)
class Server:
    """What a role may do on a server."""

    version: int
    wal_level: str
    in_recovery: bool
    may_replicate: bool
    role: str
    free_slots: int
    awaited: bool  # commits wait for whoever replicates: for the follower, which waits until they are visible


@dataclass(frozen=True, slots=True)
class Publication:
    """The publication as it is."""

    mine: bool  # the role may change it, and its comment
    complete: bool  # all kinds of changes, partitions as their root
    all_tables: bool
    comment: str | None


@dataclass(frozen=True, slots=True)
class Slot:
    """The slot as it is. `kept_bytes` is the WAL that the server keeps for it."""

    usable: bool
    ours: bool  # of this database, for pgoutput
    kept_bytes: int
    awaited: bool  # as of the server


@dataclass(frozen=True, slots=True)
class State:
    """All of it at one time, in the order in which it was asked."""

    server: Server
    publication: Publication | None
    slot: Slot | None
    members: tuple[Member, ...]
    strangers: tuple[tuple[Name, str], ...]  # what has a cached table's name and is none, and its kind

    @property
    def unpublished(self) -> list[Member]:
        """Members whose changes nobody hears of."""
        return [member for member in self.members if not member.published and not member.via_root]


def digests(members: Iterable[Member]) -> dict[Name, str]:
    """Return a digest of each cached table: of what its rows are besides the changes of rows."""
    found: dict[Name, list[str]] = {}
    for member in members:
        found.setdefault(member.root, []).append(f"{member.name} {member.published} {member.digest}")
    return {root: _digest(sorted(lines)) for root, lines in found.items()}


def ready(tables: dict[Name, str], history: str) -> str:
    """Return the comment that says that all was invalidated since the slot was made and the tables were as they are.

    Args:
        tables: their digests.
        history: which course of commits this is: a server that was promoted may lack some that the cache has seen.
    """
    lines = [f"{name} {digest}" for name, digest in sorted(tables.items())]
    return f"sqlmodel-cache: ready {_digest([history, *lines])}"


def look(connection: psycopg.Connection[Any], name: str, tables: Sequence[str]) -> State:
    """Return the state of what is named `name`, and of all tables with these names.

    1 F: looks   2 X: drops a published table   3 F: PostgreSQL cannot open it any more, an internal error: looks again
    """
    for _ in range(LOOKS - 1):
        with suppress(psycopg.errors.InternalError_):
            return _look(connection, name, tables)
    return _look(connection, name, tables)


def _look(connection: psycopg.Connection[Any], name: str, tables: Sequence[str]) -> State:
    return State(
        Server(*_one(connection, _SERVER, ())),
        _maybe(Publication, connection, _PUBLICATION, (name,)),
        _maybe(Slot, connection, _SLOT, (name,)),
        members(connection, name, tables),
        tuple((Name(*row[:2]), row[2]) for row in connection.execute(_STRANGERS, {"tables": list(tables)})),
    )


def members(connection: psycopg.Connection[Any], name: str, tables: Sequence[str]) -> tuple[Member, ...]:
    """Return every table whose rows a cached table shows, in any schema: a `schema_translate_map` may lead there."""
    rows = connection.execute(_MEMBERS, {"name": name, "tables": list(tables)}).fetchall()
    return tuple(
        Member(Name(*row[:2]), Name(*row[2:4]), tuple(Name(*each) for each in row[4]), *row[5:]) for row in rows
    )


def slot(connection: psycopg.Connection[Any], name: str) -> Slot | None:
    """Return the slot, or None if there is none."""
    found: Slot | None = _maybe(Slot, connection, _SLOT, (name,))
    return found


def problems(state: State) -> Iterator[Problem]:
    """Yield what nobody but an administrator can mend, and how."""
    server = state.server
    if server.version < OLDEST_VERSION:
        yield Problem("the server is older than PostgreSQL 13", "upgrade it, or use outbox=True (--outbox)")
    if server.in_recovery:
        yield Problem("the server is a replica", "give the URL of the primary")
    elif server.wal_level != "logical":
        yield Problem(
            f"wal_level is {server.wal_level}",
            "as superuser: ALTER SYSTEM SET wal_level = 'logical'; then restart the server (on managed PostgreSQL: the "
            "parameter for logical replication, such as rds.logical_replication)",
        )
    if not server.may_replicate:
        yield Problem(
            f"role {server.role} may not replicate",
            f"as superuser: ALTER ROLE {quoted(server.role)} REPLICATION (on Amazon RDS: GRANT rds_replication TO "
            f"{quoted(server.role)})",
        )
    if state.slot is None and server.free_slots < 1:
        yield Problem("all replication slots are in use", "raise max_replication_slots and restart the server")
    if server.awaited:
        yield Problem(
            "commits would wait for the follower as for a standby, and the follower for them",
            "let synchronous_standby_names name the standbys, without *",
        )
    if state.slot is not None and not state.slot.ours:
        yield Problem("a slot of that name belongs to another database or plugin", "give another name (--slot)")
    for member in state.members:
        yield from _problems_of(member)


def _problems_of(member: Member) -> Iterator[Problem]:
    if not member.logged:
        yield Problem(
            f"{member.name} is unlogged, so its changes are in no log", f"ALTER TABLE {member.name} SET LOGGED"
        )
    elif not member.identified:
        yield Problem(
            f"{member.name} has no replica identity, so its UPDATEs would fail once it is published",
            f"ALTER TABLE {member.name} ADD PRIMARY KEY (...), or ALTER TABLE {member.name} REPLICA IDENTITY FULL",
        )


def blind_spots(state: State) -> Iterator[Problem]:
    """Yield what cannot be followed, beside all that can."""
    for name, kind in state.strangers:
        yield shown_elsewhere(name, kind)


def missing(state: State) -> Iterator[Problem]:
    """Yield what `setup_sql` would mend, and the follower cannot: it completes a publication of its own itself."""
    if state.publication is None:
        yield Problem("there is no publication", SETUP)
        return
    if not state.publication.mine:
        if not state.publication.complete:
            yield Problem("the publication leaves out some changes", SETUP)
        for member in state.unpublished:
            yield Problem(f"{member.name} is not published", SETUP)
    if state.slot is None and state.publication.comment is None:
        yield Problem("there is no replication slot", SETUP)


def setup_sql(state: State, name: str) -> list[str]:
    """Return the statements that are still needed to follow, in order; each commits by itself.

    A slot that is older than its publication is made anew: what lies between cannot be decoded.
    """
    statements = list(publication_sql(state, name))
    if state.slot is None:
        statements += [comment_sql(name, STARTING), create_slot_sql(name)]
    elif not state.slot.usable or state.publication is None:
        statements += [comment_sql(name, STARTING), drop_slot_sql(name), create_slot_sql(name)]
    return statements


def publication_sql(state: State, name: str) -> Iterator[str]:
    """Yield the statements that make the publication complete."""
    options = "(publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
    tables = _listed(state.unpublished)
    if state.publication is None:
        clause = f"FOR TABLE {tables} " if tables else ""
        yield f"CREATE PUBLICATION {quoted(name)} {clause}WITH {options}"
        return
    if not state.publication.complete:
        yield f"ALTER PUBLICATION {quoted(name)} SET {options}"
    if not state.publication.all_tables:
        filtered = _listed(member for member in state.unpublished if member.filtered)
        if filtered:
            yield f"ALTER PUBLICATION {quoted(name)} DROP TABLE {filtered}"
        if tables:
            yield f"ALTER PUBLICATION {quoted(name)} ADD TABLE {tables}"


def _listed(members: Iterable[Member]) -> str:
    return ", ".join(str(each) for each in sorted({member.name for member in members}))


def teardown_sql(state: State, name: str) -> list[str]:
    """Return the statements that leave nothing of the follower behind."""
    statements = []
    if state.slot is not None and state.slot.ours:
        statements.append(drop_slot_sql(name))
    if state.publication is not None:
        statements.append(f"DROP PUBLICATION {quoted(name)}")
    return statements


def comment_sql(name: str, comment: str) -> str:
    """Return the statement that makes the follower remember."""
    return f"COMMENT ON PUBLICATION {quoted(name)} IS {literal(comment)}"


def while_locked_sql(pid: int, statement: str) -> str:
    """Return the statement that executes another if a session holds an advisory lock."""
    held = f"SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND pid = {pid}"
    return f"DO {literal(f'BEGIN IF EXISTS ({held}) THEN {statement}; END IF; END')}"


def create_slot_sql(name: str) -> str:
    """Return the statement that makes the slot, and waits for all transactions that run now."""
    return f"SELECT pg_create_logical_replication_slot({literal(name)}, 'pgoutput')"


def drop_slot_sql(name: str) -> str:
    """Return the statement that drops the slot."""
    return f"SELECT pg_drop_replication_slot({literal(name)})"


def literal(text: str) -> str:
    """Return a text as SQL writes it."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _one(connection: psycopg.Connection[Any], query: Any, parameters: Sequence[Any]) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query, parameters).fetchone()
    assert row is not None  # noqa: S101  these queries have one row
    return row


def _maybe(kind: Any, connection: psycopg.Connection[Any], query: Any, parameters: Sequence[Any]) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return None if row is None else kind(*row)


_SERVER = r"""
SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(),
       rolsuper OR rolreplication OR EXISTS (
           SELECT FROM pg_roles AS granted
           WHERE granted.rolname = 'rds_replication' AND pg_has_role(granted.oid, 'MEMBER')),
       rolname::text,
       current_setting('max_replication_slots')::int - (SELECT count(*)::int FROM pg_replication_slots),
       current_setting('synchronous_standby_names') ~ '\*|sqlmodel-cache follow'
FROM pg_roles WHERE rolname = current_user
"""

_PUBLICATION = """
SELECT pg_has_role(pubowner, 'USAGE'),
       pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot,
       puballtables, obj_description(oid, 'pg_publication')
FROM pg_publication WHERE pubname = %s
"""

_SLOT = r"""
SELECT coalesce(wal_status, 'lost') <> 'lost',
       coalesce(plugin, '') = 'pgoutput' AND coalesce(database, '') = current_database(),
       coalesce(pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
           restart_lsn), 0)::bigint,
       current_setting('synchronous_standby_names') ~ '\*|sqlmodel-cache follow'
FROM pg_replication_slots WHERE slot_name = %s
"""

# Row filters have come with version 15. The xmin of a row of the catalog is another after every change of it, also one
# that is taken back at once; VACUUM and ANALYZE leave it alone.
_MEMBERS = r"""
WITH RECURSIVE tree AS (
    SELECT c.oid AS root, c.oid AS member
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relname = ANY (%(tables)s) AND c.relkind IN ('r', 'p')
      AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    UNION
    SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.member
), published AS (
    SELECT c.oid FROM pg_publication_tables AS p
    JOIN pg_namespace AS n ON n.nspname = p.schemaname
    JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename
    WHERE p.pubname = %(name)s AND to_jsonb(p) ->> 'rowfilter' IS NULL
)
SELECT rn.nspname::text, r.relname::text, n.nspname::text, c.relname::text,
       ARRAY(SELECT ARRAY[an.nspname::text, ac.relname::text]
             FROM pg_partition_ancestors(c.oid) AS a
             JOIN pg_class AS ac ON ac.oid = a.relid JOIN pg_namespace AS an ON an.oid = ac.relnamespace
             WHERE a.relid NOT IN (c.oid, r.oid)),
       c.relkind::text,
       c.relispartition AND c.oid <> r.oid, c.relpersistence = 'p',
       CASE c.relreplident
           WHEN 'd' THEN EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = c.oid AND x.indisprimary)
           WHEN 'i' THEN EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = c.oid AND x.indisreplident)
           ELSE c.relreplident = 'f' END,
       EXISTS (SELECT FROM published AS p WHERE p.oid = c.oid
               OR p.oid IN (SELECT a.relid FROM pg_partition_ancestors(c.oid) AS a)),
       EXISTS (SELECT FROM pg_publication_rel AS j JOIN pg_publication AS p ON p.oid = j.prpubid
               WHERE j.prrelid = c.oid AND p.pubname = %(name)s AND to_jsonb(j) ->> 'prqual' IS NOT NULL),
       concat_ws(' ', c.oid, c.xmin, c.relfilenode, c.relreplident,
                 (SELECT string_agg(i.xmin::text, ',' ORDER BY i.inhparent)
                  FROM pg_inherits AS i WHERE i.inhrelid = c.oid),
                 (SELECT concat_ws(':', p.xmin, j.oid)
                  FROM pg_publication AS p LEFT JOIN pg_publication_rel AS j ON j.prpubid = p.oid AND j.prrelid = c.oid
                  WHERE p.pubname = %(name)s),
                 (SELECT string_agg(concat_ws(':', a.attnum, a.xmin, a.attname, a.atttypid, a.atttypmod, (
                      SELECT string_agg(e.xmin::text, '.' ORDER BY e.oid) FROM pg_enum AS e
                      WHERE e.enumtypid = a.atttypid)), ',' ORDER BY a.attnum)
                  FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
FROM tree
JOIN pg_class AS r ON r.oid = tree.root JOIN pg_namespace AS rn ON rn.oid = r.relnamespace
JOIN pg_class AS c ON c.oid = tree.member JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY 1, 2, 3, 4
"""

_STRANGERS = r"""
SELECT min(n.nspname::text), c.relname::text,
       min(CASE c.relkind WHEN 'f' THEN 'foreign table' WHEN 'm' THEN 'materialized view' ELSE 'view' END)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relname = ANY (%(tables)s) AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
GROUP BY c.relname HAVING bool_and(c.relkind IN ('v', 'm', 'f')) ORDER BY 2
"""
