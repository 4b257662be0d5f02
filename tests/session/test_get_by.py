"""`get_by`: what a SELECT by the unique key would find, whoever has the key now, from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from conftest import Log, Store
from session.members import (
    Engineer,
    Folded,
    Late,
    Manager,
    Member,
    Person,
    Plain,
    Recording,
    Seat,
    Token,
    Wrong,
    make_members,
    truth,
)
from sqlalchemy import Engine, create_engine, delete, event, inspect, select, text, update
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlmodel_cache import CacheConfig, ConfigurationError, MemoryTransport, SQLModelCache

IN_MEMORY = pytest.mark.parametrize("store", ["memory"], indirect=True)
TWO_ENGINES = pytest.mark.parametrize("engine", ["sqlite", "postgresql+asyncpg"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql", "postgresql+asyncpg"], indirect=True)


@pytest.fixture
def members(engine: Engine, cache: Store, sql: Log) -> None:
    """The members' database, under a cache."""
    blocking = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}
    setup = create_engine(engine.url.set(drivername=blocking.get(engine.url.drivername, engine.url.drivername)))
    make_members(setup)
    setup.dispose()
    sql.take()


def by(engine: Engine, model: Any = Member, /, **key: Any) -> Any:
    """Return the primary key of a row as a new session finds it."""
    with Session(engine) as session:
        found = SQLModelCache.get_by(session, model, **key)
        if found is None:
            return None
        assert {name: getattr(found, name) for name in key} == key
        return found.id


def warm(engine: Engine, model: Any = Member, /, **key: Any) -> None:
    """Find a row until the cache does: the hint, the row, and a hit."""
    for _ in range(2):
        by(engine, model, **key)
    hits = SQLModelCache.stats().hits
    by(engine, model, **key)
    assert SQLModelCache.stats().hits == hits + 1


def check(engine: Engine, *letters: str) -> None:
    """Assert that each key has the row that it has, again and again: while the cache learns of it, and after."""
    for _ in range(4):
        for letter in letters:
            assert by(engine, email=letter) == truth(engine, Member, email=letter)


# the common case


def test_third_reader_hits(engine: Engine, members: None, sql: Log) -> None:
    """The first stores where the key leads, the second the row, and from then on no SQL is sent."""
    sent = []
    for _ in range(4):
        assert by(engine, email="a") == 1
        sent.append(len(sql.take()))
    assert sent == [1, 1, 0, 0] if engine.dialect.name == "sqlite" else [2, 2, 0, 0]
    stats = SQLModelCache.stats()
    assert (stats.hits, stats.misses, stats.fills) == (2, 2, 2)


def test_row_that_is_cached_is_found_by_its_second_reader(engine: Engine, members: None, sql: Log) -> None:
    """A get has stored the row; the first reader by key stores where it leads."""
    with Session(engine) as session:
        session.get(Member, 1)
    by(engine, email="a")
    sql.take()
    checkouts = sql.checkouts
    assert by(engine, email="a") == 1
    assert sql.take() == []
    assert sql.checkouts == checkouts


@pytest.mark.parametrize(
    "key", [{"email": "a"}, {"nick": "na"}, {"first": "a", "last": 1}, {"last": 1, "first": "a"}], ids=repr
)
@TWO_ENGINES
def test_every_kind_of_key_hits(engine: Engine, members: None, sql: Log, key: dict[str, Any]) -> None:
    """A constraint, an index, several columns in any order, and a column of another name than its attribute."""
    warm(engine, **key)
    sql.take()
    assert by(engine, **key) == 1
    assert sql.take() == []


@IN_MEMORY
@TWO_ENGINES
def test_keys_are_not_confused(engine: Engine, members: None) -> None:
    """Texts with separators in them, and equal values of other attributes."""
    with Session(engine) as session:
        session.add_all(
            [
                Member(id=10, email="na", nick="a", first="x:1", last=2),
                Member(id=11, email="x:1", nick="x", first="x", last=12),
                Member(id=12, email="", nick="", first="", last=0),
                Member(id=13, email="/email=a", nick="%2F", first="é", last=-1),
            ]
        )
        session.commit()
    for _ in range(4):
        assert [by(engine, email="na"), by(engine, nick="a"), by(engine, nick="na"), by(engine, email="a")] == [
            10,
            10,
            1,
            1,
        ]
        assert (by(engine, first="x:1", last=2), by(engine, first="x", last=12)) == (10, 11)
        assert (by(engine, email=""), by(engine, nick=""), by(engine, first="", last=0)) == (12, 12, 12)
        assert (by(engine, email="/email=a"), by(engine, nick="%2F"), by(engine, first="é", last=-1)) == (13,) * 3
    assert SQLModelCache.stats().hits > 15


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_round_trips(engine: Engine) -> None:
    """Two for a hit; at most two look-ups, the leases together, and the fills together."""
    transport = Recording()
    SQLModelCache.configure(transport)
    make_members(engine)
    transport.take()
    by(engine, email="a")
    assert transport.take() == ["Lookup", "1 Lease", "1 Fill"]
    by(engine, email="a")
    assert transport.take() == ["Lookup", "Lookup", "2 Lease", "2 Fill"]
    by(engine, email="a")
    assert transport.take() == ["Lookup", "Lookup"]
    by(engine, email="nobody")
    assert transport.take() == ["Lookup", "1 Lease"]


@TWO_ENGINES
def test_hit_is_a_persistent_object_and_one_per_session(engine: Engine, members: None) -> None:
    """In the identity map, unmodified, complete, and the object that get() and select() return."""
    warm(engine, email="a")
    with Session(engine) as session:
        member = SQLModelCache.get_by(session, Member, email="a")
        assert member is not None
        state = inspect(member)
        assert state.persistent
        assert not state.modified
        assert state.unloaded == {"secret"}
        assert session.get(Member, 1) is member
        assert session.scalars(select(Member).where(Member.id == 1)).one() is member
        assert SQLModelCache.get_by(session, Member, nick="na") is member


def test_missing_row_is_not_stored(engine: Engine, members: None, cache: Store) -> None:
    """Nobody has the key, until somebody has."""
    assert by(engine, email="z") is None
    assert by(engine, email="z") is None
    assert cache.values() == {}
    with Session(engine) as session:
        session.add(Member(id=26, email="z"))
        session.commit()
    check(engine, "z")


# who has the key now

WRITES: dict[str, Callable[[Session], object]] = {
    "flush": lambda session: setattr(session.get_one(Member, 1), "email", "z"),
    "update by primary key": lambda session: session.execute(update(Member).where(Member.id == 1).values(email="z")),
    "update by key": lambda session: session.execute(update(Member).where(Member.email == "a").values(email="z")),
    "core": lambda session: session.connection().execute(
        update(Member.__table__).where(Member.__table__.c.id == 1).values(email="z")  # type: ignore[arg-type]
    ),
    "text": lambda session: session.execute(text("UPDATE m_member SET email = 'z' WHERE email = 'a'")),
    "bulk": lambda session: session.bulk_update_mappings(Member, [{"id": 1, "email": "z"}]),  # type: ignore[arg-type]
    "delete": lambda session: session.delete(session.get_one(Member, 1)),
    "delete by key": lambda session: session.execute(delete(Member).where(Member.email == "a")),
    "delete all": lambda session: session.execute(text("DELETE FROM m_member")),
    "another primary key": lambda session: setattr(session.get_one(Member, 1), "id", 7),
}


@IN_MEMORY
@TWO_ENGINES
@pytest.mark.parametrize("way", WRITES)
def test_key_that_another_session_changes(engine: Engine, members: None, way: str) -> None:
    """After the commit the old key finds nobody, and the new one the row; after a rollback nothing has changed."""
    for letter in "ab":
        warm(engine, email=letter)
    for ending in ("rollback", "commit"):
        with Session(engine) as session:
            WRITES[way](session)
            session.flush()
            getattr(session, ending)()
        check(engine, "a", "b", "z")


@IN_MEMORY
@TWO_ENGINES
@pytest.mark.parametrize("how", ["flush", "core", "text"])
def test_rows_that_swap_their_keys(engine: Engine, members: None, how: str) -> None:
    """Each key finds the other row afterwards."""
    for letter in "ab":
        warm(engine, email=letter)
    with Session(engine) as session:
        for pk, email in ((1, "tmp"), (2, "a"), (1, "b")):
            if how == "flush":
                session.get_one(Member, pk).email = email
                session.flush()
            elif how == "core":
                session.execute(update(Member).where(Member.id == pk).values(email=email))
            else:
                session.execute(text(f"UPDATE m_member SET email = '{email}' WHERE id = {pk}"))
        session.commit()
    check(engine, "a", "b", "tmp")
    assert (by(engine, email="a"), by(engine, email="b")) == (2, 1)


@TWO_ENGINES
def test_key_of_a_row_that_was_deleted(engine: Engine, members: None) -> None:
    """Another row has it, and a new row has the primary key; each in its own commit and both in one."""
    for letter in "ab":
        warm(engine, email=letter)
    with Session(engine) as session:
        session.delete(session.get_one(Member, 1))
        session.flush()
        session.get_one(Member, 2).email = "a"
        session.commit()
    check(engine, "a", "b")
    with Session(engine) as session:
        session.add(Member(id=1, email="b"))
        session.commit()
    check(engine, "a", "b")
    assert (by(engine, email="a"), by(engine, email="b")) == (2, 1)


@POSTGRESQL
def test_uncommitted_change_of_the_key_is_not_seen(engine: Engine, members: None) -> None:
    """Others find the row by the old key until the commit."""
    warm(engine, email="a")
    with Session(engine) as writer:
        writer.get_one(Member, 1).email = "z"
        writer.flush()
        check(engine, "a", "z")
        assert by(engine, email="a") == 1
        writer.commit()
        check(engine, "a", "z")
    assert by(engine, email="z") == 1


@IN_MEMORY
def test_key_given_away_in_the_own_transaction(engine: Engine, members: None) -> None:
    """Before and after the flush, after a savepoint was rolled back, and after all was: as a SELECT finds it."""
    for letter in "ab":
        warm(engine, email=letter)
    with Session(engine) as session:

        def same() -> list[Any]:
            found = []
            for letter in "abz":
                got = SQLModelCache.get_by(session, Member, email=letter)
                assert got is session.scalars(select(Member).where(Member.email == letter)).one_or_none()
                found.append(None if got is None else got.id)
            return found

        session.get_one(Member, 1).email = "z"
        assert same() == [None, 2, 1]
        session.get_one(Member, 2).email = "a"
        assert same() == [2, None, 1]
        nested = session.begin_nested()
        session.delete(session.get_one(Member, 2))
        assert same() == [None, None, 1]
        nested.rollback()
        assert same() == [2, None, 1]
        session.add(Member(id=8, email="b"))
        session.flush()
        session.expunge_all()
        assert same() == [2, 8, 1]
        session.rollback()
        assert same() == [1, 2, None]
    check(engine, "a", "b", "z")


@IN_MEMORY
def test_key_given_away_without_a_flush(engine: Engine, members: None) -> None:
    """Without autoflush a SELECT finds the row by the key that it has in the database; so does a hit."""
    warm(engine, email="a")
    with Session(engine, autoflush=False) as session:
        member = session.get_one(Member, 1)
        member.email = "z"
        assert SQLModelCache.get_by(session, Member, email="a") is member
        assert SQLModelCache.get_by(session, Member, email="z") is None
        assert member.email == "z"
    check(engine, "a", "z")


@POSTGRESQL
def test_constraint_that_is_deferred(engine: Engine, store: Store) -> None:
    """A transaction that has written sees what it has written, two rows with the key included; others do not."""
    Late.metadata.drop_all(engine)
    Late.metadata.create_all(engine)
    SQLModelCache.configure(store.transport)
    with Session(engine) as session:
        session.add_all([Seat(id=1, number=1, name="x"), Seat(id=2, number=2, name="y")])
        session.commit()
    warm(engine, Seat, number=1)
    with Session(engine) as session:
        session.execute(update(Seat).where(Seat.id == 2).values(number=1))
        with pytest.raises(MultipleResultsFound):
            SQLModelCache.get_by(session, Seat, number=1)
        assert by(engine, Seat, number=1) == 1
        session.execute(update(Seat).where(Seat.id == 1).values(number=2))
        session.commit()
    for _ in range(4):
        assert (by(engine, Seat, number=1), by(engine, Seat, number=2)) == (2, 1)
    warm(engine, Seat, number=1)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("warm_first", [True, False])
def test_commit_at_every_step(engine: Engine, warm_first: bool) -> None:
    """A key that moves from one row to another just before any step of a search is found where it is, then or now."""
    for step in range(1, 6):
        transport = Recording()
        SQLModelCache.configure(transport)
        make_members(engine)
        if warm_first:
            warm(engine, email="a")

        def move() -> None:
            with Session(engine) as session:
                session.execute(update(Member).where(Member.id == 1).values(email="tmp"))
                session.execute(update(Member).where(Member.id == 2).values(email="a"))
                session.commit()

        transport.take()
        transport.before[step] = move
        found = by(engine, email="a")
        moved = not transport.before
        assert found == 2 if moved and warm_first else found in (1, 2)
        transport.before.clear()
        check(engine, "a", "b", "tmp")
        assert by(engine, email="a") == (2 if moved else 1)


@POSTGRESQL
def test_commit_between_the_select_and_the_fills(engine: Engine, members: None) -> None:
    """What the SELECT saw is not stored over the commit, neither the row nor where the key leads."""
    for reader in range(3):
        with Session(engine) as session:
            session.get_one(Member, 1).email, session.get_one(Member, 2).email = "a", "b"
            session.commit()
        for _ in range(reader):
            by(engine, email="a")
        fired: list[str] = []

        def move(conn: Any, cursor: Any, statement: str, *_: Any, fired: list[str] = fired) -> None:
            if "WHERE m_member.email" in statement and not fired:
                fired.append(statement)
                with Session(engine) as writer:
                    writer.get_one(Member, 1).email = "tmp"
                    writer.flush()
                    writer.get_one(Member, 2).email = "a"
                    writer.commit()

        event.listen(engine, "after_cursor_execute", move)
        by(engine, email="a")
        event.remove(engine, "after_cursor_execute", move)
        assert fired or reader == 2
        check(engine, "a", "b", "tmp")
        with Session(engine) as session:
            session.get_one(Member, 2).email = "b"
            session.commit()


@IN_MEMORY
@TWO_ENGINES
def test_writer_outside_is_seen_after_the_ttl(engine: Engine, store: Store) -> None:
    """Key and row expire like any other entry."""
    now = [0.0]
    SQLModelCache.configure(MemoryTransport(clock=lambda: now[0]))
    make_members(engine)
    warm(engine, email="a")
    raw = engine.raw_connection()
    raw.cursor().execute("UPDATE m_member SET email = 'z' WHERE id = 1")
    raw.commit()
    raw.close()
    assert by(engine, email="a") == 1
    now[0] = 601
    check(engine, "a", "z")
    assert by(engine, email="z") == 1


# what the session holds


@TWO_ENGINES
@IN_MEMORY
def test_older_instance_is_found_and_not_stored(engine: Engine, members: None) -> None:
    """A session keeps the instance that it has, as a SELECT leaves it; everybody else gets the row of now."""
    by(engine, email="a")
    with Session(engine, expire_on_commit=False) as old:
        held = old.get_one(Member, 1)
        old.commit()
        with Session(engine) as writer:
            writer.get_one(Member, 1).name = "new"
            writer.commit()
        for _ in range(2):
            assert SQLModelCache.get_by(old, Member, email="a") is held
            assert held.name == ""
            with Session(engine) as session:
                assert session.get_one(Member, 1).name == "new"
                session.expire_all()


@TWO_ENGINES
@IN_MEMORY
def test_change_that_is_not_flushed_is_not_stored(engine: Engine, members: None, cache: Store) -> None:
    """Without autoflush the SELECT finds a dirty instance: its values are nobody else's."""
    by(engine, email="a")
    with Session(engine, autoflush=False) as session:
        held = session.get_one(Member, 1, execution_options={"cache": False})
        held.name = "draft"
        assert SQLModelCache.get_by(session, Member, email="a") is held
        assert held.name == "draft"
    with Session(engine) as session:
        assert session.get_one(Member, 1).name == ""


@TWO_ENGINES
@IN_MEMORY
@pytest.mark.parametrize("names", [None, ["name"]], ids=["all", "one attribute"])
def test_expired_instance_is_refreshed(engine: Engine, members: None, sql: Log, names: list[str] | None) -> None:
    """As the SELECT would: it is complete afterwards."""
    warm(engine, email="a")
    with Session(engine) as session:
        held = session.get_one(Member, 1)
        session.expire(held, names)
        assert SQLModelCache.get_by(session, Member, email="a") is held
        sql.take()
        assert held.name == ""
        assert sql.take() == []


@TWO_ENGINES
@IN_MEMORY
def test_instance_whose_key_has_changed_is_not_found_by_the_old_one(engine: Engine, members: None) -> None:
    """The identity map may say what it likes: the database has another key for it now."""
    warm(engine, email="a")
    with Session(engine, expire_on_commit=False) as old:
        held = old.get_one(Member, 1)
        old.commit()
        with Session(engine) as writer:
            writer.get_one(Member, 1).email = "z"
            writer.commit()
        for _ in range(3):
            assert SQLModelCache.get_by(old, Member, email="a") is None
            old.commit()
            assert SQLModelCache.get_by(old, Member, email="z") is held
            old.commit()
        assert held.email == "a"


# values that are not keys


@TWO_ENGINES
@IN_MEMORY
def test_none_is_asked_of_the_database(engine: Engine, members: None) -> None:
    """Any number of rows may have NULL in a unique column."""
    assert by(engine, nick=None) is None
    with Session(engine) as session:
        session.get_one(Member, 1).nick = None
        session.get_one(Member, 3).last = None
        session.commit()
    for _ in range(3):
        assert by(engine, nick=None) == 1
        assert by(engine, first="c", last=None) == 3
    with Session(engine) as session:
        session.get_one(Member, 2).nick = None
        session.commit()
    with pytest.raises(MultipleResultsFound):
        by(engine, nick=None)
    assert SQLModelCache.stats().hits == 0


class Text(str):
    """A str of its own."""

    __slots__ = ()


@IN_MEMORY
@pytest.mark.parametrize("key", [{"email": 1}, {"email": b"a"}, {"email": Text("a")}, {"last": "1", "first": "a"}])
def test_values_of_other_types_are_the_databases_business(engine: Engine, members: None, key: dict[str, Any]) -> None:
    """What a SELECT finds or raises, get_by does; nothing is stored under such a key."""

    def outcome(find: Callable[[Session], Any]) -> Any:
        with Session(engine) as session:
            try:
                found = find(session)
                return None if found is None else found.id
            except Exception as error:
                return type(error)

    warm(engine, email="a")
    hits = SQLModelCache.stats().hits
    for _ in range(2):
        assert outcome(lambda session: SQLModelCache.get_by(session, Member, **key)) == outcome(
            lambda session: session.scalars(select(Member).filter_by(**key)).one_or_none()
        )
    assert SQLModelCache.stats().hits == hits


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_value_that_only_the_database_takes_for_equal(engine: Engine, members: None) -> None:
    """It is found each time, by a SELECT; the value that is stored is found by a hit."""
    with Session(engine) as session:
        session.add(Folded(code="x", email="Ada"))
        session.commit()
    for _ in range(4):
        for email in ("Ada", "ADA", "ada"):
            with Session(engine) as session:
                found = SQLModelCache.get_by(session, Folded, email=email)
                assert found is not None
                assert found.email == "Ada"
    assert SQLModelCache.stats().hits == 2
    with Session(engine) as session:
        session.get_one(Folded, "x").email = "Eve"
        session.commit()
    for email in ("Ada", "ADA", "ada"):
        with Session(engine) as session:
            assert SQLModelCache.get_by(session, Folded, email=email) is None


@TWO_ENGINES
@IN_MEMORY
def test_key_whose_column_is_deferred(engine: Engine, members: None) -> None:
    """A cached row does not hold it, so nobody can say that the row has the key but the database."""
    for _ in range(3):
        with Session(engine) as session:
            found = SQLModelCache.get_by(session, Member, secret="sa")
            assert found is not None
            assert found.id == 1
    assert SQLModelCache.stats().hits == 0
    with Session(engine) as session:
        session.get_one(Member, 1).secret = "other"
        session.commit()
    assert by(engine, secret="sa") is None
    assert by(engine, secret="other") == 1


# what is declared


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        (Member, {"name": "x"}, r"unique key of Member=\('name',\).*CacheConfig\(unique=.*\(email\), \(nick\)"),
        (Member, {"email": "a", "nick": "na"}, "unique key of Member"),
        (Member, {"first": "a"}, "unique key of Member"),
        (Member, {"nonsense": 1}, "unique key of Member"),
        (Member, {}, "unique key of Member"),
        (Token, {"id": 1}, "unique key of Token"),
        (Wrong, {"plain": "x"}, "no unique constraint or index"),
        (Wrong, {"partial": "x"}, "no unique constraint or index"),
        (Wrong, {"lower": "x"}, "no unique constraint or index"),
        (Wrong, {"both": "x"}, "no unique constraint or index"),
        (Wrong, {"owner": 1}, "'owner' is not a column attribute"),
        (Wrong, {"shown": "x"}, "'shown' is not a column attribute"),
        (Wrong, {"typo": "x"}, "'typo' is not a column attribute"),
        (Wrong, {"score": 1.0}, "no unique text"),
        (Engineer, {"code": "x"}, "no unique constraint or index"),
        (Engineer, {"person_code": "x"}, "unique key of Engineer"),
        (Manager, {"badge": "x"}, "unique key of Manager"),
        ("Member", {"email": "x"}, "give a mapped class"),
        (Session, {"email": "x"}, "give a mapped class"),
    ],
    ids=str,
)
@IN_MEMORY
def test_key_that_is_none_is_an_error(
    engine: Engine, members: None, sql: Log, model: Any, key: Any, message: str
) -> None:
    """It names the key and what to do; no SQL is sent, also when it is asked for again."""
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=message):
            by(engine, model, **key)
    assert sql.take() == []


@pytest.mark.parametrize(
    "unique", ["email", ["email"], ("email",), [()], [("",)], [(1,)], [["email"]], 5, None, {("email",): 1}], ids=repr
)
def test_declaration_that_is_none_is_an_error(unique: Any) -> None:
    """`unique` is made of tuples of names."""
    with pytest.raises(ConfigurationError, match=r"CacheConfig\(unique\)"):
        CacheConfig(unique=unique)


@TWO_ENGINES
@IN_MEMORY
def test_attributes_may_have_any_name(engine: Engine, members: None) -> None:
    """Also those of the method's own arguments."""
    with Session(engine) as session:
        session.add(Token(id=1, session="s", entity="e", function="f"))
        session.commit()
    warm(engine, Token, session="s", entity="e")
    warm(engine, Token, function="f")


# inheritance


@TWO_ENGINES
@IN_MEMORY
def test_inheritance(engine: Engine, members: None) -> None:
    """A base finds its subclasses, a subclass its own rows; a key of the subclass's table leads to the whole row."""
    with Session(engine) as session:
        session.add_all(
            [
                Person(id=1, email="p"),
                Engineer(id=2, email="e", badge="b"),
                Manager(id=3, email="m"),
            ]
        )
        session.commit()
    for _ in range(4):
        for model, key, class_ in (
            (Person, {"email": "p"}, Person),
            (Person, {"email": "e"}, Engineer),
            (Person, {"email": "m"}, Manager),
            (Engineer, {"email": "e"}, Engineer),
            (Engineer, {"badge": "b"}, Engineer),
            (Manager, {"email": "m"}, Manager),
            (Engineer, {"email": "p"}, None),
            (Manager, {"email": "e"}, None),
        ):
            with Session(engine) as session:
                found: Any = SQLModelCache.get_by(session, model, **key)
                assert (None if found is None else type(found)) is class_
    assert SQLModelCache.stats().hits >= 8
    with Session(engine) as session:
        session.get_one(Engineer, 2).badge = "new"
        session.get_one(Person, 3).email = "e2"
        session.commit()
    for _ in range(3):
        assert by(engine, Engineer, badge="b") is None
        assert by(engine, Engineer, badge="new") == 2
        assert by(engine, Person, email="m") is None
        assert by(engine, Person, email="e2") == 3


# by rule


@TWO_ENGINES
def test_options_of_the_call(engine: Engine, members: None, cache: Store, sql: Log) -> None:
    """`cache` and `cache_ttl` as in a get; a wrong one is an error."""
    uncached = {"cache": False}
    for _ in range(2):
        with Session(engine) as session:
            found = SQLModelCache.get_by(session, Member, execution_options=uncached, email="a")
            assert found is not None
    assert cache.values() == {}
    assert SQLModelCache.stats().bypasses == 2
    for _ in range(2):
        with Session(engine) as session:
            SQLModelCache.get_by(session, Member, execution_options={"cache_ttl": 60}, email="a")
    assert len(cache.values()) == 2
    assert all(cache.ttl(key) <= 60 for key in cache.values())
    with Session(engine) as session, pytest.raises(ConfigurationError, match="cache_ttl"):
        SQLModelCache.get_by(session, Member, execution_options={"cache_ttl": -1}, email="a")


@IN_MEMORY
@POSTGRESQL
def test_snapshot_that_was_asked_for_is_kept(engine: Engine, members: None) -> None:
    """A transaction in REPEATABLE READ finds what its snapshot holds, and stores nothing."""
    warm(engine, email="a")
    strict = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(strict) as reader:
        reader.execute(text("SELECT 1 FROM m_member"))
        with Session(engine) as writer:
            writer.get_one(Member, 1).email = "z"
            writer.commit()
        found = SQLModelCache.get_by(reader, Member, email="a")
        assert found is not None
        assert SQLModelCache.get_by(reader, Member, email="z") is None
    check(engine, "a", "z")


@TWO_ENGINES
@pytest.mark.parametrize("state", ["unconfigured", "disabled", "uncached"])
@IN_MEMORY
def test_without_a_cache_it_is_a_select(engine: Engine, store: Store, sql: Log, state: str) -> None:
    """One statement each time, and the same answers."""
    if state != "unconfigured":
        SQLModelCache.configure(store.transport, enabled=state != "disabled")
    make_members(engine)
    with Session(engine) as session:
        session.add(Plain(id=1, email="a"))
        session.add(Plain(id=2, email="twice"))
        session.add(Plain(id=3, email="twice"))
        session.commit()
    model: Any = Plain if state == "uncached" else Member
    sql.take()
    for _ in range(2):
        assert by(engine, model, email="a") == 1
        assert len([each for each in sql.take() if each.startswith("SELECT")]) == 1
    assert by(engine, model, email="z") is None
    assert store.values() == {}
    with pytest.raises(MultipleResultsFound):
        by(engine, Plain, email="twice")


@TWO_ENGINES
@IN_MEMORY
def test_listener_that_changes_statements_sends_it_to_the_database(engine: Engine, members: None) -> None:
    """A listener of the session may narrow what a SELECT finds."""
    warm(engine, email="a")
    with Session(engine) as session:

        @event.listens_for(session, "do_orm_execute")
        def _narrow(state: Any) -> None:
            state.statement = state.statement.where(Member.id != 1)

        assert SQLModelCache.get_by(session, Member, email="a") is None
    assert by(engine, email="a") == 1


@pytest.fixture
def loads() -> Iterator[list[Any]]:
    """What load events are fired for."""
    seen: list[Any] = []

    def loaded(target: Any, _: object) -> None:
        seen.append(target.email)
        with suppress(TypeError):
            target.name += "!"  # a listener may change what it is given; the cache must not see it

    event.listen(Member, "load", loaded)
    yield seen
    event.remove(Member, "load", loaded)


@TWO_ENGINES
@IN_MEMORY
def test_load_events_fire(engine: Engine, members: None, loads: list[Any]) -> None:
    """Once for each object that is made, on a hit as on a miss, and each sees the row as the database has it."""
    for _ in range(4):
        with Session(engine) as session:
            found = SQLModelCache.get_by(session, Member, email="a")
            assert found is not None
            assert found.name == "!"
    assert loads == ["a"] * 4
    assert SQLModelCache.stats().hits == 2


@pytest.mark.parametrize("engine", ["sqlite+aiosqlite", "postgresql+asyncpg"], indirect=True)
async def test_async_twin(engine: Engine, store: Store, sql: Log) -> None:
    """`aget_by` hits in an AsyncSession, with its options and any names of attributes."""
    SQLModelCache.configure(store.transport)
    async_engine = AsyncEngine(engine)
    async with async_engine.connect() as connection:
        await connection.run_sync(lambda _: make_members(engine))
    async with AsyncSession(async_engine) as session:
        session.add(Token(id=1, session="s", entity="e", function="f"))
        await session.commit()
    for _ in range(4):
        sql.take()
        async with AsyncSession(async_engine) as session:
            member = await SQLModelCache.aget_by(session, Member, email="a")
            assert member is not None
            assert member.id == 1
            assert await SQLModelCache.aget_by(session, Token, function="f") is not None
            assert await SQLModelCache.aget_by(session, Member, email="z", execution_options={"cache": False}) is None
    assert [each for each in sql.take() if "m_token" in each] == []
    with pytest.raises(ConfigurationError):
        async with AsyncSession(async_engine) as session:
            await SQLModelCache.aget_by(session, Member, name="x")
