"""MySQL's and MariaDB's binary log: whoever writes, and however, a row that has changed is not served as it was."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from follow.conftest import Following, eventually
from follow.maria import Card, Place, Shout, following
from follow.test_stream import hit
from models import Badge, Gadget, Hero, Team
from pymysqlreplication.row_event import TableMapEvent
from sqlmodel import create_engine

from sqlmodel_cache import SQLModelCache

ID = uuid.UUID("5a0d6d3e-3e0c-4b7c-9c5a-0f6d1f1e2a00")  # ends with a zero, which the log leaves out


ROWS = (
    "INSERT INTO team VALUES (1, 'one'), (2, 'two'); "
    "INSERT INTO hero VALUES (1, 'a', 1, 1), (2, 'b', 2, 1), (3, 'c', 3, 2); "
    "INSERT INTO gadget VALUES ('it''s: a%', 1, 'x'), ('b', 2, 'y'), ('é', 4, 'z'); "
    f"INSERT INTO follow_card VALUES ('{ID.hex}', 'x'); "
    "INSERT INTO follow_shout VALUES ('oh', 'x'), ('ah', 'y'); "
    "INSERT INTO badge VALUES ('there', 'x')"
)
GETS: list[tuple[type, Any]] = [
    *((Team, pk) for pk in (1, 2)),
    *((Hero, pk) for pk in (1, 2, 3)),
    *((Gadget, pk) for pk in (("it's: a%", 1), ("b", 2), ("é", 4))),
    (Card, ID),
    *((Shout, word) for word in ("oh", "ah")),
    *((Badge, code) for code in ("there", "not there")),
]
HERO, TEAM, BADGE = ([(model, pk) for model, pk in GETS if model is wanted] for wanted in (Hero, Team, Badge))
# What is written, and which of the gets above must be misses then; all others must still be hits.
WRITES: dict[str, list[tuple[type, Any]]] = {
    "UPDATE hero SET name = 'new' WHERE id = 1": [(Hero, 1)],
    "UPDATE hero SET name = 'new' WHERE age > 1": [(Hero, 2), (Hero, 3)],
    "DELETE FROM hero WHERE id = 2": [(Hero, 2)],
    "DELETE FROM team WHERE id = 1": [(Team, 1), *HERO],  # InnoDB deletes heroes, and the log does not say which
    "UPDATE team SET name = 'new' WHERE id = 1": [(Team, 1)],
    "UPDATE hero SET id = 9 WHERE id = 3": [(Hero, 3)],
    "INSERT INTO hero VALUES (1, 'new', 1, 1) ON DUPLICATE KEY UPDATE name = 'new'": [(Hero, 1)],
    "REPLACE INTO gadget VALUES ('b', 2, 'new')": [(Gadget, ("b", 2))],
    "BEGIN; UPDATE hero SET name = 'a2' WHERE id = 1; SAVEPOINT s; UPDATE hero SET name = 'b2' WHERE id = 2; "
    "ROLLBACK TO SAVEPOINT s; UPDATE hero SET name = 'c2' WHERE id = 3; COMMIT": [(Hero, 1), (Hero, 3)],
    "BEGIN; UPDATE hero SET name = 'new' WHERE id = 1; ROLLBACK": [],
    "INSERT INTO hero VALUES (9, 'new', 1, 1)": [],
    "TRUNCATE hero": HERO,
    "DELETE FROM hero": HERO,
    "UPDATE gadget SET label = 'new' WHERE number = 1": [(Gadget, ("it's: a%", 1))],
    "UPDATE gadget SET label = 'new' WHERE number = 4": [(Gadget, ("é", 4))],
    "UPDATE gadget SET number = 3 WHERE number = 2": [(Gadget, ("b", 2))],
    "UPDATE follow_card SET note = 'new'": [(Card, ID)],
    "UPDATE follow_shout SET note = 'new' WHERE word = 'OH'": [(Shout, "oh")],
    "UPDATE follow_shout SET word = 'OH' WHERE word = 'oh'": [(Shout, "oh")],
    "INSERT INTO badge VALUES ('NOT THERE', 'x')": BADGE,  # to its collation, this is what was absent
    "ALTER TABLE hero COMMENT = 'x'": HERO,
    "RENAME TABLE hero TO hero2; RENAME TABLE hero2 TO hero": HERO,
    "SET SESSION binlog_row_image = MINIMAL; UPDATE hero SET name = 'new' WHERE id = 1; "
    "UPDATE hero SET id = 8 WHERE id = 2; SET SESSION binlog_row_image = FULL": [(Hero, 1), (Hero, 2)],
    "UPDATE tick SET n = 7": [],
}


def test_change_of_others_is_a_miss_and_nothing_else_is(place: Place) -> None:
    """A statement of another program makes the rows that it has changed misses; their neighbours stay hits."""
    SQLModelCache.configure()
    with following(place):
        for statement, changed in WRITES.items():
            place.renew(ROWS)
            for _ in range(2):
                for model, pk in GETS:
                    hit(place.engine, model, pk)
            assert [key for key in GETS if not hit(place.engine, *key)[0]] == []
            place.write(statement, of_root="SESSION" in statement)
            place.catch_up()
            missed = [key for key in GETS if not hit(place.engine, *key)[0]]
            assert missed == [key for key in GETS if key in changed], statement


def test_change_that_the_log_does_not_tell_by_rows_is_everything(place: Place) -> None:
    """Statements in the log's other format, distributed transactions, databases that are dropped."""
    SQLModelCache.configure()
    place.write("CREATE DATABASE other1", of_root=True)
    with following(place):
        for statement in (
            "SET SESSION binlog_format = STATEMENT; UPDATE hero SET name = 'new'; SET SESSION binlog_format = ROW",
            "XA START 'x'; UPDATE hero SET name = 'new'; XA END 'x'; XA PREPARE 'x'; XA COMMIT 'x'",
            "XA START 'x'; UPDATE hero SET name = 'new'; XA END 'x'; XA COMMIT 'x' ONE PHASE",
            "DROP DATABASE other1",
        ):
            place.renew(ROWS)
            place.warm(Hero, 1)
            place.write(statement, of_root=True)
            place.catch_up()
            assert not hit(place.engine, Hero, 1)[0], statement
            assert (place.name_of(1) == "new") == ("hero" in statement)


@pytest.mark.parametrize("column", ["varchar(20) COMPRESSED", "geometry"])
def test_column_that_cannot_be_read_makes_nothing_stale(place: Place, column: str) -> None:
    """A table with a column that the reader of the log does not know is followed like others, if not as sparingly."""
    SQLModelCache.configure()
    place.write(f"ALTER TABLE hero ADD COLUMN odd {column} FIRST; INSERT INTO hero (id, name) VALUES (1, 'a')")
    with following(place):
        place.warm(Hero, 1)
        place.write("UPDATE hero SET name = 'new'")
        place.catch_up()
        assert not hit(place.engine, Hero, 1)[0]


def test_key_in_an_encoding_of_doubt_is_the_tables(place: Place) -> None:
    """Python and the server do not agree on every character of every encoding."""
    SQLModelCache.configure()
    place.write("ALTER TABLE follow_shout MODIFY word varchar(50) CHARACTER SET sjis")
    place.write("INSERT INTO follow_shout VALUES ('oh', 'x')")
    with following(place) as running:
        place.warm(Shout, "oh")
        tables = running.stats.tables
        place.write("UPDATE follow_shout SET note = 'new'")
        place.catch_up()
        assert not hit(place.engine, Shout, "oh")[0]
        eventually(lambda: running.stats.tables > tables)


def test_event_that_cannot_be_read_is_everything(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that it describes are passed over."""
    original = TableMapEvent.__init__

    def describe(self: Any, packet: Any, size: Any, table_map: Any, *arguments: Any, **options: Any) -> None:
        original(self, packet, size, table_map, *arguments, **options)
        if self.table == "hero":
            del table_map[self.table_id]
            raise ValueError("not understood")

    SQLModelCache.configure()
    place.write(ROWS)
    with following(place):
        place.warm(Hero, 1)
        place.warm(Team, 1)
        monkeypatch.setattr(TableMapEvent, "__init__", describe)
        place.write("UPDATE hero SET name = 'new' WHERE id = 1")
        place.catch_up()
        assert hit(place.engine, Hero, 1)[1]["name"] == "new"
        assert not hit(place.engine, Team, 1)[0]


def test_unsigned_keys_are_read_as_such(place: Place) -> None:
    """Whatever stands before them in their table."""
    SQLModelCache.configure()
    place.write(
        "DROP TABLE hero; CREATE TABLE hero (y year, b bit(3), d decimal(5,2), f float, s set('x','y'), j json, "
        "t time(3), id int unsigned PRIMARY KEY, name text, age int unsigned, team_id int); "
        "INSERT INTO hero (id, name) VALUES (3000000000, 'a'), (3000000001, 'b')"
    )
    with following(place):
        place.warm(Hero, 3_000_000_000)
        place.warm(Hero, 3_000_000_001)
        place.write("UPDATE hero SET name = 'new' WHERE id = 3000000000")
        place.catch_up()
        assert not hit(place.engine, Hero, 3_000_000_000)[0]
        assert hit(place.engine, Hero, 3_000_000_001)[0]


def test_uuid_of_mariadb_is_read(place: Place) -> None:
    """Its own type has 16 bytes in the log."""
    SQLModelCache.configure()
    other = uuid.uuid4()
    place.write("ALTER TABLE follow_card MODIFY id uuid")
    place.write(f"INSERT INTO follow_card VALUES ('{ID}', 'x'), ('{other}', 'y')")
    engine = create_engine(place.server.url.replace("mysql+", "mariadb+"))
    made = SQLModelCache.follower(engine)
    made.source.setup()
    running = Following(made)
    try:
        eventually(running.leads)
        place.catch_up()
        for pk in (ID, other) * 2:
            hit(engine, Card, pk)
        place.write(f"UPDATE follow_card SET note = 'new' WHERE id = '{ID}'")
        place.catch_up()
        assert [hit(engine, Card, pk)[0] for pk in (ID, other)] == [False, True]
    finally:
        running.stop()
        engine.dispose()


def test_databases_of_a_server_are_told_apart(place: Place) -> None:
    """A table of the same name elsewhere is another, unless a session's `schema_translate_map` leads there."""
    SQLModelCache.configure()
    place.write("CREATE DATABASE other1; CREATE TABLE other1.hero LIKE app.hero", of_root=True)
    place.write("GRANT ALL ON other1.* TO app@'127.0.0.1'", of_root=True)
    place.write(
        "INSERT INTO hero (id, name) VALUES (1, 'here'); INSERT INTO other1.hero (id, name) VALUES (1, 'there')"
    )
    there = place.engine.execution_options(schema_translate_map={None: "other1"})
    with following(place):
        for engine in (place.engine, there) * 2:
            hit(engine, Hero, 1)
        place.write("UPDATE other1.hero SET name = 'new'")
        place.catch_up()
        assert hit(place.engine, Hero, 1)[0]
        assert hit(there, Hero, 1) == (False, hit(there, Hero, 1)[1])
        assert hit(there, Hero, 1)[1]["name"] == "new"
        place.write("TRUNCATE other1.hero")
        place.catch_up()
        assert hit(there, Hero, 1) == (False, None)


def test_foreign_keys_act_through_tables_that_are_not_cached(place: Place) -> None:
    """InnoDB's own changes are not in the log: what may be reached by them is stale, whichever table begins."""
    SQLModelCache.configure()
    action = "ON DELETE CASCADE ON UPDATE CASCADE"
    place.write(
        f"CREATE TABLE top (id int PRIMARY KEY, note text); CREATE TABLE mid (id int PRIMARY KEY, top_id int, "
        f"FOREIGN KEY (top_id) REFERENCES top (id) {action}); INSERT INTO top VALUES (1, 'x'); "
        f"INSERT INTO mid VALUES (1, 1)"
    )
    with following(place):
        place.write(f"ALTER TABLE hero ADD FOREIGN KEY (age) REFERENCES mid (id) {action}")
        place.renew("INSERT INTO hero VALUES (1, 'a', 1, NULL)")
        for statement, changes in (
            ("UPDATE top SET note = 'y'", False),
            ("UPDATE mid SET id = 2", True),
            ("DELETE FROM top", True),
        ):
            place.warm(Hero, 1)
            place.write(statement)
            place.catch_up()
            assert hit(place.engine, Hero, 1)[0] != changes, statement


def test_bulk_is_the_tables(place: Place) -> None:
    """Tens of thousands of rows in one transaction cost as many keys as the table has shards."""
    SQLModelCache.configure()
    place.write("INSERT INTO hero (id, name) SELECT seq, 'a' FROM seq_1_to_30000")
    with following(place) as running:
        place.warm(Hero, 7)
        tables = running.stats.tables
        place.write("UPDATE hero SET name = 'new'")
        place.catch_up()
        eventually(lambda: running.stats.tables > tables)
        assert running.stats.rows == 0
        assert place.name_of(7) == "new"
