"""What a MySQL or MariaDB server says about following it, what is wrong with that, and the SQL that mends it.

The follower's memory is a row of a small table in the followed database: up to where in the binary log everything has
been invalidated. It is written only by the connection that holds the lock of the leader.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from pymysql.connections import Connection
from pymysql.err import Error, ProgrammingError

from ._source import SETUP, Name, Problem, shown_elsewhere

TABLE = "sqlmodel_cache_follow"
LOCK_SECONDS = 3  # that the leader may be silent before the server lets another lead
SILENCE_SECONDS = 10.0  # of the server, after which a connection counts as cut

_DENIED = {1142, 1227}
_TABLES = "BASE TABLE", "SYSTEM VERSIONED"
_ELSEWHERE = "FEDERATED", "CONNECT", "SPIDER", "MRG_MyISAM"  # engines whose rows are those of other tables
_VARIABLES = (
    "binlog_format",
    "binlog_order_commits",
    "binlog_row_metadata",
    "binlog_transaction_compression",
    "hostname",
    "log_bin",
    "log_bin_compress",
    "log_slave_updates",
    "lower_case_table_names",
    "port",
    "read_only",
    "server_id",
    "server_uid",
    "server_uuid",
    "wsrep_on",
)


class Wire(Connection):  # type: ignore[misc]
    """A connection that can be looked at without reading from it, and cut by another thread."""

    _sock: Any  # PyMySQL's own: there is no other way to it

    def descriptor(self) -> int:
        """Return its file descriptor."""
        return int(self._sock.fileno())

    def cut(self) -> None:
        """End whatever waits for the server."""
        with suppress(OSError, AttributeError):  # it may be closed at this moment
            self._sock.shutdown(2)

    def rows(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return what a statement answers."""
        with self.cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return list(cursor.fetchall())


def connect(settings: Mapping[str, Any], **more: Any) -> Wire:
    """Return a connection in autocommit. `settings` are those of `pymysql.connect`."""
    own = {"autocommit": True, "connect_timeout": 5, "read_timeout": SILENCE_SECONDS, "write_timeout": SILENCE_SECONDS}
    return Wire(**{**settings, **own, "charset": "utf8mb4", **more})


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where everything has been invalidated.

    Attributes:
        server: which server's log this is.
        began: when the file was begun, in seconds of Unix time: after RESET MASTER, another has its name. 0: unknown.
        tables: a digest of what was followed.
    """

    server: str
    file: str
    position: int
    began: int
    tables: str


class Rewrite(NamedTuple):
    """A change of a table with which InnoDB itself changes rows of others, and writes nothing of that into the log.

    Attributes:
        columns: which are referred to, in lower case; an UPDATE of others rewrites nothing.
        tables: whose rows are changed, however far away.
    """

    kind: str  # delete, update
    columns: frozenset[str]
    tables: frozenset[Name]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The cached tables in any schema, and what rewrites them."""

    tables: frozenset[Name]
    rewrites: Mapping[Name, tuple[Rewrite, ...]]
    strangers: tuple[tuple[Name, str], ...]  # what has a cached table's name and is none, and its kind


@dataclass(frozen=True, slots=True)
class State:
    """All of it at one time."""

    variables: Mapping[str, str]
    grants: tuple[str, ...]
    end: tuple[str, int] | None  # of the log
    passes_over: str | None  # what the server keeps out of its log
    replicates: bool
    prepared: bool
    mark: Mark | None

    @property
    def server(self) -> str:
        """The server's name for itself."""
        known = [self.variables.get(each, "") for each in ("server_uuid", "server_uid")]
        names = ("server_id",) if any(known) else ("server_id", "hostname", "port")
        return " ".join([*known, *(self.variables.get(each, "") for each in names)]).strip()[:190]


def look(sql: Wire, name: str, database: str) -> State:
    """Return the state of what is named `name`."""
    listed = ", ".join(f"'{each}'" for each in _VARIABLES)
    variables = dict(sql.rows(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({listed})"))
    end, passes_over = _log_status(sql, database) if variables.get("log_bin") == "ON" else (None, None)
    running = dict(sql.rows("SHOW GLOBAL STATUS LIKE 'Slave%running'"))
    exists = sql.rows(
        "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = %s", database, TABLE
    )
    query = f"SELECT server, file, position, began, tables FROM {_table(database)} WHERE name = %s"  # noqa: S608
    found = sql.rows(query, name) if exists else []
    return State(
        variables,
        tuple(str(row[0]) for row in sql.rows("SHOW GRANTS")),
        end,
        passes_over,
        running.get("Slave_running") == "ON" or running.get("Slaves_running", "0") != "0",
        bool(found),
        Mark(*found[0]) if found and found[0][0] is not None else None,
    )


def _log_status(sql: Wire, database: str) -> tuple[tuple[str, int] | None, str | None]:
    try:
        file, position, only, without = _end(sql)[:4]
    except Error as error:
        if error.args[0] in _DENIED:
            return None, None
        raise
    is_left_out = (only and database not in only.split(",")) or database in (without or "").split(",")
    return (file, int(position)), database if is_left_out else None


def _end(sql: Wire) -> tuple[Any, ...]:
    try:
        return sql.rows("SHOW MASTER STATUS")[0]
    except ProgrammingError:  # since MySQL 8.4
        return sql.rows("SHOW BINARY LOG STATUS")[0]


def catalog(sql: Wire, tables: Sequence[str]) -> Catalog:
    """Return what there is of tables with these names, in any schema: a `schema_translate_map` may lead there."""
    places = ", ".join(["%s"] * len(tables)) or "NULL"
    query = "SELECT table_schema, table_name, table_type, engine FROM information_schema.tables WHERE table_name IN "
    found = [(Name(*row[:2]), row[2], row[3]) for row in sql.rows(f"{query} ({places})", *tables)]
    cached = frozenset(name for name, kind, _ in found if kind in _TABLES)
    strangers = [(name, kind.lower()) for name, kind, _ in found if kind not in _TABLES]
    strangers += [(name, f"{engine} table") for name, _, engine in found if engine in _ELSEWHERE]
    return Catalog(cached, _rewrites(sql.rows(_REFERENCES), cached), tuple(strangers))


_Edge = tuple[str, frozenset[str], Name, str]  # what happens to a parent, its columns, the child, what happens to that


def _rewrites(rows: Iterable[tuple[Any, ...]], cached: frozenset[Name]) -> dict[Name, tuple[Rewrite, ...]]:
    constraints: dict[tuple[Any, ...], set[str]] = {}
    for child_schema, child, constraint, schema, parent, column, on_delete, on_update in rows:
        key = Name(child_schema, child), constraint, Name(schema, parent), on_delete, on_update
        constraints.setdefault(key, set()).add(column.lower())
    edges: dict[Name, list[_Edge]] = {}
    for (child, _, parent, on_delete, on_update), columns in constraints.items():
        # Somebody who may not see the rules is told nothing: then they are taken to be there.
        for kind, rule in (("delete", on_delete or "CASCADE"), ("update", on_update or "CASCADE")):
            if rule == "CASCADE" or rule.startswith("SET"):
                effect = "delete" if (kind, rule) == ("delete", "CASCADE") else "update"
                edges.setdefault(parent, []).append((kind, frozenset(columns), child, effect))
    found = {}
    for parent, direct in edges.items():
        reached = [
            Rewrite(kind, columns, _reach(edges, child, effect) & cached) for kind, columns, child, effect in direct
        ]
        reached = [each for each in reached if each.tables]
        if reached:
            found[parent] = tuple(reached)
    return found


def _reach(edges: Mapping[Name, Sequence[_Edge]], start: Name, change: str) -> frozenset[Name]:
    seen = set()
    waiting = [(start, change)]
    while waiting:
        at = waiting.pop()
        if at not in seen:
            seen.add(at)
            waiting += [(child, effect) for kind, _, child, effect in edges.get(at[0], ()) if kind == at[1]]
    return frozenset(name for name, _ in seen)


def kept_bytes(sql: Wire, mark: Mark) -> int:
    """Return how far the log goes beyond a mark."""
    names = [(row[0], int(row[1])) for row in sql.rows("SHOW BINARY LOGS")]
    return max(0, sum(size for name, size in names if name >= mark.file) - mark.position)


def lead(sql: Wire, name: str, database: str) -> bool:
    """Return whether no other follower of that name leads. The lock ends when its session was silent for too long."""
    sql.rows(f"SET SESSION wait_timeout = {LOCK_SECONDS}")
    digest = hashlib.blake2b(json.dumps([database, name]).encode(), digest_size=16).hexdigest()
    return sql.rows("SELECT GET_LOCK(%s, 0)", f"sqlmodel_cache {digest}") == [(1,)]


def await_visible(sql: Wire, name: str, database: str) -> None:
    """Return when whatever is in the log by now is visible to whoever looks: when a transaction after it has committed.

    1 W: COMMIT is in the log   2 F: sees it, invalidates   3 R: lease, SELECT: old, fill   4 W: visible to others
    The row would be stale until its TTL. But transactions become visible in the order in which they are in the log.
    """
    sql.rows(f"UPDATE {_table(database)} SET ticks = ticks + 1 WHERE name = %s", name)  # noqa: S608


def remember(sql: Wire, name: str, database: str, mark: Mark) -> None:
    """Leave word for the next follower."""
    fields = "server = %s, file = %s, position = %s, began = %s, tables = %s"
    sql.rows(f"UPDATE {_table(database)} SET {fields} WHERE name = %s", *astuple(mark), name)  # noqa: S608


def problems(state: State, database: str, names: Iterable[str]) -> Iterator[Problem]:
    """Yield what nobody but an administrator can mend, and how."""
    said = state.variables.get
    if said("log_bin") != "ON":
        yield Problem(
            "the server writes no binary log",
            "in its configuration, below [mysqld]: log_bin = binlog and a server_id of its own; then restart it",
        )
        return
    if said("server_id", "0") == "0":
        yield Problem("server_id is 0", "SET GLOBAL server_id = 1, and in the configuration, below [mysqld]")
    for name, wanted in (
        ("binlog_format", "ROW"),
        ("binlog_row_metadata", "FULL"),
        ("log_bin_compress", "OFF"),
        ("binlog_transaction_compression", "OFF"),
        ("binlog_order_commits", "ON"),
    ):
        value = said(name)
        if value is None and name == "binlog_row_metadata":
            yield Problem("the server does not name columns in its log", "upgrade it: MariaDB 10.5, MySQL 8.0.14")
        elif value not in (None, wanted):
            yield Problem(
                f"{name} is {value}",
                f"SET GLOBAL {name} = {wanted}, and in the configuration, below [mysqld]; sessions that are open may "
                "keep what they had",
            )
    if said("read_only", "OFF") not in ("OFF", "0"):
        yield Problem("the server is read-only", "give the URL of the primary")
    if state.replicates and said("log_slave_updates") == "OFF":
        yield Problem(
            "the server replicates another, and its log leaves that out",
            "log_slave_updates = ON in its configuration, below [mysqld]; then restart it",
        )
    if said("wsrep_on") == "ON":
        yield Problem(
            "the server is a node of a Galera cluster, whose nodes show a commit at different times",
            "do not follow it: the TTL bounds what others write",
        )
    if state.passes_over is not None:
        yield Problem(
            f"the log leaves out database {state.passes_over}",
            "remove binlog_do_db and binlog_ignore_db from the configuration, and restart the server",
        )
    if said("lower_case_table_names", "0") != "0":
        for each in sorted({name for name in (database, *names) if name != name.lower()}):
            yield Problem(f"the server writes {each!r} in lower case", "name the table or schema so in the model, too")
    yield from _missing_rights(state, database)


def _missing_rights(state: State, database: str) -> Iterator[Problem]:
    granted = [found for found in map(_GRANT.match, state.grants) if found]

    def has(right: str, *places: str) -> bool:
        rights = [(found[1].upper().split(", "), found[2]) for found in granted]
        return any(place in places and (right in given or "ALL PRIVILEGES" in given) for given, place in rights)

    if not has("REPLICATION SLAVE", "*.*"):
        yield Problem("the user may not read the log", "GRANT REPLICATION SLAVE ON *.* TO the user itself, not a role")
    if state.end is None:
        yield Problem(
            "the user may not ask where the log ends",
            "GRANT BINLOG MONITOR ON *.* TO the user (on MySQL: REPLICATION CLIENT)",
        )
    escaped = database.replace("_", "\\_").replace("%", "\\%")
    if not has("SELECT", "*.*", f"{quoted(database)}.*", f"{quoted(escaped)}.*"):
        yield Problem(
            "the user may not see all tables of the database, so a foreign key might change rows unseen",
            f"GRANT SELECT, REFERENCES ON {quoted(database)}.* TO the user itself, not a role",
        )


_GRANT = re.compile(r"GRANT (.+?) ON (.+?) TO ")


def blind_spots(found: Catalog) -> Iterator[Problem]:
    """Yield what cannot be followed, beside all that can."""
    for name, kind in found.strangers:
        yield shown_elsewhere(".".join(name), kind)


def missing(state: State) -> Iterator[Problem]:
    """Yield what the setup would mend."""
    if not state.prepared:
        yield Problem("the follower has no memory", SETUP)


def setup_sql(state: State, sql: Wire, name: str, database: str) -> list[str]:
    """Return the statements that are still needed to follow."""
    if state.prepared:
        return []
    return [
        f"CREATE TABLE IF NOT EXISTS {_table(database)} (name varchar(190) PRIMARY KEY, server varchar(190), "
        "file varchar(512), position bigint, began bigint, tables varchar(64), ticks bigint NOT NULL DEFAULT 0) "
        "ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        f"INSERT INTO {_table(database)} (name) VALUES ({sql.escape(name)})",  # noqa: S608
    ]


def teardown_sql(state: State, sql: Wire, name: str, database: str) -> list[str]:
    """Return the statements that leave nothing behind: the table goes with its last row."""
    if not state.prepared:
        return []
    others = sql.rows(f"SELECT 1 FROM {_table(database)} WHERE name <> %s LIMIT 1", name)  # noqa: S608
    if others:
        return [f"DELETE FROM {_table(database)} WHERE name = {sql.escape(name)}"]  # noqa: S608
    return [f"DROP TABLE {_table(database)}"]


def quoted(name: str) -> str:
    """Return a name as MySQL writes it."""
    escaped = name.replace("`", "``")
    return f"`{escaped}`"


def _table(database: str) -> str:
    return f"{quoted(database)}.{TABLE}"


_REFERENCES = """
SELECT k.table_schema, k.table_name, k.constraint_name, k.referenced_table_schema, k.referenced_table_name,
  k.referenced_column_name, r.delete_rule, r.update_rule
FROM information_schema.key_column_usage k
LEFT JOIN information_schema.referential_constraints r
  ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name AND r.table_name = k.table_name
WHERE k.referenced_table_name IS NOT NULL
"""
