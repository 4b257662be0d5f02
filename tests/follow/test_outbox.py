"""The outbox: the same promise where the log may not be read, on PostgreSQL and on an SQLite file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from follow.conftest import PATIENCE, Following, eventually
from follow.cut import Cut, Held
from follow.tables import forget, make
from follow.test_stream import hit
from models import Badge, Gadget, Hero, Team, add_hero, get_hero
from sqlalchemy import Column, Engine, Integer, Table, make_url
from sqlalchemy.orm import registry
from sqlmodel import SQLModel, create_engine

from sqlmodel_cache import CacheConfig, ConfigurationError, FollowerError, SQLModelCache

TESTS = Path(__file__).parents[1]


class Site:
    """A database, and somebody who writes to it without the library."""

    def __init__(self, engine: Engine, connect: Callable[[], Any]) -> None:
        self.engine = engine
        self.connect = connect

    def write(self, sql: str) -> None:
        """Execute statements in one transaction, from outside."""
        with closing(self.connect()) as connection:
            for statement in sql.split("; "):
                connection.execute(statement)
            connection.commit()

    def count(self) -> int:
        """Return how many notes there are."""
        with closing(self.connect()) as connection:
            return int(connection.execute("SELECT count(*) FROM sqlmodel_cache_outbox").fetchone()[0])

    def settle(self) -> None:
        """Wait until no note is left."""
        eventually(lambda: self.count() == 0)


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Each kind of database, with empty tables, and no log that could be followed."""
    if request.param == "sqlite":
        path = str(tmp_path / "site.db")
        engine = create_engine(f"sqlite:///{path}")
        SQLModel.metadata.create_all(engine)

        def connect() -> Any:
            connection = sqlite3.connect(path, timeout=PATIENCE)
            connection.execute("PRAGMA foreign_keys = on")
            return connection

        yield Site(engine, connect)
    else:
        url = request.getfixturevalue("postgres_url")
        engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
        forget(engine)
        make(engine)
        yield Site(engine, lambda: psycopg.connect(url))
        SQLModelCache.configure()
        SQLModelCache.follower(engine, outbox=True).source.teardown()
        forget(engine)
    engine.dispose()


class Noting(Following):
    """A follower of an outbox, that stops at the end of a block."""

    def __init__(self, site: Site, *, setup: bool = True) -> None:
        made = SQLModelCache.follower(site.engine, outbox=True)
        if setup:
            made.source.setup()
        super().__init__(made)

    def __enter__(self) -> Self:
        eventually(self.leads)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


ROWS = (
    "INSERT INTO team VALUES (1, 'one'), (2, 'two'); "
    "INSERT INTO hero VALUES (1, 'a', 1, 1), (2, 'b', 2, 1), (3, 'c', 3, 2); "
    "INSERT INTO gadget VALUES ('it''s: a%', 1, 'x'), ('b', 2, 'y')"
)
GETS: list[tuple[type, Any]] = [
    *((Team, pk) for pk in (1, 2)),
    *((Hero, pk) for pk in (1, 2, 3)),
    *((Gadget, pk) for pk in (("it's: a%", 1), ("b", 2))),
    (Badge, "not there"),
]
WRITES: dict[str, list[tuple[type, Any]]] = {
    "UPDATE hero SET name = 'new' WHERE id = 1": [(Hero, 1)],
    "UPDATE hero SET name = 'new' WHERE age > 1": [(Hero, 2), (Hero, 3)],
    "DELETE FROM team WHERE id = 1": [(Team, 1), (Hero, 1), (Hero, 2)],
    "UPDATE hero SET id = 9 WHERE id = 3": [(Hero, 3)],
    "UPDATE gadget SET label = 'new' WHERE number = 1": [(Gadget, ("it's: a%", 1))],
    "UPDATE gadget SET number = 3 WHERE number = 2": [(Gadget, ("b", 2))],
    "INSERT INTO badge VALUES ('not there', 'x')": [(Badge, "not there")],
    "DELETE FROM hero": [(Hero, 1), (Hero, 2), (Hero, 3)],
}


@pytest.mark.parametrize("statement", WRITES)
def test_change_of_others_is_a_miss_and_nothing_else_is(site: Site, statement: str) -> None:
    """A statement of another program makes the rows that it has changed misses; their neighbours stay hits."""
    SQLModelCache.configure()
    site.write(ROWS)
    with Noting(site):
        site.settle()
        for _ in range(2):
            for model, pk in GETS:
                hit(site.engine, model, pk)
        assert all(hit(site.engine, model, pk)[0] for model, pk in GETS)
        site.write(statement)
        site.settle()
        missed = [key for key in GETS if not hit(site.engine, *key)[0]]
        assert missed == [key for key in GETS if key in WRITES[statement]]


@pytest.mark.parametrize("site", ["postgresql"], indirect=True)  # SQLite has no TRUNCATE
def test_truncate_is_the_tables(site: Site) -> None:
    """PostgreSQL's TRUNCATE fires a trigger of its own."""
    SQLModelCache.configure()
    pk = add_hero(site.engine)
    with Noting(site) as running:
        site.settle()
        get_hero(site.engine, pk)
        before = running.stats.tables
        site.write("TRUNCATE hero")
        site.settle()
        assert hit(site.engine, Hero, pk) == (False, None)
        assert running.stats.tables > before


@pytest.mark.parametrize("site", ["postgresql"], indirect=True)  # SQLite keeps no word of what a table was
@pytest.mark.parametrize("while_following", [True, False])
def test_change_that_no_row_tells_is_followed(site: Site, while_following: bool) -> None:
    """A table that is another one than it was is invalidated; one who begins then does not know which it is."""
    SQLModelCache.configure()
    site.write(ROWS)
    change = "ALTER TABLE hero DROP COLUMN age; ALTER TABLE hero ADD COLUMN age int DEFAULT 7"
    with Noting(site) as running:
        eventually(lambda: running.stats.tables > 0)
        site.settle()
        for model, pk in ((Hero, 1), (Team, 1)) * 2:
            hit(site.engine, model, pk)
        assert hit(site.engine, Hero, 1)[0]
        if while_following:
            site.write(change)
            eventually(lambda: not hit(site.engine, Hero, 1)[0])
    if not while_following:
        site.write(change)
        with Noting(site, setup=False) as running:
            eventually(lambda: running.stats.tables > 0)
            assert not hit(site.engine, Hero, 1)[0]
    assert hit(site.engine, Hero, 1)[1]["age"] == 7
    assert hit(site.engine, Team, 1)[0] == while_following


@pytest.mark.parametrize("site", ["postgresql"], indirect=True)
def test_triggers_fire_for_whoever_writes(site: Site) -> None:
    """Also for what a subscription applies; one that somebody has switched off is said, and the setup mends it."""
    SQLModelCache.configure()
    pk = add_hero(site.engine)
    with Noting(site) as running:
        site.settle()
        get_hero(site.engine, pk)
        site.write("SET session_replication_role = replica; UPDATE hero SET name = 'new'")
        site.settle()
        assert get_hero(site.engine, pk).name == "new"
        site.write("ALTER TABLE hero DISABLE TRIGGER USER; UPDATE hero SET name = 'newer'")
        eventually(lambda: running.stats.problems)
        running.follower.source.setup()
        eventually(lambda: not running.stats.problems)
        site.settle()
        assert get_hero(site.engine, pk).name == "newer"


def test_nothing_is_forgotten_before_the_cache_has_acknowledged(site: Site) -> None:
    """Notes stay until they are invalidated, whoever follows then."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(site.engine)
    with Noting(site) as running:
        site.settle()
        get_hero(site.engine, pk)
        cache.cut = True
        site.write("UPDATE hero SET name = 'new'")
        eventually(lambda: running.stats.failures > 0)
        assert site.count() == 1
    assert site.count() == 1
    cache.cut = False
    with Noting(site, setup=False) as running:
        site.settle()
        assert (running.stats.rows > 0, running.stats.tables) == (True, 0)
        assert get_hero(site.engine, pk).name == "new"


def test_fill_does_not_overtake_a_change_of_others(site: Site) -> None:
    """A reader that has read the old row before the change fills after the invalidation: refused."""
    cache = Held()
    SQLModelCache.configure(cache)
    pk = add_hero(site.engine)
    with Noting(site):
        site.settle()
        reader = threading.Thread(target=get_hero, args=(site.engine, pk))
        reader.start()
        assert cache.arrived.wait(PATIENCE)
        site.write("UPDATE hero SET name = 'new'")
        site.settle()
        cache.let_go.set()
        reader.join(PATIENCE)
        assert SQLModelCache.stats().refused == 1


@pytest.mark.parametrize("site", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_transaction_that_commits_late_is_not_passed_over(site: Site) -> None:
    """Notes have numbers when they are written, and are seen when they are committed: in another order."""
    cache = Cut()
    SQLModelCache.configure(cache)
    first, second = add_hero(site.engine), add_hero(site.engine)
    with Noting(site) as running, closing(site.connect()) as early:
        site.settle()
        for pk in (first, second):
            get_hero(site.engine, pk)
        early.execute(f"UPDATE hero SET name = 'new' WHERE id = {first}")
        cache.cut = True
        site.write(f"UPDATE hero SET name = 'new' WHERE id = {second}")
        eventually(lambda: running.stats.failures > 0)  # it has read the second note
        early.commit()
        cache.cut = False
        site.settle()
        assert [get_hero(site.engine, pk).name for pk in (first, second)] == ["new", "new"]


def test_change_from_before_the_setup_is_invalidated(site: Site) -> None:
    """The setup notes whole tables, in the transaction that makes their triggers."""
    SQLModelCache.configure()
    pk = add_hero(site.engine)
    get_hero(site.engine, pk)
    site.write("UPDATE hero SET name = 'new'")
    with Noting(site):
        site.settle()
        assert get_hero(site.engine, pk).name == "new"


def test_setup_is_done_once_and_taken_back(site: Site) -> None:
    """A second setup does nothing, a teardown leaves nothing, and without a setup a follower does not begin."""
    SQLModelCache.configure()
    made = SQLModelCache.follower(site.engine, outbox=True)
    assert made.source.setup_sql() != []
    with pytest.raises(FollowerError, match="--outbox --setup"):
        made.run()
    made.source.setup()
    assert made.source.setup_sql() == []
    made.source.check()
    made.source.teardown()
    assert made.source.teardown_sql() == []
    site.write("UPDATE hero SET name = 'new'")


def test_another_takes_over(site: Site) -> None:
    """When one follower ends the other goes on, within five seconds."""
    SQLModelCache.configure()
    pk = add_hero(site.engine)
    with Noting(site) as first:
        second = Noting(site, setup=False)
        try:
            first.stop()
            assert eventually(second.leads) < 5
            get_hero(site.engine, pk)
            site.write("UPDATE hero SET name = 'new'")
            site.settle()
            assert get_hero(site.engine, pk).name == "new"
        finally:
            second.stop()


def test_sqlite_is_followed_by_an_outbox_only(tmp_path: Path) -> None:
    """It has no log to read; the error says what it has."""
    SQLModelCache.configure()
    with pytest.raises(ConfigurationError, match="outbox=True"):
        SQLModelCache.follower(f"sqlite:///{tmp_path}/x.db")


def test_command_sets_an_outbox_up(tmp_path: Path) -> None:
    """`--outbox --setup` on an SQLite file, with the SQL that was run."""
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    SQLModel.metadata.create_all(engine)
    engine.dispose()
    command = [sys.executable, "-m", "sqlmodel_cache.cli", "follow", f"sqlite:///{tmp_path}/x.db", "models"]
    command += ["--transport", "redis://localhost:1", "--outbox", "--setup"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CREATE TABLE sqlmodel_cache_outbox")


class ById:
    """Names the rows of a table by one column."""

    __cache_config__ = CacheConfig()


class ByNumber:
    """Names them by another, and caches absences."""

    __cache_config__ = CacheConfig(missing_ttl=60)


@pytest.fixture
def two_names() -> Iterator[None]:
    """A table whose rows have two names."""
    mappings = registry()
    table = Table("two_names", mappings.metadata, Column("id", Integer, primary_key=True), Column("number", Integer))
    mappings.map_imperatively(ById, table)
    mappings.map_imperatively(ByNumber, table, primary_key=[table.c.number])
    yield
    mappings.dispose()


def test_change_is_told_by_each_name_of_a_row(site: Site, two_names: None) -> None:
    """Classes that name the rows of a table by different columns, one of which caches absences, hear of each change."""
    SQLModelCache.configure()
    site.write("CREATE TABLE two_names (id int PRIMARY KEY, number int UNIQUE); INSERT INTO two_names VALUES (1, 9)")
    keys: list[tuple[type, Any]] = [(ById, 1), (ByNumber, 9), (ByNumber, 8)]
    try:
        with Noting(site):
            site.settle()
            for statement in ("UPDATE two_names SET id = id", "INSERT INTO two_names VALUES (2, 8)"):
                for _ in range(2):
                    for key in keys:
                        hit(site.engine, *key)
                assert all(hit(site.engine, *key)[0] for key in keys)
                site.write(statement)
                site.settle()
                missed = [key for key in keys if not hit(site.engine, *key)[0]]
                assert missed == (keys[2:] if "INSERT" in statement else keys[:2])
    finally:
        site.write("DROP TABLE two_names")
