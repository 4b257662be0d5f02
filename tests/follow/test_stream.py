"""Whoever writes, and however: a row that PostgreSQL has changed is not served as it was."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import psycopg
import pytest
from follow.conftest import catch_up, eventually, following
from follow.tables import City, Engineer, Event, Full, Indexed, Person
from models import Badge, Gadget, Hero, Sample, Team
from sqlalchemy import Engine, inspect
from sqlmodel import Session

from sqlmodel_cache import MemoryTransport, SQLModelCache

DAY = datetime.date(2021, 2, 3)
OLD_DAY = datetime.date(2019, 2, 3)
ID = uuid.UUID("5a0d6d3e-3e0c-4b7c-9c5a-0f6d1f1e2a3b")

ROWS = f"""
INSERT INTO team VALUES (1, 'one'), (2, 'two');
INSERT INTO hero VALUES (1, 'a', 1, 1), (2, 'b', 2, 1), (3, 'c', 3, 2);
INSERT INTO gadget VALUES ('it''s: a%', 1, 'x'), ('b', 2, 'y');
INSERT INTO follow_event VALUES ('{DAY}', '{ID}', 'x'), ('{OLD_DAY}', '{ID}', 'y');
INSERT INTO follow_city VALUES (1, 'x');
INSERT INTO follow_capital VALUES (2, 'y', 'z');
INSERT INTO follow_full VALUES (1, 'x'), (2, 'y');
INSERT INTO follow_indexed VALUES (1, 'x'), (2, 'y');
INSERT INTO follow_person VALUES (1, 'person', 'x'), (2, 'engineer', 'y');
INSERT INTO follow_engineer VALUES (2, 's');
INSERT INTO badge VALUES ('there', 'x');
"""

GETS: list[tuple[type, Any]] = [
    *((Team, pk) for pk in (1, 2, 9)),
    *((Hero, pk) for pk in (1, 2, 3, 9)),
    *((Gadget, pk) for pk in (("it's: a%", 1), ("b", 2), ("b", 3))),
    *((Event, (day, ID)) for day in (DAY, OLD_DAY)),
    *((City, pk) for pk in (1, 2, 9)),
    *((Full, pk) for pk in (1, 2, 9)),
    *((Indexed, pk) for pk in (1, 2, 9)),
    *((Person, pk) for pk in (1, 2)),
    (Engineer, 2),
    *((Badge, code) for code in ("there", "not there")),
]

# What is written, and which of the gets above must be misses then; all others must still be hits.
HERO, TEAM = ([(model, pk) for model, pk in GETS if model is wanted] for wanted in (Hero, Team))
WRITES: dict[str, list[tuple[type, Any]]] = {
    "UPDATE hero SET name = 'new' WHERE id = 1": [(Hero, 1)],
    "UPDATE hero SET name = 'new' WHERE age > 1": [(Hero, 2), (Hero, 3)],
    "DELETE FROM hero WHERE id = 2": [(Hero, 2)],
    "DELETE FROM team WHERE id = 1": [(Team, 1), (Hero, 1), (Hero, 2)],
    "UPDATE hero SET id = 9 WHERE id = 3": [(Hero, 3)],
    "INSERT INTO hero VALUES (1, 'new', 1, 1) ON CONFLICT (id) DO UPDATE SET name = excluded.name": [(Hero, 1)],
    "MERGE INTO hero USING team ON hero.id = team.id WHEN MATCHED THEN UPDATE SET name = 'new'": [(Hero, 1), (Hero, 2)],
    "BEGIN; UPDATE hero SET name = 'a' WHERE id = 1; SAVEPOINT s; UPDATE hero SET name = 'b' WHERE id = 2; "
    "ROLLBACK TO s; UPDATE hero SET name = 'c' WHERE id = 3; COMMIT": [(Hero, 1), (Hero, 3)],
    "BEGIN; UPDATE hero SET name = 'a' WHERE id = 1; ROLLBACK": [],
    "INSERT INTO hero VALUES (9, 'new', 1, 1)": [],
    "TRUNCATE hero": HERO,
    "TRUNCATE team CASCADE": HERO + TEAM,
    "DO $$ BEGIN UPDATE hero SET name = 'new' WHERE id = 1; END $$": [(Hero, 1)],
    "UPDATE gadget SET label = 'new' WHERE number = 1": [(Gadget, ("it's: a%", 1))],
    "UPDATE gadget SET number = 3 WHERE number = 2": [(Gadget, ("b", 2))],
    f"UPDATE follow_event SET note = 'new' WHERE day = '{DAY}'": [(Event, (DAY, ID))],
    f"UPDATE follow_event_old SET note = 'new' WHERE day = '{OLD_DAY}'": [(Event, (OLD_DAY, ID))],
    f"UPDATE follow_event SET day = '2018-01-01' WHERE day = '{DAY}'": [(Event, (DAY, ID))],
    "UPDATE follow_capital SET note = 'new'": [(City, 2)],
    "UPDATE follow_city SET note = 'new' WHERE id = 1": [(City, 1)],
    "DELETE FROM follow_city": [(City, 1), (City, 2)],
    "UPDATE follow_full SET note = 'new' WHERE id = 1": [(Full, 1)],
    "UPDATE follow_full SET id = 9 WHERE id = 1": [(Full, 1)],
    "DELETE FROM follow_full WHERE id = 2": [(Full, 2)],
    "UPDATE follow_indexed SET id = 9 WHERE id = 1": [(Indexed, 1), (Indexed, 2)],
    "DELETE FROM follow_indexed WHERE id = 2": [(Indexed, 1), (Indexed, 2)],
    "UPDATE follow_person SET note = 'new' WHERE id = 2": [(Person, 2), (Engineer, 2)],
    "UPDATE follow_engineer SET skill = 'new' WHERE id = 2": [(Person, 2), (Engineer, 2)],
    "INSERT INTO badge VALUES ('not there', 'x')": [(Badge, "not there")],
    "DELETE FROM badge": [(Badge, "there")],
    "UPDATE badge SET code = 'not there'": [(Badge, "there"), (Badge, "not there")],
}


def see(database: Engine, model: type, pk: Any) -> Any:
    """Return the loaded columns of what a new session gets, or None."""
    with Session(database) as session:
        found = session.get(model, pk)
        return None if found is None else dict(sorted(inspect(found).dict.items(), key=lambda item: str(item[0])))


def plain(found: dict[str, Any] | None) -> Any:
    """Return columns without SQLAlchemy's state."""
    return None if found is None else {key: value for key, value in found.items() if not key.startswith("_")}


def hit(database: Engine, model: type, pk: Any) -> tuple[bool, Any]:
    """Return whether a get was a hit, and what it returned."""
    hits = SQLModelCache.stats().hits
    found = plain(see(database, model, pk))
    return SQLModelCache.stats().hits > hits, found


def truth(database: Engine, model: type, pk: Any) -> Any:
    """Return what the database says."""
    with Session(database) as session:
        found = session.get(model, pk, execution_options={"cache": False})
        return plain(None if found is None else dict(inspect(found).dict))


@pytest.mark.parametrize("statement", WRITES)
def test_change_of_others_is_a_miss_and_nothing_else_is(
    database: Engine, outside: psycopg.Connection[Any], statement: str
) -> None:
    """A statement of another program makes the rows that it has changed misses; their neighbours stay hits."""
    outside.execute(ROWS)
    SQLModelCache.configure()
    with following(database):
        catch_up(outside)
        for model, pk in GETS * 2:
            see(database, model, pk)
        warm = [(model, pk) for model, pk in GETS if hit(database, model, pk)[0]]
        assert len(warm) == len([get for get in GETS if get[1] not in (9, ("b", 3))])
        outside.execute(statement.encode())
        catch_up(outside)
        for model, pk in GETS:
            was_hit, found = hit(database, model, pk)
            assert found == truth(database, model, pk), (model, pk)
            assert was_hit == ((model, pk) in warm and (model, pk) not in WRITES[statement]), (model, pk)


def test_copy_and_a_trigger_of_the_database_are_followed(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """COPY fills a key that was cached as absent; a trigger changes a row that no program has named."""
    SQLModelCache.configure()
    outside.execute(ROWS)
    outside.execute(
        "CREATE FUNCTION rename() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN UPDATE hero SET name = 'by trigger' WHERE id = 2; RETURN NULL; END $$; "
        "CREATE TRIGGER renames AFTER INSERT ON badge FOR EACH ROW EXECUTE FUNCTION rename()"
    )
    try:
        with following(database):
            catch_up(outside)
            assert hit(database, Badge, "not there") == (False, None)
            assert hit(database, Badge, "not there") == (True, None)
            see(database, Hero, 2)
            with outside.cursor().copy("COPY badge FROM STDIN") as copy:
                copy.write_row(("not there", "now"))
            catch_up(outside)
            assert hit(database, Badge, "not there") == (False, {"code": "not there", "label": "now"})
            assert hit(database, Hero, 2)[1]["name"] == "by trigger"
    finally:
        outside.execute("DROP FUNCTION rename CASCADE")


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE follow_event_old",
        "ALTER TABLE follow_event DETACH PARTITION follow_event_old",
        "DROP TABLE follow_event_old",
        "ALTER TABLE follow_full ALTER note TYPE text USING 'new'",
        "ALTER TABLE follow_full RENAME note TO was; ALTER TABLE follow_full ADD note text DEFAULT 'new'",
        "DROP TABLE follow_full; CREATE TABLE follow_full (id int PRIMARY KEY, note text)",
        "ALTER TABLE follow_capital NO INHERIT follow_city",
    ],
)
def test_change_that_no_row_tells_is_followed(
    database: Engine, outside: psycopg.Connection[Any], statement: str
) -> None:
    """What PostgreSQL does not send as rows shows in its catalog, and invalidates the table."""
    SQLModelCache.configure()
    outside.execute(ROWS)
    keys: list[tuple[type, Any]] = [(Event, (OLD_DAY, ID)), (Full, 1), (City, 2)]
    with following(database) as running:
        for model, pk in keys * 2:
            see(database, model, pk)
        before = running.stats.tables
        assert all(hit(database, model, pk)[0] for model, pk in keys)
        outside.execute(statement.encode())
        eventually(lambda: running.stats.tables > before)
        changed = [key for key in keys if not hit(database, *key)[0]]
        assert len(changed) == 1
        assert all(hit(database, *key)[1] == truth(database, *key) for key in keys)


def test_toasted_values_that_did_not_change_do_not_matter(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """An UPDATE beside a large value that is stored elsewhere names its row, though it does not send the value."""
    SQLModelCache.configure(MemoryTransport())
    outside.execute("ALTER TABLE team ALTER name SET STORAGE EXTERNAL; ALTER TABLE team ADD other int")
    outside.execute("INSERT INTO team VALUES (1, repeat('x', 100000), 0), (2, 'two', 0)")
    with following(database):
        catch_up(outside)
        for pk in (1, 2, 1, 2):
            see(database, Team, pk)
        outside.execute("UPDATE team SET other = 1 WHERE id = 1")
        catch_up(outside)
        assert [hit(database, Team, pk)[0] for pk in (1, 2)] == [False, True]


def test_every_type_of_a_key_has_the_text_that_readers_use(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """A UUID's text in the log is turned into the value that the library's own keys are made of."""
    SQLModelCache.configure()
    outside.execute(
        "INSERT INTO sample SELECT %s, 1.50, '2021-01-01', now(), now(), '1 day', 'RED', 0.5, 'x', true, '{}'", (ID,)
    )
    with following(database):
        catch_up(outside)
        see(database, Sample, ID)
        assert hit(database, Sample, ID)[0]
        outside.execute("UPDATE sample SET amount = 2")
        catch_up(outside)
        assert hit(database, Sample, ID)[0] is False
