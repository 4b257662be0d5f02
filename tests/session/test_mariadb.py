"""The library on MariaDB: what is filled, served and invalidated there as on the databases that all other tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import servers
from conftest import Log, Store
from models import Badge, Gadget, Hero, Team, add_hero, get_hero
from sqlalchemy import Engine, event, text, update
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import SQLModelCache


@pytest.fixture
def engine(maria: servers.MariaServer) -> Iterator[Engine]:
    """An engine on MariaDB, with empty tables."""
    made = create_engine(maria.url)
    tables = [model.__table__ for model in (Team, Hero, Gadget, Badge)]  # type: ignore[attr-defined]
    SQLModel.metadata.drop_all(made, tables=tables)
    SQLModel.metadata.create_all(made, tables=tables)
    yield made
    SQLModel.metadata.drop_all(made, tables=tables)
    made.dispose()


@pytest.mark.usefixtures("cache")
def test_hit_asks_the_database_nothing(engine: Engine, sql: Log) -> None:
    """Neither a statement nor a connection."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    sql.take()
    checkouts = sql.checkouts
    assert (get_hero(engine, pk).name, get_hero(engine, pk).age) == ("Rusty", 48)
    assert (sql.take(), sql.checkouts) == ([], checkouts)
    assert SQLModelCache.stats().hits == 2


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("how", ["flush", "update()", "text()", "engine"])
def test_commit_invalidates(engine: Engine, how: str) -> None:
    """Whichever way the row was written, and not before the commit."""
    pk, other = add_hero(engine), add_hero(engine)
    for each in (pk, other) * 2:
        get_hero(engine, each)
    with Session(engine) as session:
        if how == "flush":
            session.get_one(Hero, pk).name = "new"
            session.flush()
        elif how == "update()":
            session.execute(update(Hero).where(Hero.id == pk).values(name="new"))  # type: ignore[arg-type]
        elif how == "text()":
            session.execute(text(f"UPDATE hero SET name = 'new' WHERE id = {pk}"))
        else:
            session.connection().exec_driver_sql(f"UPDATE hero SET name = 'new' WHERE id = {pk}")
        assert get_hero(engine, pk).name == "Rusty"
        session.commit()
    assert get_hero(engine, pk).name == "new"
    assert get_hero(engine, other).name == "Rusty"


@pytest.mark.usefixtures("cache")
def test_statement_that_commits_by_itself_invalidates(engine: Engine) -> None:
    """TRUNCATE, and what was written before it in its transaction."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with engine.connect() as connection:
        connection.exec_driver_sql("TRUNCATE hero")
        with Session(engine) as session:
            assert session.get(Hero, pk) is None


@pytest.mark.usefixtures("cache")
def test_rollback_leaves_what_was_cached(engine: Engine) -> None:
    """And what it has undone was never seen."""
    pk = add_hero(engine)
    with Session(engine) as session:
        session.get_one(Hero, pk).name = "new"
        session.flush()
        session.rollback()
    for _ in range(2):
        assert get_hero(engine, pk).name == "Rusty"
    assert SQLModelCache.stats().hits == 2


@pytest.mark.usefixtures("cache")
def test_rows_that_the_database_deletes_are_invalidated(engine: Engine) -> None:
    """By a foreign key with ON DELETE CASCADE."""
    with Session(engine) as session:
        session.add(Team(id=1, name="one"))
        session.flush()
        session.add(Hero(id=1, name="a", team_id=1))
        session.commit()
    get_hero(engine, 1)
    with Session(engine) as session:
        session.delete(session.get_one(Team, 1))
        session.commit()
    with Session(engine) as session:
        assert session.get(Hero, 1) is None


@pytest.mark.usefixtures("cache")
def test_snapshot_that_is_merely_the_default_does_not_fill_what_it_sees(engine: Engine) -> None:
    """REPEATABLE READ is MariaDB's default: a transaction that began before a commit does not store the old row."""
    pk, other = add_hero(engine), add_hero(engine)
    with Session(engine) as old:
        old.connection().exec_driver_sql("SELECT count(*) FROM hero")  # begins the snapshot
        with Session(engine) as session:
            session.get_one(Hero, pk).name = "new"
            session.commit()
        assert old.get_one(Hero, pk).name == "Rusty"
        assert old.get_one(Hero, other).name == "Rusty"
    assert get_hero(engine, pk).name == "new"


def test_text_of_another_case_is_not_served_as_the_same(engine: Engine, store: Store) -> None:
    """To its collation, two spellings of a key are one row; in the cache, only the row's own names it."""
    SQLModelCache.configure(store.transport)
    selects: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda conn, cursor, statement, *_: selects.append(statement))
    with Session(engine) as session:
        session.add(Gadget(owner="ann", number=1, label="x"))
        session.commit()
    for _ in range(2):
        with Session(engine) as session:
            assert session.get_one(Gadget, ("ANN", 1)).owner == "ann"
    with Session(engine) as session:
        session.get_one(Gadget, ("ann", 1)).label = "new"
        session.commit()
    with Session(engine) as session:
        assert session.get_one(Gadget, ("ANN", 1)).label == "new"
