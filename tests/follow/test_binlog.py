"""MySQL's and MariaDB's binary log: whoever writes, and however, a row that has changed is not served as it was."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import servers
from follow.maria import Card, Place, Shout, following, place_on
from follow.test_stream import hit
from models import Badge, Gadget, Hero, Team

from sqlmodel_cache import SQLModelCache

ID = uuid.UUID("5a0d6d3e-3e0c-4b7c-9c5a-0f6d1f1e2a00")  # ends with a zero, which the log leaves out


@pytest.fixture
def place(maria: servers.MariaServer) -> Iterator[Place]:
    """A database with empty tables and nothing set up."""
    with place_on(maria) as made:
        yield made


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
    "ALTER TABLE hero ADD COLUMN more int DEFAULT 7": HERO,
    "RENAME TABLE hero TO hero2; RENAME TABLE hero2 TO hero": HERO,
    "SET SESSION binlog_row_image = MINIMAL; UPDATE hero SET name = 'new' WHERE id = 1; "
    "UPDATE hero SET id = 8 WHERE id = 2; SET SESSION binlog_row_image = FULL": [(Hero, 1), (Hero, 2)],
    "UPDATE tick SET n = 7": [],
}


@pytest.mark.parametrize("statement", WRITES)
def test_change_of_others_is_a_miss_and_nothing_else_is(place: Place, statement: str) -> None:
    """A statement of another program makes the rows that it has changed misses; their neighbours stay hits."""
    SQLModelCache.configure()
    place.write(ROWS)
    with following(place):
        for _ in range(2):
            for model, pk in GETS:
                hit(place.engine, model, pk)
        assert all(hit(place.engine, model, pk)[0] for model, pk in GETS)
        place.write(statement)
        place.catch_up()
        missed = [key for key in GETS if not hit(place.engine, *key)[0]]
        assert missed == [key for key in GETS if key in WRITES[statement]]
