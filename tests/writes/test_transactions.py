"""Only the outermost COMMIT counts, whoever sends it; and one that fails leaves nothing behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session
from writes.conftest import Workshop
from writes.entry import rows
from writes.reads import Recorder, got, in_database, missed, warm
from writes.tables import Code, Hero, Node, Team, table_of

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache._effects import Begin, End
from sqlmodel_cache._sqltext import ends_transaction, prepares

LEVELS = 5
SYNC = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
POSTGRES = pytest.mark.parametrize("engine", ["postgresql", "postgresql+asyncpg"], indirect=True)

HEROES = table_of(Hero)
AGE_1 = update(HEROES).where(HEROES.c.id == 1).values(age=HEROES.c.age + 1)


@pytest.fixture(autouse=True)
def transport() -> Recorder:
    """A configured transport that keeps what it is asked."""
    recorder = Recorder()
    SQLModelCache.configure(recorder)
    return recorder


def ages(bind: Engine | Connection) -> dict[int, int]:
    """Return what gets say of the heroes."""
    return {pk: row[2] for (_, pk), row in got(bind, rows(Hero, 1, 2, 3)).items()}


def write(session: Session, level: int) -> None:
    """Change a row in one of the ways that a session has."""
    pk = level % 3 + 1
    if level % 2:
        hero = session.get_one(Hero, pk)
        hero.age += 100
        session.flush()
    else:
        session.execute(update(Hero).where(Hero.id == pk).values(age=Hero.age + 1000))


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_savepoints_change_nothing_outside(engine: Engine, ending: str) -> None:
    """Five savepoints with writes, each released or rolled back: others see the old rows until COMMIT."""
    before = warm(engine, [Hero])
    for releases in itertools.product([True, False], repeat=LEVELS):
        with Session(engine) as session:
            write(session, 0)
            savepoints = []
            for level in range(LEVELS):
                savepoints.append(session.begin_nested())
                write(session, level + 1)
            for release in releases:
                savepoint = savepoints.pop()
                if release:
                    savepoint.commit()
                else:
                    savepoint.rollback()
                own = in_database(session.connection(), [Hero])
                assert got(session.connection(), own) == own
                assert got(engine, before) == before
            session.commit() if ending == "commit" else session.rollback()
        after = in_database(engine, [Hero])
        assert (after == before) == (ending == "rollback")
        assert got(engine, after) == after
        assert missed(engine, after) == []
        before = after


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_savepoint_without_a_transaction_commits_at_its_release(engine: Engine) -> None:
    """The sqlite3 module begins none before a SAVEPOINT, so its release commits, and no rollback undoes it."""
    warm(engine, [Hero])
    with Session(engine) as session:
        with session.begin_nested():
            write(session, 0)
        committed = in_database(engine, [Hero])
        assert got(engine, committed) == committed
        session.rollback()
    after = in_database(engine, [Hero])
    assert got(engine, after) == after


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "create_savepoint"])
@pytest.mark.parametrize("nested", [False, True])
def test_joined_session_commits_nothing(engine: Engine, mode: Any, nested: bool, ending: str) -> None:
    """A session on a connection with a transaction of its own leaves the COMMIT to that transaction."""
    before = warm(engine, [Hero])
    with engine.connect() as connection:
        outer = connection.begin()
        connection.execute(insert(table_of(Code)).values(id="nine", name="n"))
        if nested:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            write(session, 1)
            session.commit()
            write(session, 1)
            session.commit()
        assert got(engine, before) == before
        own = in_database(connection, [Hero])
        assert own != before
        assert got(connection, own) == own
        outer.commit() if ending == "commit" else outer.rollback()
    after = in_database(engine, [Hero])
    assert got(engine, after) == after
    assert (after == before) == (ending == "rollback")


def test_joined_session_in_full_control_commits(engine: Engine) -> None:
    """With `control_fully` the session's commit is the connection's."""
    before = warm(engine, [Hero])
    with engine.connect() as connection:
        connection.begin()
        with Session(connection, join_transaction_mode="control_fully") as session:
            write(session, 1)
            assert got(engine, before) == before
            session.commit()
        assert got(engine, before) == in_database(engine, [Hero]) != before


def test_joined_session_that_rolls_back(engine: Engine) -> None:
    """A rollback of the session ends the outer transaction in the default mode, and undoes it."""
    before = warm(engine, [Hero])
    with engine.connect() as connection, connection.begin() as outer:
        with Session(connection) as session:
            write(session, 1)
            session.rollback()
        assert not outer.is_active
    assert in_database(engine, [Hero]) == before
    assert got(engine, before) == before


@pytest.mark.parametrize("how", ["close", "exception", "invalidate"])
def test_session_that_ends_without_a_commit(engine: Engine, how: str) -> None:
    """Nothing was committed, so nothing is invalidated."""
    before = warm(engine, [Hero])
    session = Session(engine)
    write(session, 1)
    if how == "exception":
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            raise ZeroDivisionError
        session.close()
    else:
        session.close() if how == "close" else session.invalidate()
    assert in_database(engine, [Hero]) == before
    assert missed(engine, before) == []
    assert got(engine, before) == before


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_two_phase_on_one_connection(engine: Engine) -> None:
    """A two-phase transaction that was not prepared is committed in one."""
    before = warm(engine, [Hero])
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(AGE_1)
        assert got(engine, before) == before
        transaction.commit()
    assert ages(engine)[1] == 31


@SYNC
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_two_phase_session(engine: Engine, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a prepared transaction wrote is fenced around its second phase. A plain one plays the server's part."""
    dialect = engine.dialect
    prepared = []
    monkeypatch.setattr(dialect, "do_begin_twophase", lambda c, xid: dialect.do_begin(c.connection))
    monkeypatch.setattr(dialect, "do_prepare_twophase", lambda c, xid: prepared.append(xid))
    monkeypatch.setattr(dialect, "do_commit_twophase", lambda c, xid, *_: dialect.do_commit(c.connection))
    monkeypatch.setattr(dialect, "do_rollback_twophase", lambda c, xid, *_: dialect.do_rollback(c.connection))
    before = warm(engine, [Hero])
    with Session(engine, twophase=True) as session:
        write(session, 1)
        session.prepare()
        assert got(engine, before) == before
        session.commit() if ending == "commit" else session.rollback()
    assert len(prepared) == 1
    after = in_database(engine, [Hero])
    assert got(engine, before) == after
    assert (after == before) == (ending == "rollback")


def test_autocommit_commits_each_statement(engine: Engine, transport: Recorder) -> None:
    """Each statement is fenced by itself, and forgotten afterwards."""
    warm(engine, [Hero])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for age in (31, 32):
            transport.take()
            connection.execute(AGE_1)
            said = [type(effect) for effect in transport.take()]
            assert said == [Begin, End]
            assert ages(engine)[1] == age
        connection.rollback()
    assert ages(engine)[1] == 32


def test_autocommit_statement_that_fails_is_released(engine: Engine) -> None:
    """A constraint refuses it: the row is cached as before, one miss later."""
    before = warm(engine, [Team])
    change = update(table_of(Team)).where(table_of(Team).c.id == 1).values(id=2)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection, pytest.raises(IntegrityError):
        connection.execute(change)
    assert got(engine, before) == before
    assert missed(engine, before) == []


@SYNC
def test_autocommit_of_the_driver(engine: Engine, workshop: Workshop) -> None:
    """A connection that the application switched to autocommit behind SQLAlchemy's back commits each statement, too."""
    warm(engine, [Hero])
    arguments: dict[str, Any] = {"isolation_level": None} if workshop.name == "sqlite" else {"autocommit": True}
    other = create_engine(engine.url, connect_args=arguments)
    with other.connect() as connection:
        connection.execute(AGE_1)
        assert ages(engine)[1] == 31
        connection.rollback()
    assert ages(engine)[1] == 31
    other.dispose()


COMMITS = ["COMMIT", "commit;", "END", "  /* done */ Commit", "-- done\nCOMMIT", "/* a */ /* b */\n-- c\n end;"]


@pytest.mark.parametrize("sql", COMMITS)
def test_commit_in_text(engine: Engine, sql: str) -> None:
    """A COMMIT that a program sends by itself is one."""
    warm(engine, [Hero])
    with engine.connect() as connection:
        connection.execute(AGE_1)
        assert ages(engine)[1] == 30
        connection.exec_driver_sql(sql)
        assert ages(engine)[1] == 31
        connection.rollback()
    assert ages(engine)[1] == 31


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_commit_in_the_middle_of_text(engine: Engine, ending: str) -> None:
    """What stands behind a COMMIT in the same string belongs to the next transaction."""
    warm(engine, [Hero])
    change = "UPDATE w_hero SET age = age + 1 WHERE id = {}"
    with engine.connect() as connection:
        connection.exec_driver_sql("; ".join([change.format(1), "COMMIT", "BEGIN", change.format(2)]))
        assert (ages(engine)[1], ages(engine)[2]) == (31, 40)
        assert ages(connection)[2] == 41
        connection.commit() if ending == "commit" else connection.rollback()
    after = in_database(engine, [Hero])
    assert got(engine, after) == after
    assert ages(engine)[2] == (41 if ending == "commit" else 40)


@pytest.mark.parametrize("sql", ["UPDATE w_hero SET name = 'x; commit' WHERE id = 2", "SELECT '; end'"])
def test_commit_in_a_literal_is_none(engine: Engine, sql: str) -> None:
    """A statement that only looks as if it committed leaves the transaction what it is."""
    before = warm(engine, [Hero])
    with engine.connect() as connection:
        connection.execute(AGE_1)
        connection.exec_driver_sql(sql)
        own = in_database(connection, [Hero])
        assert got(connection, own) == own
        assert got(engine, before) == before
        connection.rollback()
    assert got(engine, before) == before


@pytest.mark.parametrize(
    ("sql", "dialect", "expected"),
    [
        ("TRUNCATE hero", "mysql", True),
        ("/* x */ alter table hero add x int", "mariadb", True),
        ("CREATE INDEX i ON hero (name)", "oracle", True),
        ("START TRANSACTION", "mysql", True),
        ("UPDATE hero SET name = 'drop'", "mysql", False),
        ("TRUNCATE hero", "postgresql", False),
        ("RELEASE SAVEPOINT a", "sqlite", True),
        ("RELEASE SAVEPOINT a", "postgresql", False),
        ("SELECT endpoint FROM hero", "postgresql", False),
        ("SELECT CASE WHEN a THEN b\nEND FROM hero", "postgresql", False),
    ],
)
def test_implicit_commits(sql: str, dialect: str, expected: bool) -> None:
    """Some databases commit before DDL; SQLite may at the release of a savepoint."""
    assert ends_transaction(sql, dialect) is expected


def test_prepare_in_text_leaves_the_commit_to_others() -> None:
    """PREPARE TRANSACTION commits nothing yet: its fence is not released."""
    assert prepares("prepare  transaction 'x'")
    assert ends_transaction("PREPARE TRANSACTION 'x'", "postgresql")
    assert not prepares("PREPARE statement AS SELECT 1")


def test_commit_that_fails_releases_its_fence(engine: Engine, transport: Recorder) -> None:
    """A deferred constraint is broken at COMMIT: the old rows stay true, and are cached again at once."""
    before = warm(engine, [Hero, Node])
    actions = "REFERENCES w_hero (id) DEFERRABLE INITIALLY DEFERRED"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS w_deferred (id int PRIMARY KEY, hero_id int {actions})")
    transport.take()
    session = Session(engine)
    write(session, 1)
    session.connection().exec_driver_sql("INSERT INTO w_deferred VALUES (1, 99)")
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    session.close()
    said = [type(effect) for effect in transport.take() if isinstance(effect, Begin | End)]
    assert said == [Begin, End]
    assert in_database(engine, [Hero, Node]) == before
    assert got(engine, before) == before
    assert missed(engine, before) == []
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE w_deferred")


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_transaction_that_its_commit_left_open(engine: Engine, workshop: Workshop) -> None:
    """SQLite keeps a transaction whose COMMIT it refuses, and the pool hands it on: others must not see into it."""
    if not engine.dialect.is_async:
        engine = workshop.connect("sqlite")  # whose pool has but one connection so far
    before = warm(engine, [Hero])
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS w_deferred "
            "(id int PRIMARY KEY, hero_id int REFERENCES w_hero (id) DEFERRABLE INITIALLY DEFERRED)"
        )
    with Session(engine) as session:
        write(session, 1)
        session.connection().exec_driver_sql("INSERT INTO w_deferred VALUES (1, 99)")
        with pytest.raises(IntegrityError):
            session.commit()
    with engine.connect() as leaked, engine.connect() as other:
        assert in_database(leaked, [Hero]) != before
        got(leaked, before)
        assert in_database(other, [Hero]) == before
        assert got(other, before) == before
        leaked.rollback()
    assert got(engine, before) == before
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE w_deferred")
    if not engine.dialect.is_async:
        engine.dispose()


@POSTGRES
def test_serialization_failure_releases_its_fence(engine: Engine) -> None:
    """Two serializable transactions read what the other writes: one COMMIT fails, and no row is stale or stuck."""
    before = warm(engine, [Hero])
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    change: Callable[[int], Any] = lambda pk: update(HEROES).where(HEROES.c.id == pk).values(age=0)  # noqa: E731
    with serializable.connect() as first, serializable.connect() as second:
        for connection in (first, second):
            assert len(connection.execute(select(HEROES)).all()) == 3
        first.execute(change(1))
        second.execute(change(2))
        first.commit()
        with pytest.raises(DBAPIError, match="could not serialize"):
            second.commit()
        second.rollback()
    after = in_database(engine, [Hero])
    assert {key for key in before if before[key] != after[key]} == set(rows(Hero, 1))
    assert got(engine, after) == after
    assert missed(engine, after) == []
