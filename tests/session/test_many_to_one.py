"""Lazy loads by primary key, answered from the cache where a relationship or its target opted in.

What they leave in the session is compared with plain lazy loads in `parity/test_many_to_one.py`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Log, Store, url_of
from models import Team
from sqlalchemy import Column, Engine, Integer, MetaData, Table, delete, event, text, update
from sqlalchemy.orm import registry, selectinload
from sqlmodel import Field, Relationship, Session, SQLModel, create_engine, select

from sqlmodel_cache import CacheConfig, ConfigurationError, SQLModelCache, _sqlalchemy

pytestmark = pytest.mark.usefixtures("cache")


class Squad(SQLModel, table=True):
    """Answered from the cache wherever somebody refers to it."""

    __cache_config__ = CacheConfig(many_to_one=True)
    id: int | None = Field(default=None, primary_key=True)
    name: str


class Soldier(SQLModel, table=True):
    """Refers to a squad in three ways, and to a team that did not opt in in two."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str
    squad_id: int | None = Field(default=None, foreign_key="squad.id")
    team_id: int | None = Field(default=None, foreign_key="team.id")
    squad: Squad | None = Relationship()
    never: Squad | None = Relationship(sa_relationship_kwargs={"viewonly": True, "info": {"cache": False}})
    team: Team | None = Relationship()
    asked: Team | None = Relationship(sa_relationship_kwargs={"viewonly": True, "info": {"cache": True}})


class Asleep(SQLModel, table=True):
    """Opted in, and is not cached."""

    __cache_config__ = CacheConfig(enabled=False, many_to_one=True)
    id: int | None = Field(default=None, primary_key=True)


class Guest(SQLModel, table=True):
    """Not cached itself; of what it refers to, only the first is a look-up of a cached model, and sent."""

    id: int | None = Field(default=None, primary_key=True)
    squad_id: int | None = Field(default=None, foreign_key="squad.id")
    asleep_id: int | None = Field(default=None, foreign_key="asleep.id")
    squad: Squad | None = Relationship()
    asleep: Asleep | None = Relationship()
    raising: Squad | None = Relationship(sa_relationship_kwargs={"viewonly": True, "lazy": "raise"})
    red: Squad | None = Relationship(
        sa_relationship_kwargs={
            "viewonly": True,
            "primaryjoin": "and_(Guest.squad_id == Squad.id, Squad.name == 'Red')",
            "info": {"cache": True},
        }
    )


class WronglyTold(SQLModel, table=True):
    """Its relationship says something else than True or False."""

    id: int | None = Field(default=None, primary_key=True)
    squad_id: int | None = Field(default=None, foreign_key="squad.id")
    squad: Squad | None = Relationship(sa_relationship_kwargs={"info": {"cache": 1}})


def recruit(engine: Engine) -> None:
    """Add a squad and a team of number 1 with a soldier, who is then in the cache: to get him begins no transaction."""
    with Session(engine) as session:
        session.add_all([Squad(id=1, name="Red"), Team(id=1, name="Blue")])
        session.flush()
        session.add(Soldier(id=1, name="Sven", squad_id=1, team_id=1))
        session.commit()
    with Session(engine) as session:
        session.get(Soldier, 1)


def warm(engine: Engine, *classes: type) -> None:
    """Get number 1 of each class in a session of its own."""
    for class_ in classes:
        with Session(engine) as session:
            session.get(class_, 1)


def soldier(session: Session) -> Soldier:
    """Return the soldier."""
    return session.get_one(Soldier, 1)


def squad(engine: Engine) -> str | None:
    """Return what a new session calls the soldier's squad."""
    with Session(engine) as session:
        found = soldier(session).squad
        return None if found is None else found.name


def test_lazy_load_fills_then_hits(engine: Engine, cache: Store, sql: Log) -> None:
    """The second lazy load in another session issues no SQL and takes no connection."""
    recruit(engine)
    sql.take()
    assert squad(engine) == "Red"
    assert len(sql.take()) == 1
    assert len(cache.values()) == 2
    checkouts, before = sql.checkouts, SQLModelCache.stats()

    assert squad(engine) == "Red"

    assert sql.take() == []
    assert sql.checkouts == checkouts
    assert SQLModelCache.stats().hits == before.hits + 2


def test_gets_and_lazy_loads_are_one(engine: Engine, cache: Store, sql: Log) -> None:
    """What a get has stored a lazy load finds, and the other way round; both are counted."""
    recruit(engine)
    warm(engine, Squad, Team)
    sql.take()
    with Session(engine) as session:
        held = soldier(session)
        assert (held.squad, held.asked) == (session.get(Squad, 1), session.get(Team, 1))
    assert sql.take() == []
    cache.clear()
    warm(engine, Soldier)
    assert squad(engine) == "Red"
    before = SQLModelCache.stats()
    sql.take()
    with Session(engine) as session:
        session.get(Squad, 1)
    assert SQLModelCache.stats().hits == before.hits + 1
    assert sql.take() == []


def test_who_did_not_opt_in(engine: Engine, sql: Log) -> None:
    """A relationship whose target did not, or that itself did not want to, sends its SELECT and is not counted."""
    recruit(engine)
    warm(engine, Squad, Team)
    sql.take()
    before = SQLModelCache.stats()
    with Session(engine) as session:
        held = soldier(session)
        assert held.team is not None
        assert held.never is not None
    assert len(sql.take()) == 2
    assert SQLModelCache.stats().hits == before.hits + 1
    assert SQLModelCache.stats().bypasses == before.bypasses


WRITES: dict[str, Callable[[Session], Any]] = {
    "flush": lambda session: setattr(session.get(Squad, 1), "name", "New"),
    "lazy_flush": lambda session: setattr(session.get_one(Soldier, 1).squad, "name", "New"),
    "by_key": lambda session: session.execute(update(Squad).where(Squad.id == 1).values(name="New")),
    "bulk": lambda session: session.execute(update(Squad).values(name="New")),
    "text": lambda session: session.execute(text("UPDATE squad SET name = 'New'")),
}


@pytest.mark.parametrize("write", WRITES)
def test_commit_is_seen(engine: Engine, sql: Log, write: str) -> None:
    """A lazy load that begins after a commit reads the new row, also in a session that was there before."""
    recruit(engine)
    squad(engine)
    assert squad(engine) == "Red"
    with Session(engine) as early:
        held = soldier(early)
        with Session(engine) as session:
            WRITES[write](session)
            session.commit()
        sql.take()
        assert held.squad is not None
        assert held.squad.name == "New"
        assert len(sql.take()) == 1
    squad(engine)
    sql.take()
    assert squad(engine) == "New"
    assert sql.take() == []


def test_deleted_target_is_seen(engine: Engine) -> None:
    """A target that was deleted is None; so is what the foreign key had been set to."""
    recruit(engine)
    squad(engine)
    with Session(engine) as early:
        held = soldier(early)
        with Session(engine) as session:
            session.execute(update(Soldier).values(squad_id=None))
            session.execute(delete(Squad))
            session.commit()
        assert held.squad_id == 1
        assert held.squad is None
    assert squad(engine) is None


def test_own_writes(engine: Engine, cache: Store) -> None:
    """What the transaction has written it reads from the database, and nothing of it is stored before the commit."""
    recruit(engine)
    squad(engine)
    before = cache.values()
    with Session(engine) as session:
        session.execute(update(Squad).where(Squad.id == 1).values(name="Draft"))
        held = soldier(session)
        assert held.squad is not None
        assert held.squad.name == "Draft"
        assert cache.values() == before
        session.rollback()
    assert squad(engine) == "Red"


def test_pending_write_is_flushed_first(engine: Engine) -> None:
    """A lazy load flushes, as its SELECT would, and looks for what the foreign key was when it began."""
    recruit(engine)
    squad(engine)
    with Session(engine) as session:
        session.add(Squad(id=2, name="Green"))
        session.commit()
    with Session(engine) as session:
        held = soldier(session)
        held.squad_id = 2
        assert held.squad is not None
        assert held.squad.name == "Green"
        assert not session.dirty
        session.rollback()
        assert held.squad is not None
        assert held.squad.name == "Red"


def in_the_middle(engine: Engine, other: Engine, when: str) -> None:
    """Commit another name for the squad when the engine's next SELECT of it is sent, or has been."""

    @event.listens_for(engine, when)
    def _executed(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM squad" in statement and not done:
            done.append(statement)
            with Session(other) as writer:
                writer.execute(update(Squad).where(Squad.id == 1).values(name="New"))
                writer.commit()

    done: list[str] = []


@pytest.fixture
def other(engine: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A second engine on the database, with a sync driver."""
    driver = engine.dialect.name
    made = create_engine(url_of(driver, tmp_path, request))
    yield made
    made.dispose()


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_commit_before_the_select(engine: Engine, cache: Store, other: Engine) -> None:
    """The lease is taken before the SELECT: a commit between the two makes the fill too late."""
    recruit(engine)
    in_the_middle(engine, other, "before_cursor_execute")
    assert squad(engine) == "New"
    assert SQLModelCache.stats().refused == 1
    assert len(cache.values()) == 1
    assert squad(engine) == "New"


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_commit_after_the_select(engine: Engine, cache: Store, other: Engine) -> None:
    """A lazy load that has read the row before a commit does not store it after that."""
    recruit(engine)
    in_the_middle(engine, other, "after_cursor_execute")
    assert squad(engine) == "Red"
    assert SQLModelCache.stats().refused == 1
    assert len(cache.values()) == 1
    assert squad(engine) == "New"


def test_load_listener_changes_what_is_stored_by_nobody(engine: Engine) -> None:
    """The row is taken before a load listener of the application can change it."""
    recruit(engine)

    def loaded(target: Squad, _: object) -> None:
        target.name += "!"

    event.listen(Squad, "load", loaded)
    try:
        assert [squad(engine) for _ in range(3)] == ["Red!", "Red!", "Red!"]
    finally:
        event.remove(Squad, "load", loaded)
    assert squad(engine) == "Red"
    assert SQLModelCache.stats().fills == 2


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_snapshot_that_was_asked_for(engine: Engine, sql: Log, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A transaction that asked for REPEATABLE READ keeps its snapshot."""
    recruit(engine)
    squad(engine)
    made = create_engine(url_of("postgresql", tmp_path, request), isolation_level="REPEATABLE READ")
    with Session(made) as reader:
        held = soldier(reader)
        with Session(engine) as session:
            session.get_one(Squad, 1).name = "New"
            session.commit()
        assert squad(engine) == "New"
        assert held.squad is not None
        assert held.squad.name == "Red"
    made.dispose()


def test_options_of_the_statement(engine: Engine, sql: Log) -> None:
    """Options of the statement that has loaded an object are those of its lazy loads: these go to the database."""
    recruit(engine)
    squad(engine)
    before = SQLModelCache.stats()
    sql.take()
    with Session(engine) as session:
        held = session.exec(select(Soldier).options(selectinload(Soldier.team))).one()  # type: ignore[arg-type]
        assert held.squad is not None
    assert len(sql.take()) == 3
    assert SQLModelCache.stats().hits == before.hits
    assert SQLModelCache.stats().bypasses == before.bypasses + 1


def test_engine_that_does_not_want_the_cache(engine: Engine, sql: Log) -> None:
    """An engine's execution options are those of its lazy loads."""
    recruit(engine)
    squad(engine)
    with Session(engine) as session:
        held = soldier(session)
        session.expunge(held)
    sql.take()
    with Session(engine.execution_options(cache=False)) as session:
        session.add(held)
        assert held.squad is not None
    assert len(sql.take()) == 1


def test_disabled(engine: Engine, cache: Store, sql: Log) -> None:
    """Where nothing may be read from the cache, lazy loads are SQLAlchemy's own."""
    recruit(engine)
    squad(engine)
    SQLModelCache.reset()
    own = _sqlalchemy.LazyLoader._emit_lazyload
    SQLModelCache.configure(cache.transport, enabled=False)
    assert _sqlalchemy.LazyLoader._emit_lazyload is own
    sql.take()
    assert squad(engine) == "Red"
    assert len(sql.take()) == 2
    assert SQLModelCache.stats().bypasses == 0


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_declaration_is_read_again(engine: Engine, sql: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of relationships is forgotten when a class is mapped, as what is known of classes is."""
    recruit(engine)
    warm(engine, Squad)
    sql.take()
    assert squad(engine) == "Red"
    assert sql.take() == []
    monkeypatch.setattr(Squad, "__cache_config__", CacheConfig())

    registry().map_imperatively(
        type("Late", (), {}), Table("late", MetaData(), Column("id", Integer, primary_key=True))
    )

    assert squad(engine) == "Red"
    assert len(sql.take()) == 1


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_explain(engine: Engine) -> None:
    """explain() names the relationships that are look-ups in the cache, of a model that is cached and of another."""
    assert SQLModelCache.explain(Soldier).many_to_one == ("squad", "asked")
    assert "  many-to-one  squad, asked" in str(SQLModelCache.explain(Soldier)).splitlines()
    guest = SQLModelCache.explain(Guest)
    assert (guest.cached, guest.many_to_one) == (False, ("squad",))
    assert SQLModelCache.explain(Squad).many_to_one == ()
    SQLModelCache.reset()
    assert SQLModelCache.explain(Soldier).many_to_one == ()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_wrong_declarations(engine: Engine) -> None:
    """What is neither True nor False is an error that names the relationship, or the argument."""
    recruit(engine)
    with Session(engine) as session:
        session.add(WronglyTold(id=1, squad_id=1))
        session.commit()
        with pytest.raises(ConfigurationError, match=r"WronglyTold\.squad: info\[\"cache\"\].*True or False"):
            _ = session.get_one(WronglyTold, 1).squad
    with pytest.raises(ConfigurationError, match=r"CacheConfig\(many_to_one\)"):
        CacheConfig(many_to_one=1)  # type: ignore[arg-type]
