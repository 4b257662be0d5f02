"""Writes to a parent that make the database itself change its children."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import delete, insert, text, update
from writes.entry import ALL, POSTGRES, SQLITE, Entry, Row, Via, rows
from writes.tables import BaseCamp, Hero, Node, Part, Post, Robot, Tag, Team, table_of

TEAM_1 = [*rows(Team, 1), *rows(Hero, 1, 2), *rows(Robot, 1), *rows(Part, 1), *rows(Post, 1)]
RENAMED = [*rows(Team, 1, 9), *rows(Hero, 1, 2), *rows(Post, 1)]
EVERYTHING = [*rows(Hero, 1, 2, 3), *rows(Robot, 1, 2), *rows(Part, 1, 2), *rows(Post, 1, 2)]

# name, as a construct, as text, what it changes
CASCADES: list[tuple[str, Any, str, list[Row]]] = [
    ("delete", delete(table_of(Team)).where(table_of(Team).c.id == 1), "DELETE FROM w_team WHERE id = 1", TEAM_1),
    (
        "pk-update",
        update(table_of(Team)).where(table_of(Team).c.id == 1).values(id=9),
        "UPDATE w_team SET id = 9 WHERE id = 1",
        RENAMED,
    ),
    (
        "uncached-middle",
        delete(table_of(BaseCamp)).where(table_of(BaseCamp).c.id == 1),
        "DELETE FROM w_base WHERE id = 1",
        [*rows(Robot, 1), *rows(Part, 1)],
    ),
    (
        "uncached-middle-pk-update",
        update(table_of(BaseCamp)).where(table_of(BaseCamp).c.id == 1).values(id=9),
        "UPDATE w_base SET id = 9 WHERE id = 1",
        rows(Robot, 1),
    ),
    (
        "set-null",
        delete(table_of(Robot)).where(table_of(Robot).c.id == 1),
        "DELETE FROM w_robot WHERE id = 1",
        [*rows(Robot, 1), *rows(Part, 1)],
    ),
    (
        "set-null-on-update",
        update(table_of(Robot)).where(table_of(Robot).c.id == 1).values(id=9),
        "UPDATE w_robot SET id = 9 WHERE id = 1",
        [*rows(Robot, 1, 9), *rows(Part, 1)],
    ),
    (
        "tree",
        delete(table_of(Node)).where(table_of(Node).c.id == 1),
        "DELETE FROM w_node WHERE id = 1",
        rows(Node, 1, 2, 3),
    ),
    (
        "branch",
        delete(table_of(Node)).where(table_of(Node).c.id == 2),
        "DELETE FROM w_node WHERE id = 2",
        rows(Node, 2, 3),
    ),
    ("secondary", delete(table_of(Tag)).where(table_of(Tag).c.id == 1), "DELETE FROM w_tag WHERE id = 1", rows(Tag, 1)),
    ("harmless", update(table_of(Team)).values(name="n"), "UPDATE w_team SET name = 'n'", rows(Team, 1, 2, 3)),
]


def _cascades() -> Iterator[Entry]:
    vias: tuple[Via, ...] = ("session", "connection", "autocommit")
    for name, construct, sql, changes in CASCADES:
        for via in vias:
            yield Entry("cascade", name, lambda c, s=construct: c.execute(s), changes, via)
            yield Entry("cascade-text", name, lambda c, s=sql: c.execute(text(s)), changes, via)
    replace = insert(table_of(Team)).prefix_with("OR REPLACE").values(id=1, name="n")
    yield Entry("cascade", "insert-or-replace", lambda c: c.execute(replace), TEAM_1, "connection", SQLITE)


def _unit_of_work() -> Iterator[Entry]:
    def delete_base(session: Any) -> None:
        session.delete(session.get(BaseCamp, 1))

    def move_team(session: Any) -> None:
        session.execute(update(Team).where(Team.id == 1).values(id=9))

    yield Entry("cascade-orm", "uncached-middle", delete_base, [*rows(Robot, 1), *rows(Part, 1)])
    yield Entry("cascade-orm", "pk-update", move_team, RENAMED)
    yield Entry("cascade-orm", "bulk-delete", lambda s: s.execute(delete(Team).where(Team.name == "red")), TEAM_1)


def _truncate() -> Iterator[Entry]:
    def run(sql: str) -> Callable[[Any], Any]:
        return lambda connection: connection.exec_driver_sql(sql)

    teams = rows(Team, 1, 2, 3)
    yield Entry(
        "cascade-truncate", "teams", run("TRUNCATE w_team CASCADE"), [*teams, *EVERYTHING], "connection", POSTGRES
    )
    yield Entry(
        "cascade-truncate",
        "middle",
        run("truncate table w_base cascade"),
        [*rows(Robot, 1, 2), *rows(Part, 1, 2)],
        "connection",
        POSTGRES,
    )
    yield Entry(
        "cascade-truncate",
        "set-null",
        run("TRUNCATE w_robot\nRESTART IDENTITY\nCASCADE"),
        [*rows(Robot, 1, 2), *rows(Part, 1, 2)],
        "autocommit",
        POSTGRES,
    )


ENTRIES = [*_cascades(), *_unit_of_work(), *_truncate()]
assert all(entry.on for entry in ENTRIES), ALL
